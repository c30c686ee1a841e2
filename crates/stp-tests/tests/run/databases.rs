//! Databases: redis, PostgreSQL, memcached.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use stp_tests::{Cmd, HANG, Proc, Stage, Transport, make_file, wait_for};

use crate::{number, stories};

stories! {
    redis_serves_a_benchmark_and_keeps_its_data,
    redis_replicates_to_another_system,
    postgres_keeps_its_books_under_pgbench,
    postgres_copies_tables_and_cancels_queries,
    memcached_passes_its_protocol_test_and_keeps_its_data,
}

/// Starts a redis server at either end.
fn redis(command: Cmd, port: u16) -> Proc {
    let port = port.to_string();
    let quiet = [
        "--save",
        "",
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
        "--enable-debug-command",
        "yes",
    ];
    command.args(["--port", &port]).args(quiet).spawn()
}

/// `redis-benchmark` with and without pipelining, from 50 connections; then the counter, a list, a value of 32 MiB and
/// 20,000 small ones are looked up.
fn redis_serves_a_benchmark_and_keeps_its_data(transport: Transport) {
    let programs = ["redis-server", "redis-benchmark", "redis-cli"];
    let Some(stage) = Stage::open("redis", transport, &programs) else {
        return;
    };
    let port = stage.port();
    let mut server = redis(stage.server("redis-server"), port);
    stage.wait_server(port, &mut server);
    let to = ["-h", stage.server_name(), "-p", &port.to_string()];
    let cli = |words: &[&str]| stage.client("redis-cli").args(to).args(words);
    let benchmark = |words: &str| {
        let ran = stage
            .client("redis-benchmark")
            .args(to)
            .args(["--csv", "-c", "50"])
            .args(words.split(' '))
            .ok();
        // A header, and a line a kind of request; errors would be lines of another form.
        let text = ran.text();
        assert!(
            text.lines()
                .skip(1)
                .all(|line| line.starts_with('"') && line.split(',').count() == 8),
            "{ran}"
        );
        text.lines().count() - 1
    };
    assert_eq!(benchmark("-n 20000 -t set,get,incr,lpush,mset"), 5);
    assert_eq!(benchmark("-n 100000 -P 16 -t set,incr,lpush -d 100"), 3);
    let ask = |words: &[&str]| cli(words).ok().text();
    // Every request was carried out once.
    assert_eq!(
        number::<u64>(&ask(&["get", "counter:__rand_int__"])),
        120_000
    );
    assert_eq!(number::<u64>(&ask(&["llen", "mylist"])), 120_000);

    // A value that needs many writes and reads in each direction.
    let big = make_file(&stage.client_host().path("big"), 1, 32 << 20);
    let set = cli(&["-x", "set", "big"]).stdin_file(&big).ok();
    assert_eq!(set.text().trim(), "OK");
    let got = cli(&["--raw", "get", "big"]).ok().out;
    assert!(
        got.strip_suffix(b"\n") == Some(&*std::fs::read(&big).unwrap()),
        "32 MiB through redis differ"
    );

    // Mass insertion: one stream of 20,000 requests, answered while it is still being sent.
    let value = |index: u32| format!("value-{index}-{}", "x".repeat((index % 97) as usize));
    let mut requests = String::new();
    for index in 0..20_000 {
        let (key, value) = (format!("key-{index}"), value(index));
        let (a, b) = (key.len(), value.len());
        write!(
            requests,
            "*3\r\n$3\r\nSET\r\n${a}\r\n{key}\r\n${b}\r\n{value}\r\n"
        )
        .unwrap();
    }
    let file = stage.client_host().path("requests");
    std::fs::write(&file, requests).unwrap();
    let piped = cli(&["--pipe"]).stdin_file(&file).ok();
    assert!(
        piped.text().contains("errors: 0, replies: 20000"),
        "{piped}"
    );
    let keys: Vec<String> = (0..20_000).map(|index| format!("key-{index}")).collect();
    std::fs::write(&file, format!("mget {}\n", keys.join(" "))).unwrap();
    let got = cli(&["--raw"]).stdin_file(&file).ok().text();
    assert!(
        got.lines().eq((0..20_000).map(value)),
        "small values differ"
    );

    // Subscribers are told without asking.
    let mut subscriber = cli(&["--csv", "subscribe", "news"]).spawn();
    subscriber.wait_out("a subscription", |out| {
        out.contains("subscribe").then_some(())
    });
    assert_eq!(ask(&["publish", "news", "hello"]).trim(), "1");
    subscriber.wait_out("a message", |out| out.contains("\"hello\"").then_some(()));
    drop(subscriber);
    let _ = cli(&["shutdown", "nosave"]).run();
    assert!(server.wait().success());
    stage.end();
}

