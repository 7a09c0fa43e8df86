//! Power cuts: ext4 on a loop device is shut down under a running snapshot (`EXT4_IOC_SHUTDOWN`, nothing flushed) and
//! mounted again. What bk said is done is there; the rest is as before; the next run needs nobody.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need, need_root, shell, shell_ok, skip};
use crate::support::{Bk, Running, World, list};

const CUTS: u64 = 50;

fn start(world: &World, volume: &Path, job: &str) -> Running {
    let options = "--frame-size 16KiB --part-size 128KiB --quiet";
    Bk::new("snapshot --job").arg(job).words(options).small().arg("--volume").arg(volume).arg("-C").arg(&world.src).arg(".").spawn()
}

fn cut(at: &Path) -> bool {
    let line = r#"python3 -c 'import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack("I", 2))' "$1""#;
    shell(line, &[at]).status.success()
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
        let running = start(&world, &volume, "p");
        let micros = usual.as_micros() as u64 * 13 / 10;
        std::thread::sleep(Duration::from_micros(rng.below(micros)));
        if !cut(&mounted.at) {
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
