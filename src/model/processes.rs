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
