//! Unmodified programs over TCP loopback, Unix sockets and `stp run`, in one run:
//! `cargo build --release -p stp-cli -p stp-preload`, then `cargo bench -p stp-tests --bench programs -- [PROGRAM]...`
//!
//! - Four ways, which take turns in each round: TCP on one host, a Unix socket there if the program can, `stp run` with
//!   both ends on one system, and `stp run` across two systems on a volume (a file in the temporary folder).
//! - The median of the rounds is printed, and its ratio to TCP's. Only ratios of one run mean anything.
//! - A measurement takes about [`SECONDS`]; a program takes under a minute in all. What is not installed is skipped by name.

use std::fmt::Write as _;
use std::path::PathBuf;

use stp_tests::{Cmd, Proc, Ran, Stage, Transport};

const ROUNDS: usize = 5;
const SECONDS: u32 = 1;

/// What carries the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Tcp,
    Unix,
    OneSystem,
    TwoSystems,
}

const WAYS: [Way; 4] = [Way::Tcp, Way::Unix, Way::OneSystem, Way::TwoSystems];

/// A server that runs.
struct Server {
    _process: Proc,
    port: u16,
    /// Where its Unix socket is, or the folder of it.
    unix: Option<PathBuf>,
}

/// A client's place.
struct Client<'a> {
    way: Way,
    stage: &'a Stage,
    server: &'a Server,
}

/// One figure of a program; more is better.
struct Measure {
    name: &'static str,
    unit: &'static str,
    run: fn(&Client) -> f64,
}

struct Program {
    name: &'static str,
    needs: &'static [&'static str],
    serve: fn(&Stage) -> Server,
    measures: &'static [Measure],
}

const PROGRAMS: [Program; 4] = [
    Program {
        name: "redis",
        needs: &["redis-server", "redis-benchmark"],
        serve: serve_redis,
        measures: &[
            Measure {
                name: "redis GET, 50 connections",
                unit: "requests/s",
                run: |client| redis(client, 1),
            },
            Measure {
                name: "the same, 16 requests in flight each",
                unit: "requests/s",
                run: |client| redis(client, 16),
            },
        ],
    },
    Program {
        name: "nginx",
        needs: &["nginx", "wrk"],
        serve: serve_nginx,
        measures: &[Measure {
            name: "nginx 612 B, wrk with 50 connections",
            unit: "requests/s",
            run: wrk,
        }],
    },
    Program {
        name: "iperf3",
        needs: &["iperf3"],
        serve: serve_iperf3,
        measures: &[
            Measure {
                name: "iperf3, 1 stream",
                unit: "MB/s",
                run: |client| iperf3(client, "1"),
            },
            Measure {
                name: "iperf3, 4 streams",
                unit: "MB/s",
                run: |client| iperf3(client, "4"),
            },
        ],
    },
    Program {
        name: "postgres",
        needs: &["initdb", "postgres", "pgbench"],
        serve: serve_postgres,
        measures: &[
            Measure {
                name: "pgbench -S prepared, 1 client",
                unit: "transactions/s",
                run: |client| pgbench(client, "1"),
            },
            Measure {
                name: "pgbench -S prepared, 8 clients",
                unit: "transactions/s",
                run: |client| pgbench(client, "8"),
            },
        ],
    },
];

fn main() {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|arg| !arg.starts_with("--"))
        .collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| PROGRAMS.iter().all(|program| program.name != **name))
    {
        let names: Vec<_> = PROGRAMS.iter().map(|program| program.name).collect();
        eprintln!(
            "no program {unknown:?} here; there are {}",
            names.join(", ")
        );
        std::process::exit(2);
    }
    println!("load before: {}", load());
    println!("| | TCP | Unix socket | | one system | | two systems | |");
    println!("|---|---|---|---|---|---|---|---|");
    for program in &PROGRAMS {
        if wanted.is_empty() || wanted.iter().any(|name| name == program.name) {
            bench(program);
        }
    }
    println!("load after: {}", load());
}

fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn bench(program: &Program) {
    let open = |transport| {
        let stage = Stage::open(program.name, transport, program.needs)?;
        let server = (program.serve)(&stage);
        Some((stage, server))
    };
    let (Some(plain), Some(stp)) = (open(Transport::Plain), open(Transport::Stp)) else {
        return;
    };
    for measure in program.measures {
        let mut figures = WAYS.map(|_| Vec::new());
        for _ in 0..ROUNDS {
            for (way, figures) in WAYS.into_iter().zip(&mut figures) {
                let (stage, server) = match way {
                    Way::Tcp | Way::Unix => &plain,
                    Way::OneSystem | Way::TwoSystems => &stp,
                };
                if way != Way::Unix || server.unix.is_some() {
                    figures.push((measure.run)(&Client { way, stage, server }));
                }
            }
        }
        println!("{}", row(measure, figures));
    }
}

/// A row of the table: TCP's median and how far its rounds lie apart, then each way's median and its ratio.
fn row(measure: &Measure, figures: [Vec<f64>; 4]) -> String {
    let [tcp, others @ ..] = figures.map(median_and_spread);
    let (tcp, spread) = tcp.expect("TCP was measured");
    let mut row = format!(
        "| {}, {} | {} (± {:.0} %) |",
        measure.name,
        measure.unit,
        thousands(tcp),
        spread * 50.0
    );
    for other in others {
        let _ = match other {
            Some((median, _)) => write!(row, " {} | {:.2} |", thousands(median), median / tcp),
            None => write!(row, " - | |"),
        };
    }
    row
}

/// The median, and how far the rounds lie apart, as a part of it.
fn median_and_spread(mut values: Vec<f64>) -> Option<(f64, f64)> {
    values.sort_by(f64::total_cmp);
    let median = *values.get(values.len() / 2)?;
    Some((median, (values[values.len() - 1] - values[0]) / median))
}

fn thousands(value: f64) -> String {
    if value >= 10_000.0 {
        format!("{:.1} k", value / 1000.0)
    } else {
        format!("{value:.0}")
    }
}

impl Client<'_> {
    fn command(&self, program: &str) -> Cmd {
        match self.way {
            Way::OneSystem => self.stage.server(program),
            Way::Tcp | Way::Unix | Way::TwoSystems => self.stage.client(program),
        }
    }

    /// The server's name, or its Unix socket.
    fn host(&self) -> PathBuf {
        match (self.way, &self.server.unix) {
            (Way::Unix, Some(path)) => path.clone(),
            _ => self.stage.server_name().into(),
        }
    }

    fn port(&self) -> String {
        self.server.port.to_string()
    }
}

/// The number that follows `mark` in what a program said.
fn figure(ran: &Ran, mark: &str) -> f64 {
    let text = ran.text();
    let rest = text.split(mark).nth(1).map(str::trim_start);
    let number = rest.and_then(|rest| rest.split([' ', '\n', '"']).next());
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no figure after {mark:?}: {ran}"))
}

fn serve_redis(stage: &Stage) -> Server {
    let (port, unix) = (stage.port(), stage.server_host().path("redis.sock"));
    let mut process = stage
        .server("redis-server")
        .args(["--port", &port.to_string()])
        .args(["--save", "", "--appendonly", "no", "--protected-mode", "no"])
        .arg("--unixsocket")
        .arg(&unix)
        .spawn();
    stage.wait_server(port, &mut process);
    Server {
        _process: process,
        port,
        unix: Some(unix),
    }
}

/// Requests a second; a short run first says how many make [`SECONDS`].
fn redis(client: &Client, in_flight: u32) -> f64 {
    let run = |requests: f64| {
        let command = client.command("redis-benchmark");
        let command = match client.way {
            Way::Unix => command.arg("-s").arg(client.host()),
            _ => command.args(["-p", &client.port(), "-h", client.stage.server_name()]),
        };
        let ran = command
            .args(["--csv", "-t", "get", "-c", "50"])
            .args(["-P", &in_flight.to_string()])
            .args(["-n", &format!("{requests:.0}")])
            .ok();
        figure(&ran, "\"GET\",\"")
    };
    let rate = run(f64::from(2000 * in_flight));
    run(rate * f64::from(SECONDS))
}

