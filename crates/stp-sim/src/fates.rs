//! Fates: what befalls nodes and their hosts, and its end.

use std::time::Duration;

use stp_host::engine::Command;

use crate::options::{MemoryFaults, StorageFaults};
use crate::world::{Fault, MS, Phase, SECOND, State, Task, World};

/// A device that is lost for good is gone for longer than any run.
const FOR_GOOD: u64 = 100_000 * SECOND;

impl World {
    pub(crate) fn plan_fault(&mut self, fault: Fault) {
        let hosts = &self.options.hosts;
        let mean = match fault {
            Fault::Kill => hosts.kill,
            Fault::Leave => hosts.leave,
            Fault::Freeze => hosts.freeze,
            Fault::OutageOne => hosts.outage_one,
            Fault::OutageAll => hosts.outage_all,
            Fault::Slow => hosts.slow,
            Fault::Rot => hosts.rot,
            Fault::Unlisten => hosts.unlisten,
            Fault::RollBack => hosts.rollback,
            Fault::Flap => hosts.flap,
            Fault::Lose => hosts.lose,
            Fault::Shrink => hosts.shrink,
        };
        if mean > 0 {
            let after = self.rng.within(mean * MS / 4, mean * MS * 2);
            self.at(after, Task::Fault(fault));
        }
    }

    pub(crate) fn strike(&mut self, fault: Fault) {
        let node = self.rng.below(self.nodes.len() as u64) as usize;
        let dead_ms = self.options.timings.dead.as_millis() as u64;
        let duration = self.rng.spread(5, dead_ms * 2) * MS;
        self.say(|| format!("{fault:?} {node} {duration}"));
        let fails = self.rng.percent(50);
        let until = self.now + duration;
        match fault {
            Fault::Kill => {
                if matches!(self.nodes[node].state, State::Off) {
                    return;
                }
                self.disk.lock().figures.fault("kill");
                let again = self.restart_after();
                self.end_life(node, again);
            }
            Fault::Leave => {
                if self.nodes[node].leaving || !matches!(self.nodes[node].state, State::Up(_)) {
                    return;
                }
                self.disk.lock().figures.fault("leave");
                self.leave(node);
            }
            Fault::Freeze => {
                if matches!(self.nodes[node].state, State::Off) {
                    return;
                }
                let mut disk = self.disk.lock();
                disk.figures.fault("freeze");
                if fails {
                    disk.hold_up_stores(self.nodes[node].life, until);
                }
                drop(disk);
                self.nodes[node].frozen_until = until;
                self.at(duration, Task::Thaw(node));
            }
            Fault::OutageOne => {
                let life = self.nodes[node].life;
                let mut disk = self.disk.lock();
                disk.figures.fault("outage for one");
                if let Some(handle) = disk.handles.get_mut(life) {
                    (handle.lost_until, handle.lost_fails) = (until, fails);
                }
            }
            Fault::OutageAll => {
                let mut disk = self.disk.lock();
                disk.figures.fault("outage for all");
                for node in &self.nodes {
                    if let Some(handle) = disk.handles.get_mut(node.life) {
                        (handle.lost_until, handle.lost_fails) = (until, fails);
                    }
                }
            }
            Fault::Slow => {
                let life = self.nodes[node].life;
                let mut disk = self.disk.lock();
                disk.figures.fault("slow device");
                if let Some(handle) = disk.handles.get_mut(life) {
                    handle.slow_until = until.min(self.now + 5 * SECOND);
                }
            }
            Fault::Rot => {
                let anywhere = self.options.rot_anywhere;
                self.disk.lock().rot(anywhere);
                if anywhere {
                    self.disturb_all();
                }
            }
            Fault::RollBack => {
                self.disk.lock().roll_back();
                self.disturb_all();
            }
            Fault::Flap => {
                self.disk.lock().figures.fault("flapping path");
                let life = self.nodes[node].life;
                let until = until.min(self.now + 10 * SECOND);
                self.flap(life, until);
            }
            Fault::Lose => {
                let life = self.nodes[node].life;
                let mut disk = self.disk.lock();
                if let Some(handle) = disk.handles.get_mut(life) {
                    (handle.lost_until, handle.lost_fails) = (self.now + FOR_GOOD, fails);
                    handle.lost_for_good = true;
                    disk.figures.fault("device lost for good");
                }
            }
            Fault::Shrink => {
                self.disk.lock().shrink();
                self.at(duration, Task::Grow);
                self.disturb_all();
            }
            Fault::Unlisten => {
                if self.nodes[node].leaving || !matches!(self.nodes[node].state, State::Up(_)) {
                    return;
                }
                self.disk.lock().figures.fault("listener gone");
                self.unlisten(node);
                let after = self.rng.spread(MS, SECOND);
                self.nodes[node].relisten = true;
                self.at(after, Task::Relisten(node));
            }
        }
    }