/// A replica at the other end takes a copy of what is there, then what is written later; after the server's end it says
/// that its link is down.
fn redis_replicates_to_another_system(transport: Transport) {
    let programs = ["redis-server", "redis-cli"];
    let Some(stage) = Stage::open("redis replica", transport, &programs) else {
        return;
    };
    let (port, copy_port) = (stage.port(), stage.port());
    let mut server = redis(stage.server("redis-server"), port);
    stage.wait_server(port, &mut server);
    let at_server = ["-h", stage.server_name(), "-p", &port.to_string()];
    let at_copy = ["-h", "127.0.0.1", "-p", &copy_port.to_string()];
    let ask = |to: [&str; 4], words: &[&str]| {
        let cli = stage.client("redis-cli").args(to).args(words);
        cli.ok().text().trim().to_owned()
    };
    assert_eq!(
        ask(at_server, &["debug", "populate", "20000", "early", "500"]),
        "OK"
    );
    let follow = ["--replicaof", stage.server_name(), &port.to_string()];
    let mut replica = redis(stage.client("redis-server").args(follow), copy_port);
    let mut synced = |what: &str| {
        wait_for(what, HANG, || {
            assert!(replica.ended().is_none(), "{}", replica.out());
            let cli = stage.client("redis-cli").args(at_copy);
            let state = cli.args(["info", "replication"]).run().text();
            state.contains("master_link_status:up").then_some(())
        });
    };
    synced("the first copy");
    for round in 0..50 {
        let (key, value) = (format!("late{round}"), "v".repeat(round * 1000));
        assert_eq!(ask(at_server, &["set", &key, &value]), "OK");
    }
    assert_eq!(ask(at_server, &["wait", "1", "60000"]), "1");
    let digest = |to| ask(to, &["debug", "digest"]);
    assert_eq!(digest(at_server), digest(at_copy));
    assert_eq!(ask(at_copy, &["dbsize"]), "20050");
    server.crash();
    wait_for("the replica's notice", HANG, || {
        let state = ask(at_copy, &["info", "replication"]);
        state.contains("master_link_status:down").then_some(())
    });
    drop(replica);
    stage.end();
}

/// A PostgreSQL server that only TCP reaches.
fn postgres(stage: &Stage) -> (Proc, u16) {
    let data = stage.server_host().path("data");
    stage.nobody_owns(&data);
    // Its own files only: nothing for a network.
    let init = stage.server_as_nobody("initdb").arg("-D").arg(&data);
    init.args([
        "-U",
        "tester",
        "-A",
        "trust",
        "-E",
        "UTF8",
        "--locale=C",
        "-N",
    ])
    .folder("/")
    .ok();
    let rules = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    let mut file = std::fs::File::options()
        .append(true)
        .open(data.join("pg_hba.conf"))
        .unwrap();
    std::io::Write::write_all(&mut file, rules.as_bytes()).unwrap();
    let port = stage.port();
    let mut server = stage.server_as_nobody("postgres").arg("-D").arg(&data);
    for setting in [
        &format!("port={port}"),
        "listen_addresses=*",
        "unix_socket_directories=",
        "fsync=off",
        "log_connections=on",
        "log_hostname=on",
    ] {
        server = server.args(["-c", setting]);
    }
    let mut server = server.folder("/").spawn();
    stage.wait_server(port, &mut server);
    // It listens before it has read its data.
    stp_tests::wait_for("PostgreSQL", stp_tests::HANG, || {
        let said = server.err();
        said.contains("ready to accept connections").then_some(())
    });
    (server, port)
}

const POSTGRES: [&str; 4] = ["initdb", "postgres", "psql", "pgbench"];

