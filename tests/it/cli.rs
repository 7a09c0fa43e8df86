//! The command line: usage, wrong names, exit codes, closed outputs, signals, rights.

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::support::rng::Rng;
use crate::support::tools::{copy_program, need, need_root, shell};
use crate::support::{BK, Bk, World, exit, sorted};

#[test]
fn wrong_usage_is_exit_2() {
    let world = World::new("usage");
    fs::write(world.src.join("f"), "x").unwrap();
    world.snapshot("job", "").ok();
    for words in [
        "",
        "no-such-verb",
        "snapshot",
        "snapshot --job job",
        "snapshot --job UPPER /etc/hostname",
        "snapshot --job latest /etc/hostname",
        "snapshot --job a/b /etc/hostname",
        "snapshot --job .. /etc/hostname",
        "snapshot --job job --compression lz4 /etc/hostname",
        "snapshot --job job --compression zstd:99 /etc/hostname",
        "snapshot --job job --compression bzip2:0 /etc/hostname",
        "snapshot --job job --frame-size 3MiB /etc/hostname",
        "snapshot --job job --frame-size 4KiB /etc/hostname",
        "snapshot --job job --frame-size 128MiB /etc/hostname",
        "snapshot --job job --part-size 64KiB /etc/hostname",
        "snapshot --job job --part-size 2GiB /etc/hostname",
        "snapshot --job job --part-size many /etc/hostname",
        "snapshot --job job --threads 0 /etc/hostname",
        "snapshot --job job --exclude [ /etc/hostname",
        "snapshot --job job --stdin dump -- echo both",
        "snapshot --job job --level 10 /etc/hostname",
        "snapshot --job job --level auto /etc/hostname",
        "snapshot --job job --levels 0 /etc/hostname",
        "snapshot --job job --expire 5m /etc/hostname",
        "expire JOB",
        "expire --set job/1",
        "expire --set job/1 tomorrow",
        "expire --set job/1 never --dry-run",
        "hold job",
        "hold job/2",
        "release",
        "why job/2",
        "snapshot --job job --stdin UP/../x",
        "restore job/1",
        "restore job/1 --target /dev/null/x --overwrite sometimes",
        "cat job/1",
        "cat job/1 f --range -1:5",
        "cat job/1 f --range 1:2:3",
        "ls",
        "ls job",
        "ls job/",
        "ls job/0x1",
        "ls job/latest~",
        "ls job/latest~-1",
        "ls JOB/1",
        "diff job/1",
        "verify --quick --data",
    ] {
        let ran = world.bk(words).run();
        assert_eq!(ran.code(), exit::USAGE, "bk {words}\n{}", ran.show());
        assert!(!ran.stderr.is_empty() && ran.stdout.is_empty(), "bk {words}\n{}", ran.show());
    }
    assert_eq!(world.list(), ["job/1"]);
}

#[test]
fn help_and_version_are_no_errors() {
    for words in ["help", "--help", "--version", "snapshot --help", "help restore", "help volume"] {
        assert!(!Bk::new(words).run().ok().stdout.is_empty(), "{words}");
    }
}

#[test]
fn names_that_are_not_there() {
    let world = World::new("names");
    fs::write(world.src.join("f"), "x").unwrap();
    world.snapshot("job", "").ok();
    for name in ["job/2", "job/999999999999", "other/1", "job/latest~1", "other/latest"] {
        for words in ["ls", "verify", "export", "diff job/1"] {
            world.bk(words).arg(name).run().code_is(&[exit::USAGE]).says(name.split_once('/').unwrap().0);
        }
        let target = world.path("never");
        world.bk("restore").arg(name).arg("--target").arg(&target).run().code_is(&[exit::USAGE]);
        assert!(sorted(&target).is_empty());
    }
    world.bk("ls job/1").run().ok();
    world.bk("ls job/latest~0").run().ok();
}

#[test]
fn a_source_that_is_not_there() {
    let world = World::new("root");
    fs::write(world.src.join("f"), "x").unwrap();
    // A vanished source root is exit 3; with nothing left there is nothing to store.
    let ran = world.bk("snapshot --job job").arg(&world.src).arg("/no/such/root").run();
    ran.code_is(&[exit::INCOMPLETE]).says("/no/such/root");
    let ran = world.bk("snapshot --job none /no/such/root").run();
    ran.code_is(&[exit::ERROR, exit::INCOMPLETE]).says("/no/such/root");
}