fn serve_nginx(stage: &Stage) -> Server {
    let (host, port) = (stage.server_host(), stage.port());
    let top = host.folder().display();
    std::fs::create_dir_all(host.path("site")).expect("folder");
    std::fs::write(host.path("site/page"), [b'x'; 612]).expect("page");
    let user = if rustix::process::geteuid().is_root() {
        "user root;"
    } else {
        ""
    };
    let mut temporary = String::new();
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        let _ = writeln!(temporary, "{kind}_temp_path {top}/{kind};");
    }
    let config = format!(
        "{user} daemon off; worker_processes 2; pid {top}/nginx.pid; error_log stderr notice;
        events {{ worker_connections 512; }}
        http {{
          access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000;
          {temporary}
          server {{ listen {port}; root {top}/site; }}
        }}\n"
    );
    std::fs::write(host.path("nginx.conf"), config).expect("nginx.conf");
    let server = stage.server("nginx").arg("-p").arg(host.folder());
    let server = server.arg("-c").arg(host.path("nginx.conf"));
    let mut process = server.args(["-e", "stderr"]).spawn();
    stage.wait_server(port, &mut process);
    Server {
        _process: process,
        port,
        unix: None,
    }
}

fn wrk(client: &Client) -> f64 {
    let (host, port) = (client.stage.server_name(), client.server.port);
    let ran = client
        .command("wrk")
        .args(["-t", "1", "-c", "50", "-d", &format!("{SECONDS}s")])
        .arg(format!("http://{host}:{port}/page"))
        .ok();
    let text = ran.text();
    assert!(
        !text.contains("Socket errors") && !text.contains("Non-2xx"),
        "{ran}"
    );
    figure(&ran, "Requests/sec:")
}

fn serve_iperf3(stage: &Stage) -> Server {
    let port = stage.port();
    let server = stage.server("iperf3");
    let mut process = server.args(["-s", "-p", &port.to_string()]).spawn();
    stage.wait_server(port, &mut process);
    Server {
        _process: process,
        port,
        unix: None,
    }
}

fn iperf3(client: &Client, streams: &str) -> f64 {
    let command = client.command("iperf3").arg("-c").arg(client.host());
    let ran = command
        .args([
            "-p",
            &client.port(),
            "-P",
            streams,
            "-t",
            &SECONDS.to_string(),
            "--json",
        ])
        .ok();
    let report: serde_json::Value = serde_json::from_slice(&ran.out).expect("JSON");
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    bits.unwrap_or_else(|| panic!("no rate: {ran}")) / 8e6
}

fn serve_postgres(stage: &Stage) -> Server {
    let (data, port) = (stage.server_host().path("postgres"), stage.port());
    stage.nobody_owns(&data);
    let init = stage.server_as_nobody("initdb").arg("-D").arg(&data);
    let init = init.args(["-U", "tester", "-A", "trust", "-N"]);
    init.folder("/").ok();
    let rules = "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n";
    let file = data.join("pg_hba.conf");
    std::fs::write(&file, rules.to_owned() + "local all all trust\n").expect("pg_hba.conf");
    let server = stage.server_as_nobody("postgres").arg("-D").arg(&data);
    let server = server.args(["-p", &port.to_string(), "-F", "-h", "*"]);
    let mut process = server.arg("-k").arg(&data).folder("/").spawn();
    stage.wait_server(port, &mut process);
    // It listens before it has read its data.
    stp_tests::wait_for("PostgreSQL", stp_tests::HANG, || {
        let said = process.err();
        said.contains("ready to accept connections").then_some(())
    });
    let server = Server {
        _process: process,
        port,
        unix: Some(data),
    };
    let client = Client {
        way: Way::OneSystem,
        stage,
        server: &server,
    };
    sql(&client).args(["-i", "-q", "-s", "5"]).ok();
    server
}

fn sql(client: &Client) -> Cmd {
    let command = client.command("pgbench").arg("-h").arg(client.host());
    command
        .args(["-p", &client.port(), "-U", "tester"])
        .env("PGDATABASE", "postgres")
        .env("PGCONNECT_TIMEOUT", "100")
}

fn pgbench(client: &Client, clients: &str) -> f64 {
    let ran = sql(client)
        .args(["-n", "-S", "-M", "prepared", "-c", clients, "-j", "2"])
        .args(["-T", &SECONDS.to_string()])
        .ok();
    figure(&ran, "tps =")
}