    /// The path to the device goes and comes.
    pub(crate) fn flap(&mut self, life: usize, until: u64) {
        if self.now >= until || self.phase != Phase::Breaking {
            return;
        }
        let away = self.rng.within(5 * MS, 300 * MS);
        let fails = self.rng.percent(50);
        let now = self.now;
        if let Some(handle) = self.disk.lock().handles.get_mut(life)
            && !handle.lost_for_good
        {
            handle.lost_until = handle.lost_until.max(now + away);
            handle.lost_fails = fails;
        }
        let after = away + self.rng.within(5 * MS, 300 * MS);
        self.at(after, Task::Flap(life, until));
    }

    /// What nodes know from the volume may be wrong from now on.
    pub(crate) fn disturb_all(&mut self) {
        for node in &mut self.nodes {
            node.disturbed_at = self.now;
        }
    }

    pub(crate) fn leave(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.lives[life].ended.get_or_insert(self.now);
        self.nodes[node].leaving = true;
        self.nodes[node].relisten = false;
        self.nodes[node].disturbed_at = self.now;
        self.nodes[node].published = false;
        self.close_backlog(node);
        let linger = Duration::from_millis(self.rng.spread(1, 2000));
        self.command(node, Command::Leave { linger });
    }

    /// The faults end.
    pub(crate) fn heal(&mut self) {
        self.say(|| "the faults end".into());
        let now = self.now;
        let mut disk = self.disk.lock();
        let keep = disk.faults;
        disk.faults = StorageFaults {
            stale_ms: keep.stale_ms,
            late_ms: keep.late_ms,
            ..StorageFaults::default()
        };
        disk.memory = disk.memory.map(|_| MemoryFaults::default());
        disk.grow();
        for handle in &mut disk.handles {
            handle.lost_until = handle.lost_until.min(now);
            handle.slow_until = handle.slow_until.min(now);
        }
        drop(disk);
        for node in 0..self.nodes.len() {
            // Whoever lost the device for good comes back with another.
            let life = self.nodes[node].life;
            let lost = |handle: &crate::disk::Handle| handle.lost_for_good;
            let lost = self.disk.lock().handles.get(life).is_some_and(lost);
            if lost {
                self.end_life(node, SECOND);
            }
            self.nodes[node].frozen_until = 0;
            self.poke(node, 0);
            if self.nodes[node].relisten {
                self.listen(node);
            }
            if self.nodes[node].spare {
                self.end_life(node, SECOND);
            }
            self.start_soon(node);
        }
        self.host.lock().healed = true;
        let ends = self.host.lock().ends.len();
        for end in (0..ends).filter(|end| self.host.lock().ends[*end].hostile) {
            self.host.lock().close(end);
        }
        self.enter(Phase::Healing);
    }

    fn start_soon(&mut self, node: usize) {
        let gone = self.options.mutation == Some(crate::mutation::Mutation::GoneForGood);
        if matches!(self.nodes[node].state, State::Off) && !gone {
            self.at(MS, Task::Start(node));
        }
    }

    pub(crate) fn enter(&mut self, phase: Phase) {
        let segments = self.disk.lock().figures.segments;
        self.say(|| format!("{phase:?}, {segments} segments so far"));
        self.phase = phase;
        self.phase_at = self.now;
        if phase == Phase::Healing {
            let ends: Vec<usize> = self.programs.keys().copied().collect();
            for end in ends {
                self.wake_program(end, 0);
            }
        }
    }
}
