//! This process's identity, and whether another of this machine still runs.

use std::fs;

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process},
};

use crate::format::lease::Process;

/// This process; `None` where the system does not tell.
pub fn own() -> Option<Process> {
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_owned();
    let pid_namespace = fs::read_link("/proc/self/ns/pid").ok()?.to_string_lossy().into_owned();
    let pid = std::process::id();
    let (started, _) = stat(pid)?;
    Some(Process { boot_id, pid_namespace, pid, started })
}

/// Whether `other` certainly runs no more: known only of processes that `own` could see.
pub fn is_gone(own: &Process, other: &Process) -> bool {
    if (&own.boot_id, &own.pid_namespace) != (&other.boot_id, &other.pid_namespace) {
        return false;
    }
    match stat(other.pid) {
        Some((started, state)) => started != other.started || matches!(state, 'Z' | 'X'),
        // Others' processes may be hidden in /proc, but not from a signal.
        None => i32::try_from(other.pid)
            .ok()
            .and_then(Pid::from_raw)
            .is_some_and(|pid| test_kill_process(pid) == Err(Errno::SRCH)),
    }
}

/// When a process was started, in ticks since the boot, and its state.
fn stat(pid: u32) -> Option<(u64, char)> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let text = String::from_utf8_lossy(&text);
    // The name before it is in parentheses and may hold anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    Some((fields.get(19)?.parse().ok()?, fields.first()?.chars().next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_and_who_does_not() {
        let own = own().unwrap();
        assert!(!is_gone(&own, &own));
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let (started, _) = stat(child.id()).unwrap();
        let other = Process { pid: child.id(), started, ..own.clone() };
        assert!(!is_gone(&own, &other));
        assert!(is_gone(&own, &Process { started: started + 1, ..other.clone() }), "another of its number");
        child.kill().unwrap();
        while stat(child.id()).is_some_and(|(_, state)| state != 'Z') {
            std::thread::yield_now();
        }
        assert!(is_gone(&own, &other), "dead, and not waited for");
        child.wait().unwrap();
        assert!(is_gone(&own, &other));
        for elsewhere in [
            Process { boot_id: "x".to_owned(), ..other.clone() },
            Process { pid_namespace: "x".to_owned(), ..other.clone() },
        ] {
            assert!(!is_gone(&own, &elsewhere), "not of this machine: not known");
        }
    }
}
