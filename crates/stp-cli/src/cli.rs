//! The command line: the list of commands and of what each takes. Help, completions and the man page are
//! made from this list.

use clap::{Parser, Subcommand};

use crate::Global;

/// Sockets through storage: streams, files and services between hosts that share a volume and no network.
#[derive(Parser, Debug)]
#[command(
    name = "stp",
    version,
    disable_version_flag = true,
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Print the version
    // `-V` is the volume.
    #[arg(long, action = clap::ArgAction::Version)]
    version: Option<bool>,
}

const EXAMPLES: &str = "\
Examples:
  stp demo                                   see it work on this machine
  stp format /dev/sdb --group lab            make a volume, once
  export STP_VOLUME=/dev/sdb                 on every system that sees it
  stp engine &                               let the programs of this host share one engine
  tar c dir | stp cat beta:7000              with `stp cat -l 7000 | tar x` on beta
  stp cp -r project beta:backup/             with `stp serve DIR` on beta

Exit codes: 0 done, 1 failed, 2 wrong usage.";

/// What `stp` can do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Make a volume of a device or a file
    Format(crate::format::Args),
    /// Show what a volume is and who is on it
    Info(crate::info::Args),
    /// Verify every record of a volume
    Check(crate::check::Args),
    /// Measure the latency, staleness and atomic unit of a storage
    Probe(crate::probe::Args),
    /// Run the engine that the programs of this host share
    Engine(crate::engine::Args),
    /// Connect standard input and output to a stream
    Cat(crate::cat::Args),
    /// Serve a folder to `stp cp` and `stp ls`
    Serve(crate::files::ServeArgs),
    /// Copy files and folders between systems
    Cp(crate::files::CpArgs),
    /// List what a system serves
    Ls(crate::files::LsArgs),
    /// Run a TCP program, unmodified, over the volume
    Run(crate::run::Args),
    /// Carry TCP connections over the volume
    Forward(crate::forward::Args),
    /// Show sockets and what polling costs
    Ss(crate::ss::Args),
    /// Measure how fast a volume is, beside its bare storage and TCP
    Bench(crate::bench::Args),
    /// Show it working: two systems, one temporary volume, a real copy
    Demo(crate::demo::Args),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_list_of_options_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in [
            ["stp", "-V", "vol", "--json", "ss"],
            ["stp", "ss", "-V", "vol", "--json"],
        ] {
            let cli = crate::parse(line.map(Into::into)).unwrap();
            assert_eq!(cli.global.volume().unwrap(), "vol");
            assert!(cli.global.json);
        }
    }
}
