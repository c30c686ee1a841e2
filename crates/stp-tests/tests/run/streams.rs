//! Streams: bulk data in both directions, and what `stp run` itself promises.

use stp_tests::{Stage, Transport};

use crate::stories;

stories! {
    iperf3_streams_in_all_directions,
}

/// Four streams of 100 MiB together: to the server, from it, and both at once; what one end sent, the other received.
fn iperf3_streams_in_all_directions(transport: Transport) {
    let Some(stage) = Stage::open("iperf3", transport, &["iperf3"]) else {
        return;
    };
    let port = stage.port().to_string();
    let mut server = stage.server("iperf3").args(["-s", "-p", &port]).spawn();
    stage.wait_server(port.parse().unwrap(), &mut server);
    for direction in [&[][..], &["-R"], &["--bidir"]] {
        let client = stage
            .client("iperf3")
            .args(["-c", stage.server_name(), "-p", &port]);
        let client = client.args(["-P", "4", "-n", "100M", "--json", "--get-server-output"]);
        let ran = client.args(direction).ok();
        let report: serde_json::Value = serde_json::from_slice(&ran.out).expect("JSON");
        assert!(report["error"].is_null(), "{ran}");
        let sums = match direction {
            ["--bidir"] => vec![
                ("sum_sent", "sum_received"),
                ("sum_sent_bidir_reverse", "sum_received_bidir_reverse"),
            ],
            _ => vec![("sum_sent", "sum_received")],
        };
        for (sent, received) in sums {
            let bytes = |name: &str| report["end"][name]["bytes"].as_u64().unwrap_or(0);
            let (sent, received) = (bytes(sent), bytes(received));
            assert!(
                sent >= 100 << 20 || direction == ["--bidir"],
                "{direction:?}: sent {sent}"
            );
            assert!(
                received > 0 && received <= sent,
                "{direction:?}: {received} of {sent}"
            );
        }
        assert_eq!(report["start"]["test_start"]["num_streams"], 4, "{ran}");
    }
    assert!(server.ended().is_none(), "{}", server.err());
    stage.end();
}
