//! Peak memory stays within the promise (160 MiB on 2 threads) and does not grow with the number of files.
//!
//! Said by the kernel through Python's `resource` (a child's highest resident size); the promise is for a release
//! build, and holds for this one.

use std::fs;
use std::path::Path;

use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{BK, World};

/// Peak resident size of a bk run in KiB.
fn peak(world: &World, words: &[&str]) -> u64 {
    let script = "import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)";
    let script_path = world.path("peak.py");
    fs::write(&script_path, script).unwrap();
    let mut args: Vec<&Path> = vec![&script_path, &world.volume, BK.as_ref()];
    args.extend(words.iter().map(Path::new));
    let output = shell_ok(r#"export BK_VOLUME="$2"; script="$1"; shift 2; python3 "$script" "$@""#, &args);
    String::from_utf8_lossy(&output.stdout).trim().parse().unwrap()
}

const LIMIT_KIB: u64 = 160 << 10;

/// Peaks of snapshot, restore, verify and ls over `count` files in `dirs` directories.
fn peaks(count: usize, dirs: usize, large: usize) -> Vec<(&'static str, u64)> {
    let world = World::new("memory");
    for n in 0..count {
        let dir = world.src.join(format!("d{}", n % dirs));
        if n < dirs {
            fs::create_dir(&dir).unwrap();
        }
        fs::write(dir.join(format!("a-file-with-a-usual-name-{n}")), n.to_le_bytes()).unwrap();
    }
    // Hard links have a table of their own.
    for n in (0..count / 10).step_by(2) {
        let from = world.src.join(format!("d{}/a-file-with-a-usual-name-{n}", n % dirs));
        fs::hard_link(from, world.src.join(format!("link-{n}"))).unwrap();
    }
    fs::write(world.src.join("large"), Rng::new(170).prose(large)).unwrap();
    let (src, out) = (world.src.to_str().unwrap().to_owned(), world.path("out").to_str().unwrap().to_owned());
    vec![
        ("snapshot", peak(&world, &["snapshot", "--threads", "2", "--quiet", "--job", "m", "-C", &src, "."])),
        ("restore", peak(&world, &["restore", "--threads", "2", "--quiet", "m/1", "--target", &out])),
        ("verify", peak(&world, &["verify", "--threads", "2", "--data", "m/1"])),
        ("ls", peak(&world, &["ls", "-R", "m/1"])),
        ("diff", peak(&world, &["diff", "m/1", "m/1"])),
        ("export", peak(&world, &["export", "m/1"])),
        (
            "level 0",
            peak(&world, &["snapshot", "--threads", "2", "--quiet", "--job", "n", "--level", "0", "-C", &src, "."]),
        ),
        (
            "level 1",
            peak(&world, &["snapshot", "--threads", "2", "--quiet", "--job", "n", "--level", "1", "-C", &src, "."]),
        ),
    ]
}

#[test]
fn peaks_stay_within_the_promise() {
    if !need("peaks_stay_within_the_promise", &["python3"]) {
        return;
    }
    let few = peaks(6_000, 60, 200 << 20);
    let many = peaks(60_000, 600, 200 << 20);
    eprintln!("KiB at 6,000 files: {few:?}; at 60,000: {many:?}");
    for ((name, few), (_, many)) in few.iter().zip(&many) {
        assert!(*few <= LIMIT_KIB && *many <= LIMIT_KIB, "{name}: {few} KiB, {many} KiB of {LIMIT_KIB}");
        // Ten times the files: what queues and caches take until they are full, and no more.
        assert!(*many <= few + (32 << 10), "{name} grows with the number of files: {few} KiB, then {many} KiB");
    }
}
