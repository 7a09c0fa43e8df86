//! Reading in every way and order gives the bytes that were stored, with no more requests and memory than promised.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{SeekFrom, seek};

use super::{Mount, can_mount};
use crate::support::World;
use crate::support::proxy::{Fault, Proxy, Request};
use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::tree::{DEEP, Tree};

const O_DIRECT: i32 = 0o40000;

/// Reads `steps` random runs of `shown` in random ways and holds them against `truth`.
fn read_randomly(shown: &Path, truth: &[u8], seed: u64, steps: u64) {
    let mut rng = Rng::new(seed);
    let buffered = File::open(shown).unwrap();
    let direct = File::options().read(true).custom_flags(O_DIRECT).open(shown).unwrap();
    let size = truth.len() as u64;
    let mut at = 0;
    for step in 0..steps {
        let len = [1, 100, 4096, 65_536, 1_000_000][rng.below(5) as usize];
        let mut buffer = vec![0xaa; rng.below(len) as usize + 1];
        let how = rng.below(6);
        // In order, near the end, or anywhere.
        let from = match rng.below(4) {
            0 => at,
            1 => size.saturating_sub(rng.below(5000)),
            _ => rng.below(size + 10),
        };
        let (file, from) = match how {
            0 => {
                buffer.resize(buffer.len().next_multiple_of(4096), 0);
                (&direct, from / 4096 * 4096)
            }
            _ => (&buffered, from),
        };
        let mut done = 0;
        while done < buffer.len() {
            match file.read_at(&mut buffer[done..], from + done as u64).unwrap() {
                0 => break,
                n => done += n,
            }
        }
        at = from + done as u64;
        let end = (from as usize + buffer.len()).min(truth.len());
        let expected = truth.get(from as usize..end).unwrap_or_default();
        assert!(
            buffer[..done] == *expected,
            "step {step} of seed {seed}: {} bytes from {from} (way {how})",
            buffer.len()
        );
    }
}

