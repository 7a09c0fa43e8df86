//! Power cuts: ext4 on a loop device is shut down under a running snapshot (`EXT4_IOC_SHUTDOWN`, nothing flushed) and
//! mounted again. What bk said is done is there; the rest is as before; the next run needs nobody.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need, need_root, shell_ok, skip};
use crate::support::{Bk, Running, World, list};

const CUTS: u64 = 50;

fn start(world: &World, volume: &Path, job: &str) -> Running {
    let options = "--frame-size 16KiB --part-size 128KiB --quiet";
    Bk::new("snapshot --job")
        .arg(job)
        .words(options)
        .small()
        .arg("--volume")
        .arg(volume)
        .arg("-C")
        .arg(&world.src)
        .arg(".")
        .spawn()
}

/// A process that has the file system open and cuts its power at a word: it must not be slow to start by then.
struct Cutter(Child);

impl Cutter {
    fn new(at: &Path) -> Self {
        let script = "import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
print('ready', flush=True)
sys.stdin.readline()
fcntl.ioctl(fd, 0x8004587d, struct.pack('I', 2))";
        let mut command = Command::new("python3");
        command.arg("-c").arg(script).arg(at).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }

    fn cut(mut self) -> bool {
        self.0.stdin.take().unwrap().write_all(b"\n").unwrap();
        self.0.wait().unwrap().success()
    }
}

#[test]
fn cut_fifty_times() {
    let me = "cut_fifty_times";
    if !need(me, &["python3", "losetup", "mkfs.ext4", "mount", "umount"]) || !need_root(me) {
        return;
    }
    let world = World::new("power");
    let mut rng = Rng::new(110);
    for n in 0..60 {
        let dir = world.src.join(format!("d{}", n % 6));
        fs::create_dir_all(&dir).unwrap();
        let len = rng.below(60_000) as usize;
        fs::write(dir.join(format!("f{n}")), rng.content(len)).unwrap();
    }
    let Some(mounted) = Mounted::ext4(&world.path("image"), 128 << 20, &world.path("disk")) else {
        skip(me, "cannot mount ext4 on a loop device");
        return;
    };
    let volume = mounted.at.join("volume");
    let fresh = || {
        let _ = fs::remove_dir_all(&volume);
        Bk::new("volume create").arg(&volume).run().ok();
        let begun = Instant::now();
        start(&world, &volume, "p").finish().ok();
        begun.elapsed()
    };
    let mut usual = fresh();
    let (mut cut_short, mut done) = (0, 0);
    for n in 0..CUTS {
        if n % 8 == 7 {
            usual = fresh();
        }
        let before = list(&volume);
        let cutter = Cutter::new(&mounted.at);
        let running = start(&world, &volume, "p");
        let micros = usual.as_micros() as u64 * 12 / 10;
        std::thread::sleep(Duration::from_micros(rng.below(micros)));
        if !cutter.cut() {
            assert_eq!(n, 0, "the power cut itself failed");
            running.finish();
            skip(me, "no EXT4_IOC_SHUTDOWN here");
            return;
        }
        let ran = running.finish();
        let about = format!("cut {n}, exit code {}", ran.code());
        assert!(ran.code() < 128, "{about}\n{}", ran.show());
        assert!(mounted.unmount() && mounted.mount_again(), "{about}: mounting again");
        let after = list(&volume);
        let new = after.len() - before.len();
        assert!(after.starts_with(&before) && new <= 1, "{about}: {before:?}, then {after:?}");
        assert!(ran.code() != 0 || new == 1, "{about}: it was said to be done\n{}", ran.show());
        cut_short += usize::from(new == 0);
        done += new;
        Bk::new("verify --volume").arg(&volume).run().ok();
        start(&world, &volume, "p").finish().ok();
        assert_eq!(list(&volume).len(), after.len() + 1, "{about}: the next run");
    }
    eprintln!("{me}: {cut_short} cut short, {done} done");
    assert!(cut_short > 5, "the cuts came too late to say anything: {cut_short} of {CUTS}");
    shell_ok("sync", &[]);
}

#[test]
fn the_cut_finds_a_run_that_does_not_sync() {
    let me = "the_cut_finds_a_run_that_does_not_sync";
    if !need(me, &["strace", "python3", "losetup", "mkfs.ext4", "mount", "umount"]) || !need_root(me) {
        return;
    }
    let world = World::new("unsynced");
    fs::write(world.src.join("f"), Rng::new(111).noise(300_000)).unwrap();
    let Some(mounted) = Mounted::ext4(&world.path("image"), 64 << 20, &world.path("disk")) else {
        skip(me, "cannot mount ext4 on a loop device");
        return;
    };
    let volume = mounted.at.join("volume");
    Bk::new("volume create").arg(&volume).run().ok();
    start(&world, &volume, "p").finish().ok();
    // strace answers for the kernel: every sync is said to be done, and none is.
    let lie = "inject=fsync,fdatasync,syncfs,sync,sync_file_range:retval=0";
    let strace = [
        "strace",
        "-f",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        "trace=fsync,fdatasync,syncfs,sync,sync_file_range",
        "-e",
        lie,
    ];
    let bk = Bk::under(&strace.map(OsStr::new), "snapshot --job p --volume").arg(&volume);
    let ran = bk.arg("-C").arg(&world.src).arg(".").run().ok();
    assert_eq!(list(&volume).len(), 2, "{}", ran.show());
    if !Cutter::new(&mounted.at).cut() {
        skip(me, "no EXT4_IOC_SHUTDOWN here");
        return;
    }
    assert!(mounted.unmount() && mounted.mount_again());
    let whole = list(&volume).len() == 2 && Bk::new("verify --volume").arg(&volume).run().code() == 0;
    assert!(!whole, "nothing was synced, and nothing is lost: the cut cuts nothing");
    Bk::new("cat p/1 f --volume").arg(&volume).run().ok();
}
