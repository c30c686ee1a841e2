//! Waking up: how long after a byte was written the thread that slept for it runs.
//!
//! - Both sides have slept for a while before: between two messages over a storage the processors are idle, and on a virtual
//!   machine one that is idle takes longer to come back.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// About as long as a storage takes for a transfer.
const REST: Duration = Duration::from_micros(300);

/// Wake-ups until the time is over, in us.
pub(super) fn wake_ups(time: Duration) -> io::Result<Vec<f64>> {
    let (mut near, mut far) = UnixStream::pair()?;
    let (tell, told) = mpsc::channel();
    let sleeper = thread::spawn(move || {
        let mut byte = [0];
        while matches!(far.read(&mut byte), Ok(1)) {
            if tell.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let mut times = Vec::new();
    let begin = Instant::now();
    while begin.elapsed() < time || times.is_empty() {
        thread::sleep(REST);
        let start = Instant::now();
        near.write_all(&[1])?;
        let woken = told.recv().map_err(io::Error::other)?;
        times.push(woken.saturating_duration_since(start).as_secs_f64() * 1e6);
    }
    drop(near);
    sleeper
        .join()
        .map_err(|_| io::Error::other("a thread of the bench failed"))?;
    Ok(times)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sleeper_wakes_up_after_it_was_woken() {
        let times = wake_ups(Duration::ZERO).unwrap();
        assert!(times.len() == 1 && times[0] >= 0.0, "{times:?}");
    }
}