#[test]
fn random_reads_give_what_was_stored() {
    let me = "random_reads_give_what_was_stored";
    if !can_mount(me) || !need(me, &["python3"]) {
        return;
    }
    let world = World::new("mount");
    Tree::new(510).without(DEEP).build(&world.src);
    world.snapshot("tree", "--level 0 --frame-size 64KiB --part-size 1MiB").ok();
    let mut prose = fs::read(world.src.join("large/prose")).unwrap();
    for n in 0..40 {
        let noise = Rng::new(n).noise(2000);
        let from = n as usize * 230_011;
        prose[from..from + noise.len()].copy_from_slice(&noise);
    }
    fs::write(world.src.join("large/prose"), prose).unwrap();
    world.snapshot("tree", "--level 1 --frame-size 64KiB --part-size 1MiB").ok();
    let mount = Mount::new(&world, "mnt", "--cache-memory 16MiB tree/2");
    let names =
        ["large/prose", "large/noise", "sparse/middle", "sparse/many-holes", "sparse/all-hole", "plain/size-65536"];
    std::thread::scope(|scope| {
        for (n, name) in names.iter().cycle().take(18).enumerate() {
            let (mount, world) = (&mount, &world);
            scope.spawn(move || {
                let truth = fs::read(world.src.join(name)).unwrap();
                read_randomly(&mount.path(name), &truth, 900 + n as u64, 150);
            });
        }
    });
    // Through a mapping, too.
    let script = "import mmap, sys
for name in sys.argv[3:]:
    with open(sys.argv[1] + '/' + name, 'rb') as a, open(sys.argv[2] + '/' + name, 'rb') as b:
        with mmap.mmap(a.fileno(), 0, prot=mmap.PROT_READ) as m:
            want = b.read()
            assert len(m) == len(want)
            for at in list(range(len(want) - 1, 0, -70001)) + [0]:
                assert m[at:at + 5000] == want[at:at + 5000], (name, at)
            assert m[:] == want, name";
    let file = world.path("map.py");
    fs::write(&file, script).unwrap();
    let mut args: Vec<&Path> = vec![&file, &mount.at, &world.src];
    args.extend(names.iter().map(Path::new));
    shell_ok(r#"python3 "$@""#, &args);
    assert_eq!(mount.count("faults"), 0);
    mount.end().ok();
}

/// Runs of data as the file system tells them.
fn data_runs(path: &Path) -> Vec<(u64, u64)> {
    let file = File::open(path).unwrap();
    let (mut runs, mut at) = (Vec::new(), 0);
    while let Ok(from) = seek(&file, SeekFrom::Data(at)) {
        let to = seek(&file, SeekFrom::Hole(from)).unwrap();
        assert!(to > from, "an empty run at {from}");
        runs.push((from, to));
        at = to;
    }
    runs
}

#[test]
fn holes_are_where_they_were() {
    if !can_mount("holes_are_where_they_were") {
        return;
    }
    let world = World::new("mount");
    Tree::new(511).without(DEEP).build(&world.src);
    world.snapshot("tree", "").ok();
    let mount = Mount::new(&world, "mnt", "tree/1");
    let mut with_holes = 0;
    for path in crate::support::sorted(&world.src.join("sparse")) {
        let shown = mount.path("sparse").join(path.file_name().unwrap());
        let (there, here) = (data_runs(&path), data_runs(&shown));
        assert_eq!(there, here, "{}", path.display());
        let size = path.metadata().unwrap().len();
        let data: u64 = there.iter().map(|(from, to)| to - from).sum();
        let blocks = shown.metadata().unwrap().blocks();
        assert!(blocks * 512 >= data && blocks * 512 <= data + 512 * (there.len() as u64 + 1), "{}", path.display());
        with_holes += u64::from(data < size);
        // Past the end there is nothing, and inside a hole data comes later or never.
        let file = File::open(&shown).unwrap();
        assert!(seek(&file, SeekFrom::Data(size)).is_err() && seek(&file, SeekFrom::Hole(size + 1)).is_err());
    }
    assert!(with_holes >= 7);
}

#[test]
fn what_was_asked_once_is_not_asked_again() {
    let me = "what_was_asked_once_is_not_asked_again";
    if !can_mount(me) || !need(me, &["find", "tar"]) {
        return;
    }
    let world = World::new("mount");
    Tree::new(512).without(DEEP).build(&world.src);
    let entries = crate::support::inventory::inventory(&world.src).len() as u64;
    world.snapshot("tree", "").ok();
    let mount = Mount::new(&world, "mnt", "tree/1");
    let asked = |what: &[&str]| -> Vec<u64> { what.iter().map(|what| mount.count(what)).collect() };
    let find = || drop(shell_ok(r#"find "$1" -printf '%s %m %u %p\n' >/dev/null"#, &[&mount.at]));
    find();
    // The first time, lists tell all: no entry is looked up by itself.
    assert!(mount.count("lookup") <= 2 && mount.count("getattr") <= 5, "{:?}", asked(&["lookup", "getattr"]));
    assert!(mount.count("readdir") < entries, "{} lists of {entries} entries", mount.count("readdir"));
    // Once more asks for nothing; the kernel may forget at any time, but hardly each time.
    let asks_nothing = |again: &dyn Fn(), of: &[&str]| {
        let mut seen = vec![asked(of)];
        let is_quiet = (0..5).any(|_| {
            again();
            seen.push(asked(of));
            seen[seen.len() - 2] == seen[seen.len() - 1]
        });
        assert!(is_quiet, "{of:?}, each time more: {seen:?}");
    };
    asks_nothing(&find, &["lookup", "getattr", "readdir", "opendir"]);
    let cat =
        || drop(shell_ok(r#"cat "$1" "$2" >/dev/null"#, &[&mount.path("large/prose"), &mount.path("plain/size-1")]));
    cat();
    let before = asked(&["read", "open", "lookup", "getattr"]);
    assert!(before[0] > 0 && before[1] <= 1, "{before:?}");
    asks_nothing(&cat, &["read", "open", "lookup", "getattr"]);
    // Each frame was fetched once.
    let tar = || drop(shell_ok(r#"tar -C "$1" -cf - . | cat >/dev/null"#, &[&mount.at]));
    tar();
    let decoded = mount.count("decoded");
    tar();
    assert_eq!(mount.count("decoded"), decoded);
    assert!(decoded <= 12, "{decoded} frames were fetched of about 8");
}

#[test]
fn who_reads_files_in_order_is_given_the_next() {
    if !can_mount("who_reads_files_in_order_is_given_the_next") {
        return;
    }
    let world = World::new("mount");
    for n in 0..400u64 {
        let dir = world.src.join(format!("d{}", n / 100));
        fs::create_dir_all(&dir).unwrap();
        // Of every size that a page may be filled by, and now and then one too large to be given.
        let size = if n % 50 == 30 { 300_000 } else { [1, 4095, 4096, 4097, 8192, 20_000][n as usize % 6] };
        fs::write(dir.join(format!("f{n:03}")), Rng::new(n).noise(size)).unwrap();
    }
    world.snapshot("tree", "").ok();
    let mount = Mount::new(&world, "mnt", "tree/1");
    let read = |n: u64| {
        let name = format!("d{}/f{n:03}", n / 100);
        assert!(fs::read(mount.path(&name)).unwrap() == fs::read(world.src.join(&name)).unwrap(), "{name}");
    };
    let listed = |dir: &str| fs::read_dir(mount.path(dir)).unwrap().count();
    // Far from each other, files are read as they are asked for.
    assert_eq!((listed("d0"), listed("d1"), listed("d2")), (100, 100, 100));
    for n in [299, 199, 99] {
        read(n);
    }
    assert_eq!(mount.count("given"), 0);
    // In order, those after the second are there before anybody asks. The kernel takes only files it knows, and may forget what was
    // listed when it is short of memory: then another directory is tried.
    let given_after = |first: u64| {
        let before = mount.count("given");
        listed(&format!("d{}", first / 100));
        read(first);
        read(first + 1);
        let end = Instant::now() + Duration::from_secs(20);
        while mount.count("given") < before + 8 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        let (given, before) = (mount.count("given") - before, mount.count("read"));
        (first + 2..first + 8).for_each(read);
        given >= 8 && mount.count("read") == before
    };
    assert!([0, 100, 200].into_iter().any(given_after), "{} files were given", mount.count("given"));
    // All of it, in order, and again from the kernel's memory.
    (10..300).for_each(read);
    assert!(mount.count("given") > 8);
    let is_quiet = (0..5).any(|_| {
        let before = mount.count("read");
        (0..300).for_each(read);
        mount.count("read") == before
    });
    assert!(is_quiet, "read again each time");
    assert_eq!(mount.count("faults"), 0);
    mount.end().ok();
}

#[test]
fn sixty_four_readers_stay_within_the_cache() {
    if !can_mount("sixty_four_readers_stay_within_the_cache") {
        return;
    }
    let world = World::new("mount");
    let mut rng = Rng::new(513);
    for n in 0..16 {
        let mut content = rng.noise(500_000);
        content.extend(rng.prose(12_000_000));
        fs::write(world.src.join(format!("f{n}")), content).unwrap();
    }
    world.snapshot("tree", "--frame-size 1MiB").ok();
    let mount = Mount::new(&world, "mnt", "--cache-memory 32MiB tree/1");
    std::thread::scope(|scope| {
        for n in 0..64u64 {
            let (mount, world) = (&mount, &world);
            scope.spawn(move || {
                let name = format!("f{}", n % 16);
                let truth = File::open(world.src.join(&name)).unwrap();
                let shown = File::open(mount.path(&name)).unwrap();
                let mut rng = Rng::new(n);
                let (mut a, mut b) = (vec![0; 200_000], vec![0; 200_000]);
                for step in 0..60 {
                    let at = if n % 2 == 0 { step * 200_000 } else { rng.below(12_000_000) };
                    shown.read_exact_at(&mut a, at).unwrap();
                    truth.read_exact_at(&mut b, at).unwrap();
                    assert!(a == b, "{name} at {at}");
                }
            });
        }
    });
    let peak = mount.peak();
    assert!(peak <= (64 + 32) << 10, "{peak} KiB for a cache of 32 MiB");
    mount.end().ok();
}

#[test]
fn memory_does_not_grow_with_the_tree() {
    let me = "memory_does_not_grow_with_the_tree";
    if !can_mount(me) || !need(me, &["find"]) {
        return;
    }
    let mut peaks = Vec::new();
    for count in [2_000u32, 60_000] {
        let world = World::new("mount");
        for n in 0..count {
            let dir = world.src.join(format!("d{}", n / 300));
            if n % 300 == 0 {
                fs::create_dir(&dir).unwrap();
            }
            fs::write(dir.join(format!("a-file-with-a-usual-name-{n}")), n.to_le_bytes()).unwrap();
        }
        world.snapshot("tree", "").ok();
        let mount = Mount::new(&world, "mnt", "--cache-memory 16MiB tree/1");
        shell_ok(r#"find "$1" -printf '%s %m\n' | wc -l"#, &[&mount.at]);
        shell_ok(r#"tar -C "$1" -cf - . | cat >/dev/null"#, &[&mount.at]);
        peaks.push(mount.peak());
        mount.end().ok();
    }
    assert!(peaks[1] <= (64 + 16) << 10, "{peaks:?} KiB");
}

#[test]
fn a_bucket_is_read_ahead_in_joined_requests() {
    if !can_mount("a_bucket_is_read_ahead_in_joined_requests") {
        return;
    }
    let (world, content) = far_away("mount-ahead");
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    let gets = read_behind(&world, &proxy, &content).iter().filter(|request| is_of_parts(request)).count();
    assert!(gets * 2 <= FAR_FRAMES, "{gets} requests for {FAR_FRAMES} frames");
}

/// One that fails is asked for again as it was: a server that has enough of requests does not get one for each frame.
#[test]
fn joined_requests_that_fail_stay_joined() {
    if !can_mount("joined_requests_that_fail_stay_joined") {
        return;
    }
    let (world, content) = far_away("mount-again");
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    let seen = read_behind(&world, &proxy, &content);
    let parts = seen.iter().enumerate().filter(|(_, request)| is_of_parts(request)).map(|(at, _)| at);
    for at in parts.take(8).collect::<Vec<_>>() {
        proxy.plan_any(at + 1, Fault::Status(503));
        let gets = read_behind(&world, &proxy, &content).iter().filter(|request| is_of_parts(request)).count();
        assert!(proxy.came() == 1 && gets * 2 <= FAR_FRAMES, "{at}: {gets} requests for {FAR_FRAMES} frames");
    }
}

const FAR_FRAMES: usize = 192;

/// A volume on S3 with a file of [`FAR_FRAMES`] frames of 64 KiB that shrink to less than a third, and its content.
fn far_away(name: &str) -> (World, Vec<u8>) {
    let world = World::on_s3(name);
    let mut content = Rng::new(511).noise(FAR_FRAMES << 16);
    content.iter_mut().for_each(|byte| *byte = b"acgt"[usize::from(*byte & 3)]);
    fs::write(world.src.join("big"), &content).unwrap();
    world.snapshot("tree", "--frame-size 64KiB").ok();
    (world, content)
}

fn is_of_parts(request: &Request) -> bool {
    request.method == "GET" && request.target.contains("/tree-")
}

/// The requests of a mount through which the file is read once.
fn read_behind(world: &World, proxy: &Proxy, content: &[u8]) -> Vec<Request> {
    let at = world.path("m");
    fs::create_dir_all(&at).unwrap();
    let one = Mount::by(world.bk("mount --json tree/1").env("AWS_ENDPOINT_URL", &proxy.endpoint).arg(&at), &at);
    assert!(fs::read(one.path("big")).unwrap() == content);
    let seen = proxy.seen();
    assert_eq!(one.count("faults"), 0);
    one.end().ok();
    seen
}
