//! What `stp ls` prints.
//!
//! - Names go to a terminal escaped; JSON keeps every byte (`name_bytes` in hexadecimal when a name is not UTF-8).

use serde::Serialize;

use super::paths;
use super::wire::{Kind, Meta, Mtime};

#[derive(Serialize)]
struct Row {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name_bytes: Option<String>,
    kind: &'static str,
    size: u64,
    mode: String,
    mtime: String,
    mtime_seconds: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
}

/// The listing as a value to write as JSON.
pub fn json(entries: &[(Vec<u8>, Meta)]) -> impl Serialize {
    let rows: Vec<Row> = entries
        .iter()
        .map(|(name, meta)| Row {
            name: String::from_utf8_lossy(name).into_owned(),
            name_bytes: std::str::from_utf8(name)
                .is_err()
                .then(|| name.iter().map(|b| format!("{b:02x}")).collect()),
            kind: match meta.kind {
                Kind::File => "file",
                Kind::Folder => "folder",
                Kind::Link => "link",
                Kind::Special => "special",
            },
            size: meta.size,
            mode: format!("{:04o}", meta.mode),
            mtime: iso(meta.mtime),
            mtime_seconds: meta.mtime.seconds,
            target: (meta.kind == Kind::Link)
                .then(|| String::from_utf8_lossy(&meta.target).into_owned()),
        })
        .collect();
    rows
}

/// The listing as lines. `long`: with mode, size and time (UTC).
pub fn text(entries: &[(Vec<u8>, Meta)], long: bool) -> String {
    let width = entries
        .iter()
        .map(|(_, m)| m.size.to_string().len())
        .max()
        .unwrap_or(1);
    let mut out = String::new();
    for (name, meta) in entries {
        if long {
            out.push_str(&format!(
                "{} {:>width$} {} ",
                mode(meta),
                meta.size,
                iso(meta.mtime)
            ));
        }
        out.push_str(&paths::show(name));
        match meta.kind {
            Kind::Link if long => out.push_str(&format!(" -> {}", paths::show(&meta.target))),
            Kind::Folder => out.push('/'),
            _ => {}
        }
        out.push('\n');
    }
    out
}

fn mode(meta: &Meta) -> String {
    let mut out = String::with_capacity(10);
    out.push(match meta.kind {
        Kind::File => '-',
        Kind::Folder => 'd',
        Kind::Link => 'l',
        Kind::Special => '?',
    });
    for shift in [6, 3, 0] {
        for (bit, c) in [(4, 'r'), (2, 'w'), (1, 'x')] {
            out.push(if meta.mode >> shift & bit != 0 {
                c
            } else {
                '-'
            });
        }
    }
    out
}

/// A time as `2026-01-31 23:59:58` in UTC.
fn iso(time: Mtime) -> String {
    let days = time.seconds.div_euclid(86_400);
    let second = time.seconds.rem_euclid(86_400);
    // Years of 365.2425 days that begin in March, counted from 0000-03-01.
    let shifted = i128::from(days) + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + i128::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01 00:00:00"),
            (-1, "1969-12-31 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_700_000_000, "2023-11-14 22:13:20"),
            (4_102_444_799, "2099-12-31 23:59:59"),
        ] {
            assert_eq!(iso(Mtime { seconds, nanos: 0 }), expected);
        }
        iso(Mtime {
            seconds: i64::MAX,
            nanos: 0,
        });
        iso(Mtime {
            seconds: i64::MIN,
            nanos: 0,
        });
    }

    #[test]
    fn lines() {
        let meta = Meta {
            kind: Kind::Link,
            mode: 0o751,
            mtime: Mtime::default(),
            size: 0,
            target: b"to\n".to_vec(),
        };
        assert_eq!(
            text(&[(b"n\xff".to_vec(), meta)], true),
            "lrwxr-x--x 0 1970-01-01 00:00:00 n\\xff -> to\\n\n"
        );
    }
}
