//! Where words go: data to standard output, everything said to people to standard error.
//!
//! - Nothing here panics when the other side of a pipe is gone.

use std::fmt;
use std::io::{self, Write};

use serde::Serialize;

use crate::CliError;

/// Writes a piece of data to standard output, as it is.
pub fn data(text: impl fmt::Display) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    write!(stdout, "{text}")
        .and_then(|()| stdout.flush())
        .map_err(CliError::from_stdout)
}

/// Writes a value as indented JSON and a line break to standard output.
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::new(format_args!("cannot write JSON: {error}")))?;
    data(format_args!("{text}\n"))
}

/// Says a line on standard error, marked as ours: `stp: text`.
pub fn say(text: impl fmt::Display) {
    let line = format!("stp: {}\n", crate::error::one_line(&text.to_string()));
    // If standard error is gone there is nobody left to tell.
    let _ = io::stderr().write_all(line.as_bytes());
}
