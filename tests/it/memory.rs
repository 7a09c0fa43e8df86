//! Peak memory stays within the promise (160 MiB on 2 threads) and does not grow with the number of files.
//!
//! Said by the kernel through Python's `resource` (a child's highest resident size); the promise is for a release
//! build, and holds for this one.

use std::fs;
use std::path::Path;

use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{BK, World, files_below};

/// Peak resident size of a bk run in KiB.
fn peak(world: &World, words: &[&str]) -> u64 {
    let script = "import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)";
    let script_path = world.path("peak.py");
    fs::write(&script_path, script).unwrap();
    let named = world.named();
    let env = world.server.as_ref().map(|server| server.env()).unwrap_or_default();
    let env: Vec<String> = env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut args: Vec<&Path> = vec![&script_path, named.as_ref(), BK.as_ref()];
    args.extend(words.iter().map(Path::new));
    let line = format!(
        r#"export BK_S3_IN_FLIGHT=16MiB {} BK_VOLUME="$2"; script="$1"; shift 2; python3 "$script" "$@""#,
        env.join(" ")
    );
    let output = shell_ok(&line, &args);
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
fn a_long_index_is_sent_to_s3_from_its_file() {
    if !need("a_long_index_is_sent_to_s3_from_its_file", &["python3"]) {
        return;
    }
    // Each costs the index 2 KB, since nothing in it repeats; the fewer fill all queues already.
    let peak_of = |count: usize| {
        let mut world = World::on_s3("memory-s3");
        world.server.as_mut().unwrap().spools_all = true;
        let mut rng = Rng::new(171);
        for n in 0..count {
            let noise = rng.noise(1900);
            let target: String = noise.iter().map(|byte| format!("{byte:02x}")).collect();
            std::os::unix::fs::symlink(target, world.src.join(format!("{n}"))).unwrap();
        }
        let src = world.src.to_str().unwrap().to_owned();
        let words = ["snapshot", "--quiet", "--threads", "2", "--part-size", "16MiB", "--job", "m", "-C", &src, "."];
        let peak = peak(&world, &words);
        world.bk("verify --data").run().ok();
        let len = |path: &std::path::PathBuf| fs::metadata(path).unwrap().len();
        let index = files_below(&world.volume).iter().filter(|path| path.ends_with("index-00000.bki")).map(len).sum();
        (peak, index)
    };
    let ((few, short), (many, long)): ((u64, u64), (u64, u64)) = (peak_of(10_000), peak_of(50_000));
    eprintln!("{few} KiB at an index of {short} bytes, {many} KiB at {long}");
    assert!(long > 80 << 20, "{long}");
    assert!(many <= few + (32 << 10), "{few} KiB at an index of {short} bytes, {many} KiB at {long}");
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