/// A client program of PostgreSQL.
fn sql(stage: &Stage, program: &str, port: u16) -> Cmd {
    let port = port.to_string();
    stage
        .client(program)
        .args(["-h", stage.server_name(), "-p", &port, "-U", "tester"])
        .env("PGDATABASE", "postgres")
        .env("PGCONNECT_TIMEOUT", "100")
}

/// What one query says.
fn query(stage: &Stage, port: u16, text: &str) -> String {
    let psql =
        sql(stage, "psql", port).args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
    psql.ok().text().trim().to_owned()
}

/// The bank of `pgbench` with a branch of five: eight clients move money; afterwards all four books agree to the unit.
fn postgres_keeps_its_books_under_pgbench(transport: Transport) {
    let Some(stage) = Stage::open("pgbench", transport, &POSTGRES) else {
        return;
    };
    let (server, port) = postgres(&stage);
    sql(&stage, "pgbench", port)
        .args(["-i", "-q", "-s", "5"])
        .ok();
    assert_eq!(
        query(&stage, port, "select count(*) from pgbench_accounts"),
        "500000"
    );
    let processed = |words: &str| {
        let ran = sql(&stage, "pgbench", port).args(words.split(' ')).ok();
        let text = ran.text();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
        assert!(text.contains("number of failed transactions: 0"), "{ran}");
        line.unwrap_or_else(|| panic!("{ran}")).to_owned()
    };
    assert_eq!(processed("-n -c 8 -j 2 -t 250"), "2000/2000");
    // A new connection (and a new process there) for each transaction.
    assert_eq!(processed("-n -C -c 4 -j 2 -t 25 -S"), "100/100");
    assert_eq!(
        processed("-n -c 8 -j 2 -t 1000 -S -M prepared"),
        "8000/8000"
    );
    let books = "select (select sum(abalance) from pgbench_accounts),
        (select sum(tbalance) from pgbench_tellers), (select sum(bbalance) from pgbench_branches),
        (select sum(delta) from pgbench_history), (select count(*) from pgbench_history)";
    let books = query(&stage, port, books);
    let books: Vec<&str> = books.split('|').collect();
    assert_eq!(books.len(), 5, "{books:?}");
    assert!(books[..4].iter().all(|book| *book == books[0]), "{books:?}");
    assert_eq!(books[4], "2000");
    drop(server);
    stage.end();
}

/// 500,000 rows go in and come out again; a query in progress is cancelled through a second connection; a notification
/// reaches a client that listens; the server names its client.
fn postgres_copies_tables_and_cancels_queries(transport: Transport) {
    let Some(stage) = Stage::open("psql", transport, &POSTGRES) else {
        return;
    };
    let (server, port) = postgres(&stage);
    let mut rows = String::new();
    for index in 0..500_000_u64 {
        writeln!(
            rows,
            "{index}\t{:x}",
            index.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        )
        .unwrap();
    }
    let file = stage.client_host().path("rows");
    std::fs::write(&file, &rows).unwrap();
    query(
        &stage,
        port,
        "create table t (id bigint primary key, word text)",
    );
    let copy = |text: &str| sql(&stage, "psql", port).args(["-X", "-q", "-c", text]);
    copy("copy t from stdin").stdin_file(&file).ok();
    let out = copy("copy (select * from t order by id) to stdout").ok();
    assert!(out.out == rows.as_bytes(), "the rows differ");

    // An interrupted psql asks the server by a connection of its own to stop the query.
    let sleeping = sql(&stage, "psql", port)
        .args(["-X", "-c", "select pg_sleep(100000)"])
        .spawn();
    let active = "select count(*) from pg_stat_activity where query like 'select pg_sleep%' and state = 'active'";
    wait_for("a sleeping query", HANG, || {
        (query(&stage, port, active) == "1").then_some(())
    });
    sleeping.signal(rustix::process::Signal::INT);
    let cancelled = sleeping.finish();
    assert!(
        cancelled
            .err
            .contains("canceling statement due to user request"),
        "{cancelled}"
    );

    let script = stage.client_host().path("listen.sql");
    let text = "listen news;\n\\! echo ready\nselect pg_sleep(0.05) from generate_series(1, 2);\n\
        notify news, 'hello';\nselect 1;\n";
    std::fs::write(&script, text).unwrap();
    let listened = sql(&stage, "psql", port)
        .args(["-X", "-f"])
        .arg(&script)
        .ok();
    assert!(listened.text().contains("payload \"hello\""), "{listened}");

    // The server knows who is there, by address and by name.
    let seen = query(
        &stage,
        port,
        "select host(inet_client_addr()), host(inet_server_addr()), inet_server_port()",
    );
    let seen: Vec<&str> = seen.split('|').collect();
    assert_eq!(seen[2], port.to_string());
    match transport {
        Transport::Plain => assert_eq!(seen[..2], ["127.0.0.1", "127.0.0.1"]),
        Transport::Stp => {
            let host = |name: &str| {
                let ran = stage.client("python3").args(["-c", RESOLVE, name]).ok();
                ran.text().trim().to_owned()
            };
            assert_eq!(seen[0], host(stage.client_name()));
            assert_eq!(seen[1], host(stage.server_name()));
            assert!(
                server
                    .err()
                    .contains(&format!("host={}", stage.client_name())),
                "{}",
                server.err()
            );
        }
    }
    drop(server);
    stage.end();
}