#[test]
fn a_volume_that_is_not_there_is_exit_4() {
    let world = World::new("volume");
    let empty = world.path("empty");
    fs::create_dir(&empty).unwrap();
    for dir in [&world.path("none"), &empty, &world.src.join("f")] {
        for words in ["list", "verify", "ls job/1", "snapshot --job job /etc/hostname"] {
            let mut command = words.split(' ');
            let bk = Bk::new(command.next().unwrap()).arg("--volume").arg(dir);
            let ran = command.fold(bk, Bk::arg).run();
            assert_eq!(ran.code(), exit::VOLUME, "{words} {dir:?}\n{}", ran.show());
        }
        // bk never makes a volume except by `volume create`.
        assert!(sorted(dir).is_empty());
    }
    Bk::new("list").run().code_is(&[exit::USAGE, exit::VOLUME]);
    let again = Bk::new("volume create").arg(&world.volume).run();
    assert_ne!(again.code(), 0, "a volume was made over a volume");
    world.bk("volume info").arg(&world.volume).run().ok();
    fs::write(world.src.join("f"), "x").unwrap();
    Bk::new("volume create").arg(&world.src).run().code_is(&[exit::ERROR, exit::USAGE, exit::VOLUME]);
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let me = "a_reader_that_leaves_is_no_failure";
    if !need(me, &["bash", "head"]) {
        return;
    }
    let world = World::new("pipe");
    for n in 0..3000 {
        fs::write(world.src.join(format!("a-rather-long-name-for-a-file-{n}")), "x").unwrap();
    }
    fs::write(world.src.join("zz-big"), Rng::new(140).noise(3_000_000)).unwrap();
    world.snapshot("job", "").ok();
    for words in ["ls -R job/1", "ls -R --json job/1", "cat job/1 zz-big", "export job/1"] {
        let line = format!("BK_VOLUME=\"$1\" \"$2\" {words} | head -c 50 | wc -c; exit ${{PIPESTATUS[0]}}");
        let output = shell(&line, &[&world.volume, BK.as_ref()]);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "50", "{words}");
        // Quiet success, or the signal's own end.
        assert!([Some(0), Some(141)].contains(&output.status.code()), "{words}: {:?}", output.status);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(said, "", "{words}");
    }
    let full = shell("BK_VOLUME=\"$1\" \"$2\" export job/1 > /dev/full", &[&world.volume, BK.as_ref()]);
    assert!(full.status.code().is_some_and(|c| c != 0 && c < 128), "{:?}", full.status);
}

#[test]
fn json_lines_end_in_a_result_or_an_error() {
    let world = World::new("json");
    fs::write(world.src.join("f"), "x").unwrap();
    let last = |ran: &crate::support::Ran| ran.json().pop().unwrap();
    assert_eq!(last(&world.snapshot("job", "--json").ok())["type"], "result");
    for words in ["list --json", "ls job/1 --json", "diff job/1 job/1 --json"] {
        assert_eq!(last(&world.bk(words).run().ok())["type"], "result", "{words}");
    }
    for (words, code) in [("ls job/7 --json", exit::USAGE), ("snapshot --job job --json /no/such/root", exit::ERROR)] {
        let ran = world.bk(words).run().code_is(&[code, exit::INCOMPLETE]);
        assert!(["error", "result"].contains(&last(&ran)["type"].as_str().unwrap()), "{words}");
    }
    assert!(world.snapshot("job", "--quiet").ok().stdout.is_empty());
}

