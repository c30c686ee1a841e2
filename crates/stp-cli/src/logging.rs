//! What the engine tells about itself, on standard error.
//!
//! - Warnings by default; `-v` adds what happens, `-vv` and `-vvv` how. `STP_LOG` overrides both
//!   (`STP_LOG=stp_host=debug`).

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Names the filter that overrides `-v`.
pub const LOG_VARIABLE: &str = "STP_LOG";

/// Starts logging for this process; a second call changes nothing.
pub fn start(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = std::env::var(LOG_VARIABLE)
        .ok()
        .filter(|text| !text.is_empty())
        .and_then(|text| match EnvFilter::try_new(&text) {
            Ok(filter) => Some(filter),
            Err(error) => {
                crate::out::say(format_args!(
                    "{LOG_VARIABLE}={text}: {error}; using {level}"
                ));
                None
            }
        })
        .unwrap_or_else(|| EnvFilter::new(level));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbose > 1);
    let _ = if verbose == 0 {
        subscriber.without_time().try_init()
    } else {
        subscriber.try_init()
    };
}
