//! Streams between systems: many at once, from everybody to everybody, with one that does not read.

use stp_tests::{Kind, Lab, Net};

use crate::{end, number, serve, stories, whole};

stories! {
    three_systems_talk_to_each_other_at_once,
    five_hundred_streams_at_once,
    one_slow_reader_stalls_only_itself,
}

/// Everybody serves and everybody calls everybody else, two through shared engines and one with engines of its own.
fn three_systems_talk_to_each_other_at_once(kind: Kind) {
    let Some(lab) = Lab::with(
        "three systems",
        kind,
        &["alpha", "beta", "gamma"],
        Net::None,
    ) else {
        return;
    };
    let hosts: [_; 3] = lab.hosts();
    let _engines = [hosts[0].engine(), hosts[1].engine()];
    let servers: Vec<_> = hosts
        .iter()
        .map(|host| serve(host, "7000 --streams 16"))
        .collect();
    // Any system can read from the volume who is there.
    let sockets = hosts[2].stp(["ss", "--all", "--json"]).ok();
    let parsed: serde_json::Value =
        serde_json::from_slice(&sockets.out).unwrap_or_else(|error| panic!("{error}: {sockets}"));
    let text = parsed.to_string();
    for host in &hosts {
        assert!(
            text.contains(host.system()),
            "no {} in {text}",
            host.system()
        );
    }
    let mut callers = Vec::new();
    for (index, from) in hosts.iter().enumerate() {
        for to in hosts.iter().filter(|to| to.system() != from.system()) {
            let args = format!(
                "call {}:7000 --streams 8 --up 300000 --down 500000 --key {}",
                to.system(),
                index + 1
            );
            callers.push(from.load(&args).spawn());
        }
    }
    for caller in callers {
        let ran = caller.ok();
        assert_eq!(whole(&ran.text()), 8, "{ran}");
    }
    for server in servers {
        let ran = server.ok();
        assert_eq!(whole(&ran.text()), 16, "{ran}");
    }
    end(&lab);
}

/// Five hundred programs' worth of streams on one link; each keeps its own bytes.
fn five_hundred_streams_at_once(kind: Kind) {
    let Some(lab) = Lab::with("500 streams", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let server = serve(beta, "7000 --streams 500");
    let ran = alpha
        .load("call beta:7000 --streams 500 --up 30001 --down 20011")
        .ok();
    assert_eq!(whole(&ran.text()), 500, "{ran}");
    let ran = server.ok();
    assert_eq!(whole(&ran.text()), 500, "{ran}");
    end(&lab);
}

/// A reader stops for twenty seconds with its stream full; the others finish meanwhile, new ones come and go, and
/// when it reads again nothing is lost.
fn one_slow_reader_stalls_only_itself(kind: Kind) {
    let Some(lab) = Lab::with("a slow reader", kind, &["alpha", "beta"], Net::None) else {
        return;
    };
    let [alpha, beta] = lab.hosts();
    let _engines = [alpha.engine(), beta.engine()];
    let server = serve(beta, "7000 --streams 9");
    let mut caller = alpha
        .load("call beta:7000 --streams 8 --down 8000000 --stalled 1 --stall 20")
        .spawn();
    caller.wait_out("a stalled stream", |out| {
        out.contains("stalling").then_some(())
    });
    let late = alpha
        .load("call beta:7000 --down 3000000 --up 3000000 --key 9")
        .ok();
    assert_eq!(whole(&late.text()), 1, "{late}");
    caller.wait_out("the end of the others", |out| {
        (whole(out) == 7).then_some(())
    });
    let stalled = number(&caller.out(), "stalling", "key")
        .map(|key| key ^ 0x5555_5555_0000_0000)
        .unwrap();
    let ran = caller.ok();
    let last = ran
        .text()
        .lines()
        .rfind(|line| line.ends_with(" whole"))
        .map(str::to_owned)
        .unwrap();
    assert!(
        last.starts_with(&format!("called key={stalled} ")),
        "the stalled stream ended before others: {ran}"
    );
    assert_eq!(whole(&ran.text()), 8, "{ran}");
    server.ok();
    end(&lab);
}

/// The systems reach the storage through different initiators.
#[test]
fn streams_over_two_loop_devices() {
    five_hundred_streams_at_once(Kind::LoopPair);
}