#[test]
fn what_may_not_be_read_is_named() {
    let me = "what_may_not_be_read_is_named";
    if !need(me, &["setpriv"]) || !need_root(me) {
        return;
    }
    let world = World::new("rights");
    // The program and the volume must be within reach of the other user.
    let program = world.path("bk");
    copy_program(BK, &program);
    for (name, mode) in [("open", 0o644), ("secret-file", 0o600)] {
        fs::write(world.src.join(name), name).unwrap();
        fs::set_permissions(world.src.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::create_dir(world.src.join("secret-dir")).unwrap();
    fs::write(world.src.join("secret-dir/inside"), "x").unwrap();
    fs::set_permissions(world.src.join("secret-dir"), fs::Permissions::from_mode(0o700)).unwrap();
    for dir in [world.src.parent().unwrap(), &world.src] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let volume = world.path("theirs");
    fs::create_dir(&volume).unwrap();
    std::os::unix::fs::chown(&volume, Some(65_534), Some(65_534)).unwrap();
    let user = |words: &str| {
        let line = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"].map(OsStr::new);
        let mut command = std::process::Command::new(line[0]);
        command.args(&line[1..]).arg(&program).args(words.split(' ')).env("BK_VOLUME", &volume);
        command
    };
    assert!(user("volume create").arg(&volume).output().unwrap().status.success());
    let output = user("snapshot --job mine -C").arg(&world.src).arg(".").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(exit::INCOMPLETE), "{said}");
    assert!(said.contains("secret-file") && said.contains("secret-dir"), "{said}");
    let cat = user("cat mine/1 open").output().unwrap();
    assert_eq!(cat.stdout, b"open");
    // What was not read is not there as an empty file.
    let cat = user("cat mine/1 secret-file").output().unwrap();
    assert_ne!(cat.status.code(), Some(0));
    // Not root: the restore goes as far as it can, the owner is its own.
    let target = volume.join("out");
    let output = user("restore mine/1 --target").arg(&target).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!([Some(0), Some(exit::INCOMPLETE)].contains(&output.status.code()), "{said}");
    assert_eq!(fs::read(target.join("open")).unwrap(), b"open");
    // Nor can that user write into another's volume.
    let mut other = user("snapshot --job mine -C");
    let output = other.arg(&world.src).arg(".").env("BK_VOLUME", &world.volume).output().unwrap();
    assert_eq!(output.status.code(), Some(exit::VOLUME));
}

/// bk reads a stream that does not end; the signal comes when bk has taken more than a pipe holds.
fn stopped_by(signal: Signal, code: i32) {
    let world = World::new("signal");
    let mut running = world.bk("snapshot --job sig --stdin dump --frame-size 256KiB").spawn();
    let mut pipe = running.child.stdin.take().unwrap();
    pipe.write_all(&Rng::new(141).noise(3 << 20)).unwrap();
    running.signal(signal);
    let ran = running.finish();
    assert_eq!(ran.code(), code, "{}", ran.show());
    drop(pipe);
    assert!(world.list().is_empty());
    world.bk("verify").run().ok();
    world.bk("snapshot --job sig --stdin dump").stdin("next").run().ok();
    assert_eq!(world.list().len(), 1);
}

#[test]
fn interrupt_stops_a_snapshot() {
    stopped_by(Signal::INT, 130);
}

#[test]
fn terminate_stops_a_snapshot() {
    stopped_by(Signal::TERM, 143);
}

#[test]
fn hangup_stops_a_snapshot() {
    stopped_by(Signal::HUP, 129);
}

#[test]
fn a_signal_ends_the_command_too() {
    let world = World::new("signal-command");
    let pid_file = world.path("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; echo some data; sleep 1000", pid_file.display());
    let running = world.bk("snapshot --job sig -- sh -c").arg(&script).spawn();
    while !pid_file.exists() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    running.signal(Signal::TERM);
    let ran = running.finish();
    assert_eq!(ran.code(), 143, "{}", ran.show());
    assert!(world.list().is_empty());
    let pid: i32 = fs::read_to_string(&pid_file).unwrap().trim().parse().unwrap();
    let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Gone, or dead and waiting for whoever adopted it.
    let dead = state.is_empty() || state.rsplit_once(") ").is_some_and(|(_, s)| s.starts_with(['Z', 'X']));
    assert!(dead, "the command lives on: {state}");
}

#[test]
fn the_environment_names_the_volume_and_a_flag_wins() {
    let world = World::new("env");
    let other = world.path("other");
    Bk::new("volume create").arg(&other).run().ok();
    fs::write(world.src.join("f"), "x").unwrap();
    world.bk("snapshot --job flag --volume").arg(&other).arg(world.src.join("f")).run().ok();
    assert!(world.list().is_empty());
    assert_eq!(crate::support::list(&other), ["flag/1"]);
}