const RESOLVE: &str = "import socket, sys; print(socket.gethostbyname(sys.argv[1]))";

/// The protocol test of libmemcached's makers; values of many sizes by its tools; 50 connections at once.
fn memcached_passes_its_protocol_test_and_keeps_its_data(transport: Transport) {
    let programs = [
        "memcached",
        "memccapable",
        "memccp",
        "memccat",
        "memcstat",
        "memcslap",
    ];
    let Some(stage) = Stage::open("memcached", transport, &programs) else {
        return;
    };
    let port = stage.port();
    let mut server = stage
        .server("memcached")
        .args(["-p", &port.to_string(), "-U", "0"]);
    server = server.args(["-u", "nobody", "-t", "4", "-m", "256", "-I", "8m"]);
    let mut server = server.spawn();
    stage.wait_server(port, &mut server);
    let capable = stage.client("memccapable");
    let capable = capable.args(["-h", stage.server_name(), "-p", &port.to_string()]);
    let capable = capable.run();
    let failed: Vec<String> = capable
        .text()
        .lines()
        .filter(|line| line.contains("[FAIL]"))
        .map(str::to_owned)
        .collect();
    assert!(capable.text().matches("[pass]").count() > 40, "{capable}");
    // Written for an older server: those that it cannot pass on TCP either.
    let known = ["ascii version", "binary version"];
    assert!(
        failed
            .iter()
            .all(|line| known.iter().any(|name| line.contains(name))),
        "{failed:?}"
    );

    let servers = format!("--servers={}:{port}", stage.server_name());
    let mut files = BTreeMap::new();
    for (index, len) in [0, 1, 1_000, 100_000, 1_000_000, 7_000_000]
        .into_iter()
        .enumerate()
    {
        let path = stage.client_host().path(&format!("value{index}"));
        make_file(&path, index as u64, len);
        stage.client("memccp").arg(&servers).arg(&path).ok();
        files.insert(format!("value{index}"), path);
    }
    for (key, path) in &files {
        let got = stage.client_host().path("got");
        let cat = stage
            .client("memccat")
            .arg(&servers)
            .arg("--file")
            .arg(&got)
            .arg(key);
        cat.ok();
        assert!(
            std::fs::read(&got).unwrap() == std::fs::read(path).unwrap(),
            "{key} differs"
        );
    }
    let slap = ["--concurrency=50", "--execute-number=100", "--test=set"];
    stage.client("memcslap").arg(&servers).args(slap).ok();
    let stat = stage.client("memcstat").arg(&servers).ok().text();
    let stat = |name: &str| {
        let line = stat
            .lines()
            .find_map(|line| line.trim().strip_prefix(name)?.strip_prefix(": "));
        number::<u64>(line.unwrap_or_else(|| panic!("no {name}: {stat}")))
    };
    assert!(stat("cmd_set") >= 5006, "{}", stat("cmd_set"));
    assert!(stat("total_connections") > 50);
    drop(server);
    stage.end();
}
