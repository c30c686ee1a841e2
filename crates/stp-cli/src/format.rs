//! `stp format`: makes a volume.

use serde::Serialize;
use stp_host::volume::{FormatOptions, format};

use crate::info::{bytes, spec_of};
use crate::{CliError, Global, out};

const EXAMPLES: &str = "\
Examples:
  stp format /mnt/shared/lab.stp --group lab               a file of 256 MiB, all of it allocated
  stp format /mnt/shared/lab.stp --group lab --size 2GiB --seats 64
  stp format /dev/disk/by-id/wwn-0x5000 --group lab        a whole device

A new file is readable and writable for its owner only (mode 0600); who else is to attach needs the permission.
What holds a file system, a partition table, another group or other data is refused unless --force is given; a
volume on which a node is at work is refused in any case.";

/// Options of `stp format`.
#[derive(clap::Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The device or file
    #[arg(value_name = "VOL")]
    pub volume: Option<String>,
    /// The name of the group
    #[arg(long, value_name = "NAME")]
    pub group: String,
    /// How big a file is made, like 256MiB or 2GiB [default: 256MiB; a device is used whole]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub size: Option<u64>,
    /// How many nodes can be attached at the same time
    #[arg(long, value_name = "N", default_value_t = 16)]
    pub seats: u16,
    /// Overwrite what is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Serialize)]
struct Made {
    volume: String,
    group: String,
    id: String,
    size_bytes: u64,
    seats: u16,
    storage: String,
    overwritten: Vec<String>,
}

/// Runs the command.
pub fn run(global: &Global, args: Args) -> Result<(), CliError> {
    let spec = spec_of(global, args.volume.as_deref())?;
    let options = FormatOptions {
        group: crate::global::name("group name", "--group", &args.group)?,
        size_bytes: args.size,
        seats: args.seats,
        force: args.force,
    };
    let made = format(&spec, &options).map_err(CliError::new)?;
    let superblock = &made.superblock;
    let made = Made {
        volume: spec.to_string(),
        group: superblock.group.to_string(),
        id: superblock.volume.to_string(),
        size_bytes: superblock.geometry.size_bytes,
        seats: superblock.geometry.seats,
        storage: made.storage,
        overwritten: made.overwritten.iter().map(ToString::to_string).collect(),
    };
    if global.json {
        return out::json(&made);
    }
    for what in &made.overwritten {
        out::say(format_args!("overwritten: {what}"));
    }
    out::say(format_args!(
        "{}: group {}, {}, {} seats, {}",
        made.volume,
        made.group,
        bytes(made.size_bytes),
        made.seats,
        made.storage
    ));
    Ok(())
}

/// `4096`, `64K`, `256MiB`, `2 GiB`, `1GB`: powers of 1024, but of 1000 with a plain `B` behind the letter.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("{text:?} is no size: write it like 256MiB or 2GiB");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let unit = unit.trim().to_ascii_lowercase();
    let (letter, base) = match unit.strip_suffix("ib") {
        Some(letter) => (letter, 1024_u64),
        None => match unit.strip_suffix('b') {
            Some(letter) => (letter, 1000),
            None => (unit.as_str(), 1024),
        },
    };
    let power = match letter {
        "" if unit != "ib" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    number.checked_mul(base.pow(power)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, size) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("64K", 64 << 10),
            ("256MiB", 256 << 20),
            ("2 gib", 2 << 30),
            ("1GB", 1_000_000_000),
            ("1T", 1 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "MiB", "-1", "1.5G", "1ib", "1x", "99999999T"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
