//! What is shipped for systemd and cron: units that are what systemd takes, closed as far as is said, and programs with their options.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::tools::need;
use crate::support::{Bk, World, name_of, sorted};

/// What `systemd-analyze security` may find of the unit for jobs without steps.
const EXPOSURE_MAX: f64 = 2.0;

fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("contrib/systemd")
}

/// The overall figure of a unit.
fn exposure(unit: &str) -> f64 {
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager"])
        .arg(dir().join(unit))
        .env("LC_ALL", "C.UTF-8")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().find(|line| line.contains("Overall exposure level"));
    let line = line.unwrap_or_else(|| panic!("no figure in {text}{}", String::from_utf8_lossy(&output.stderr)));
    line.rsplit(": ").next().unwrap().split(' ').next().unwrap().parse().unwrap()
}

/// What goes before the configuration would put a job's journal where `bk recover` of another unit does not look.
#[test]
fn no_unit_overrides_the_configuration() {
    for unit in sorted(&dir()) {
        let text = fs::read_to_string(&unit).unwrap();
        assert!(!text.contains("BK_"), "{} sets a variable of bk's", unit.display());
    }
}

#[test]
fn the_unit_without_steps_is_closed() {
    if !need("the_unit_without_steps_is_closed", &["systemd-analyze"]) {
        return;
    }
    let found = exposure("bk@.service");
    assert!(found <= EXPOSURE_MAX, "bk@.service is exposed at {found}");
}

#[test]
fn the_unit_with_steps_says_how_open_it_is() {
    if !need("the_unit_with_steps_says_how_open_it_is", &["systemd-analyze"]) {
        return;
    }
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/run.md")).unwrap();
    let row = docs.lines().find(|line| line.contains("`bk-steps@.service`") && line.starts_with('|')).unwrap();
    let said: f64 = row.split('|').map(str::trim).find_map(|cell| cell.parse().ok()).unwrap();
    // Versions of systemd do not count all the same.
    let found = exposure("bk-steps@.service");
    assert!((found - said).abs() <= 0.5, "docs/run.md says {said}, it is {found}");
}

#[test]
fn units_are_what_systemd_takes() {
    if !need("units_are_what_systemd_takes", &["systemd-analyze"]) {
        return;
    }
    let world = World::new("units");
    let place = world.path("units");
    fs::create_dir(&place).unwrap();
    for unit in sorted(&dir()) {
        let name = name_of(&unit);
        if name.ends_with(".service") || name.ends_with(".timer") {
            let text = fs::read_to_string(&unit).unwrap().replace("/usr/local/bin/bk", crate::support::BK);
            fs::write(place.join(name.replace('@', "@shop")), text).unwrap();
        }
    }
    let units = sorted(&place);
    assert_eq!(units.len(), 5);
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&units).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let own: Vec<&str> =
        said.lines().filter(|line| line.contains("/units/") || line.contains("bk-") || line.contains("bk@")).collect();
    assert!(own.is_empty(), "{said}");
}

/// Every command line in units and crontab is one that bk takes.
#[test]
fn their_commands_are_bks() {
    let (mut count, units) = (0, sorted(&dir()));
    for unit in units {
        let text = fs::read_to_string(&unit).unwrap();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words =
                line.split_once("=/usr/local/bin/bk ").or_else(|| line.split_once("  bk ")).map(|(_, words)| words);
            let Some(words) = words else { continue };
            let ran = Bk::new(&words.replace("%i", "shop")).arg("--help").run().ok();
            assert!(ran.text().contains("Usage: bk"), "{line}");
            count += 1;
        }
    }
    assert_eq!(count, 7);
}

/// Numbers of `systemd-analyze syscall-filter` sets, by name.
fn calls_of(set: &str, found: &mut BTreeSet<String>) {
    let output = Command::new("systemd-analyze").args(["syscall-filter", "--no-pager", set]).output().unwrap();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        match line.trim() {
            line if line.starts_with('#') || line.is_empty() || line == set => {}
            other if other.starts_with('@') => calls_of(other, found),
            call => _ = found.insert(call.to_owned()),
        }
    }
}

/// What bk calls is let through by the unit's filter.
#[test]
fn the_filter_lets_bk_work() {
    if !need("the_filter_lets_bk_work", &["systemd-analyze", "strace"]) {
        return;
    }
    let world = World::new("filter");
    fs::create_dir(world.src.join("sub")).unwrap();
    for n in 0..50 {
        fs::write(world.src.join(format!("sub/{n}")), vec![n; 100_000]).unwrap();
    }
    let trace = world.path("trace");
    let strace: [&OsStr; 5] = ["strace".as_ref(), "-f".as_ref(), "-qq".as_ref(), "-o".as_ref(), trace.as_os_str()];
    for words in ["--level 0", "--level 1"] {
        let bk = world.bk_under(&strace, "snapshot --job shop -C").arg(&world.src).arg(".").words(words);
        if bk.run().code() != 0 {
            crate::support::tools::skip("the_filter_lets_bk_work", "cannot trace");
            return;
        }
    }
    let (mut allowed, mut refused) = (BTreeSet::new(), BTreeSet::new());
    calls_of("@system-service", &mut allowed);
    for set in ["@privileged", "@resources"] {
        calls_of(set, &mut refused);
    }
    let text = fs::read_to_string(&trace).unwrap();
    let called =
        text.lines().filter_map(|line| line.split_once(' ')?.1.trim_start().split_once('(')).map(|(call, _)| call);
    let called: BTreeSet<&str> =
        called.filter(|call| call.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')).collect();
    assert!(called.len() > 20 && allowed.len() > 100, "{called:?}");
    let closed: Vec<&&str> =
        called.iter().filter(|call| !allowed.contains(**call) || refused.contains(**call)).collect();
    assert!(closed.is_empty(), "the filter of bk@.service refuses {closed:?}");
}
