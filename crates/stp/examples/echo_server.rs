//! Sends back whatever comes.
//!
//!     STP_VOLUME=/path/of/volume STP_SYSTEM=beta cargo run -p stp --example echo_server -- 7000

use std::error::Error;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_server: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let port = match std::env::args().nth(1) {
        Some(port) => port.parse().map_err(|e| format!("port {port:?}: {e}"))?,
        None => 0,
    };
    let group = stp::Group::from_env()?;
    let listener = group.listen(port)?;
    println!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let stream = stream?;
        std::thread::spawn(move || {
            let peer = stream
                .peer_addr()
                .map(|a| a.to_string())
                .unwrap_or_default();
            match std::io::copy(&mut &stream, &mut &stream) {
                Ok(bytes) => println!("{peer}: {bytes} bytes"),
                Err(error) => println!("{peer}: {error}"),
            }
        });
    }
    Ok(())
}
