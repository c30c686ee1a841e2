//! Sends its standard input to an echo server and prints what comes back.
//!
//!     date | STP_VOLUME=/path/of/volume STP_SYSTEM=alpha cargo run -p stp --example echo_client -- beta:7000

use std::error::Error;
use std::io;
use std::net::Shutdown;
use std::process::ExitCode;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("echo_client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let addr = std::env::args()
        .nth(1)
        .ok_or("usage: echo_client SYSTEM:PORT")?;
    let group = stp::Group::from_env()?;
    let mut stream = group.connect(addr.as_str())?;
    let mut sending = stream.try_clone()?;
    let sender = std::thread::spawn(move || {
        io::copy(&mut io::stdin(), &mut sending)?;
        sending.shutdown(Shutdown::Write)
    });
    io::copy(&mut stream, &mut io::stdout())?;
    sender.join().map_err(|_| "the sender failed")??;
    Ok(())
}
