//! What runs on this machine, as `/proc` tells it: members of a process group, and what a killed run left running.

use std::collections::BTreeMap;

use rustix::process::{Pid, Signal, kill_process_group};

/// A process that is not a zombie.
struct Process {
    pid: i32,
    group: i32,
    session: i32,
}

fn all() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(one).collect()
}

fn one(pid: i32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, the parenthesis included.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let is_gone = matches!(fields.next()?, "Z" | "X");
    let mut number = |n| fields.nth(n).and_then(|field| field.parse::<i32>().ok());
    let (group, session) = (number(1)?, number(0)?);
    (!is_gone).then_some(Process { pid, group, session })
}

/// Whether anything but zombies is left of a process group.
pub fn group_lives(group: Pid) -> bool {
    all().iter().any(|process| process.group == group.as_raw_nonzero().get())
}

/// Whether a process has been killed, or ends: nothing of it runs any more, though what waits in the kernel for a device keeps its files
/// open. False for one that is not there.
pub fn is_ending(pid: i32) -> bool {
    // PF_EXITING of linux/sched.h. The first thread of a program of ours ends with all of them.
    const EXITING: u64 = 0x4;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_ascii_whitespace().nth(6)?.parse().ok());
    flags.is_some_and(|flags: u64| flags & EXITING != 0) || tasks(pid).any(|status| is_killed(&status))
}

/// The `status` of each thread of a process.
fn tasks(pid: i32) -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("status")).ok())
}

/// Whether SIGKILL waits for a thread: when one of them exits for all, or the process is killed, each gets it, and none can put it off.
fn is_killed(status: &str) -> bool {
    let pending = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigPnd:")?.trim(), 16).ok());
    pending.is_some_and(|pending| pending >> (Signal::KILL.as_raw() - 1) & 1 == 1)
}

/// Sends a signal to a whole group; one that is gone is no error.
pub fn signal_group(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
}

/// Groups of `session` with a member whose environment holds all of `values`.
pub fn groups_with(session: i32, values: &BTreeMap<String, String>) -> Vec<Pid> {
    let wanted: Vec<Vec<u8>> = values.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect();
    let own = own().map_or(0, |process| process.group);
    let is_ours = |process: &Process| {
        let environ = std::fs::read(format!("/proc/{}/environ", process.pid)).unwrap_or_default();
        let found = environ.split(|byte| *byte == 0).filter(|entry| wanted.iter().any(|want| want == entry));
        found.count() >= wanted.len()
    };
    let mut groups: Vec<i32> = all()
        .into_iter()
        .filter(|process| process.session == session && process.group != own && is_ours(process))
        .map(|process| process.group)
        .collect();
    groups.sort_unstable();
    groups.dedup();
    groups.into_iter().filter_map(Pid::from_raw).collect()
}

/// This process's session; 0 when its leader is outside of this container, as after `docker exec`.
pub fn session() -> i32 {
    own().map_or(0, |process| process.session)
}

/// This process. Its group and session are read here, too: `rustix` takes ids for positive and panics on 0 from outside of a container.
fn own() -> Option<Process> {
    one(std::process::id().cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_is_told_from_what_waits() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        let stop = |signal| rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
        assert!(!is_ending(pid) && !is_ending(own().unwrap().pid));
        stop(Signal::STOP);
        assert!(!is_ending(pid), "it only stands still");
        child.kill().unwrap();
        // Not waited for yet, it is a zombie at the latest.
        while !is_ending(pid) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(!is_ending(pid));
        let status = |mask| format!("Name:\tbk\nThreads:\t3\nSigPnd:\t{mask}\nShdPnd:\t0000000000000100\n");
        assert!(is_killed(&status("0000000000000100")) && is_killed(&status("0000000000004180")));
        assert!(!is_killed(&status("0000000000000200")) && !is_killed("") && !is_killed("SigPnd:\tx"));
    }
}
