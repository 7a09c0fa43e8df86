//! The file system without a kernel: held against what was stored, on stores that stall, and on hostile volumes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::time::Duration;

use bk::error::Result;
use bk::model::entry::EntryKind;
use bk::monitor::Monitor;
use bk::mount::core::{Core, Shown};
use bk::mount::node::Node;
use bk::mount::{Answer, Failure, Limits};
use bk::volume::{Created, Item, Store, Upload, Volume, local::LocalStore, open_on};

use crate::hostile::write_volumes;
use crate::support::inventory::inventory;
use crate::support::rng::Rng;
use crate::support::tree::Tree;
use crate::support::{World, temp_dir};

/// A local volume whose reads of parts can be held up, and are counted.
struct Slow {
    inner: LocalStore,
    held: Mutex<bool>,
    news: Condvar,
    reads: AtomicU64,
    holds: AtomicBool,
}

impl Slow {
    fn over(volume: &Path) -> Arc<Self> {
        let inner = LocalStore::open(volume).unwrap();
        Arc::new(Self {
            inner,
            held: Mutex::new(false),
            news: Condvar::new(),
            reads: AtomicU64::new(0),
            holds: AtomicBool::new(false),
        })
    }

    fn hold(&self, held: bool) {
        self.holds.store(held, Ordering::SeqCst);
        *self.held.lock().unwrap() = held;
        self.news.notify_all();
    }
}

impl Store for Slow {
    fn create(&self, key: &str) -> Result<Box<dyn Upload>> {
        self.inner.create(key)
    }
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<Created> {
        self.inner.put_new(key, bytes)
    }
    fn read_at(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        if key.contains("/tree-") {
            self.reads.fetch_add(1, Ordering::SeqCst);
            let mut held = self.held.lock().unwrap();
            while *held {
                held = self.news.wait(held).unwrap();
            }
        }
        self.inner.read_at(key, offset, buf)
    }
    fn read(&self, key: &str, len_max: u64) -> Result<Vec<u8>> {
        self.inner.read(key, len_max)
    }
    fn head(&self, key: &str) -> Result<Option<u64>> {
        self.inner.head(key)
    }
    fn list(&self, prefix: &str) -> Result<Vec<Item>> {
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)
    }
    fn free_bytes(&self) -> Result<Option<u64>> {
        self.inner.free_bytes()
    }
    fn scratch(&self) -> Result<fs::File> {
        self.inner.scratch()
    }
    fn check_writable(&self) -> Result<()> {
        self.inner.check_writable()
    }
}

#[derive(Default)]
struct Said(Mutex<Vec<String>>);

impl Monitor for Said {
    fn warn(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
    fn advance(&self, _: u64, _: u64, _: &[u8]) {}
    fn expect(&self, _: u64, _: u64) {}
}

const LIMITS: Limits = Limits {
    cache_len: 16 << 20,
    deadline: Duration::from_secs(600),
    frame_threads: 2,
    index_threads: 2,
    ahead_len: 8 << 20,
    fresh: Duration::from_millis(1),
};

fn core(volume: Volume, limits: Limits) -> (Arc<Core>, Arc<Said>) {
    let said = Arc::new(Said::default());
    let monitor: Arc<dyn Monitor> = said.clone();
    (Core::new(volume, Shown::All, limits, monitor).unwrap(), said)
}

fn local(volume: &Path) -> Volume {
    open_on(Arc::new(LocalStore::open(volume).unwrap()), "volume".to_owned()).unwrap()
}

/// Reads and waits for the answer.
fn read(core: &Arc<Core>, node: Node, offset: u64, len: u64) -> Answer<Vec<u8>> {
    let (done, answer) = mpsc::channel();
    core.read(node, offset, len, move |answer| done.send(answer.map(|data| data.bytes().to_vec())).unwrap());
    answer.recv_timeout(Duration::from_secs(600)).expect("no answer")
}

fn list(core: &Core, node: Node) -> Answer<Vec<(Vec<u8>, Node, EntryKind)>> {
    let (mut all, mut from) = (Vec::new(), 0);
    loop {
        let mut count = 0;
        core.list(node, from, &mut |name, attr, place| {
            if name != b"." && name != b".." {
                all.push((name.to_vec(), attr.node, attr.kind));
            }
            (from, count) = (place, count + 1);
            // A few at a time, so that every place is gone on from.
            count == 3
        })?;
        if count == 0 || all.len() > 100_000 {
            return Ok(all);
        }
    }
}

fn at(core: &Core, path: &str) -> Node {
    let mut node = Node::TOP;
    for name in path.split('/') {
        let attr = core.lookup(node, name.as_bytes()).unwrap().unwrap_or_else(|| panic!("no {name} of {path}"));
        node = attr.node;
        if attr.kind == EntryKind::Symlink {
            let target = core.readlink(node).unwrap();
            let parent = path.split('/').next().unwrap();
            node = at(core, &format!("{parent}/{}", String::from_utf8(target).unwrap()));
        }
    }
    node
}

#[test]
fn lists_and_lookups_tell_the_same() {
    let world = World::new("core");
    if world.server.is_some() {
        return;
    }
    Tree::new(520).build(&world.src);
    world.snapshot("tree", "--level 0 --frame-size 64KiB").ok();
    fs::remove_dir_all(world.src.join("many/1")).unwrap();
    fs::write(world.src.join("many/1"), "a file").unwrap();
    fs::write(world.src.join("many/0/f1000.c"), "new").unwrap();
    world.snapshot("tree", "--level 1 --frame-size 64KiB").ok();
    let before = inventory(&world.src);
    let (core, said) = core(local(&world.volume), LIMITS);
    let mut found: BTreeMap<Vec<u8>, Node> = BTreeMap::new();
    let mut todo = vec![(Vec::new(), at(&core, "tree/latest"))];
    while let Some((dir, node)) = todo.pop() {
        for (name, child, kind) in list(&core, node).unwrap() {
            let mut path: Vec<u8> = dir.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let attr = core.lookup(node, &name).unwrap().unwrap();
            assert_eq!((attr.node, attr.kind), (child, kind), "{}", path.escape_ascii());
            assert_eq!(core.attr(child).unwrap(), attr);
            if kind == EntryKind::Dir {
                todo.push((path.clone(), child));
            }
            assert!(found.insert(path, child).is_none());
        }
        assert!(core.lookup(node, b"no such name").unwrap().is_none());
    }
    let paths: Vec<_> = found.keys().cloned().collect();
    assert!(paths.iter().eq(before.keys()));
    for (path, record) in &before {
        let Some(content) = &record.content else { continue };
        let (mut bytes, mut offset) = (Vec::new(), 0);
        while offset < record.size {
            let some = read(&core, found[path], offset, 1 << 20).unwrap();
            offset += some.len() as u64;
            bytes.extend(some);
        }
        assert_eq!(blake3::hash(&bytes).to_hex()[..16], content[..], "{}", path.escape_ascii());
        assert!(read(&core, found[path], record.size, 10).unwrap().is_empty());
    }
    assert!(said.0.lock().unwrap().is_empty(), "{:?}", said.0.lock().unwrap());
}

#[test]
fn latest_leads_to_no_older_one() {
    let world = World::new("core-latest");
    if world.server.is_some() {
        return;
    }
    for text in ["one", "two"] {
        fs::write(world.src.join("f"), text).unwrap();
        world.snapshot("tree", "").ok();
    }
    let record = world.volume.join("log/tree/00000000000000000002.json");
    let good = fs::read(&record).unwrap();
    let has_latest = |bytes: &[u8]| {
        fs::write(&record, bytes).unwrap();
        let (core, said) = core(local(&world.volume), LIMITS);
        let job = at(&core, "tree");
        let names: Vec<Vec<u8>> = list(&core, job).unwrap().into_iter().map(|(name, ..)| name).collect();
        let is_found = core.lookup(job, b"latest").unwrap().is_some();
        assert_eq!(names.contains(&b"latest".to_vec()), is_found);
        assert_eq!((names.len(), said.0.lock().unwrap().is_empty()), if is_found { (3, true) } else { (1, false) });
        is_found
    };
    assert!(has_latest(&good));
    assert!(!has_latest(&good[..good.len() - 9]));
    assert!(has_latest(&good));
}

#[test]
fn a_frame_is_decoded_once_for_all_who_wait() {
    let world = World::new("core");
    if world.server.is_some() {
        return;
    }
    fs::write(world.src.join("f"), Rng::new(1).noise(100_000)).unwrap();
    world.snapshot("tree", "").ok();
    let slow = Slow::over(&world.volume);
    let (core, _) = core(open_on(slow.clone(), "volume".to_owned()).unwrap(), LIMITS);
    let node = at(&core, "tree/latest/f");
    slow.hold(true);
    let (done, answers) = mpsc::channel();
    for n in 0..50u64 {
        let done = done.clone();
        core.read(node, n * 1000, 1000, move |answer| {
            done.send(answer.map(|data| data.bytes().len()).unwrap()).unwrap()
        });
    }
    // While they wait, what is known is told at once.
    assert_eq!(core.attr(node).unwrap().size, 100_000);
    assert!(answers.try_recv().is_err());
    slow.hold(false);
    for _ in 0..50 {
        assert_eq!(answers.recv_timeout(Duration::from_secs(600)).unwrap(), 1000);
    }
    assert_eq!(slow.reads.load(Ordering::SeqCst), 1);
    assert_eq!(core.counts().decoded, 1);
}

#[test]
fn snapshots_that_were_looked_into_do_not_stay_open() {
    let world = World::new("core");
    if world.server.is_some() {
        return;
    }
    for n in 0..40 {
        fs::write(world.src.join("f"), format!("content {n}")).unwrap();
        world.snapshot("tree", "--level 0").ok();
    }
    let (core, _) = core(local(&world.volume), LIMITS);
    let job = core.lookup(Node::TOP, b"tree").unwrap().unwrap().node;
    let mut files = Vec::new();
    for (name, root, kind) in list(&core, job).unwrap() {
        if kind == EntryKind::Dir {
            assert_eq!(core.lookup(job, &name).unwrap().unwrap().node, root);
            files.push(core.lookup(root, b"f").unwrap().unwrap().node);
        }
    }
    for _ in 0..2 {
        for (n, node) in files.iter().enumerate() {
            assert_eq!(read(&core, *node, 0, 100).unwrap(), format!("content {n}").into_bytes());
        }
    }
    assert_eq!(files.len(), 40);
    // What is still read ahead may hold one a little longer.
    super::wait_for("chains to be closed", || core.open_chains() <= 24);
    assert!(core.open_chains() > 1);
}

#[test]
fn a_store_that_stalls_is_an_error_at_the_deadline() {
    let world = World::new("core");
    if world.server.is_some() {
        return;
    }
    fs::write(world.src.join("f"), Rng::new(1).noise(100_000)).unwrap();
    world.snapshot("tree", "").ok();
    let slow = Slow::over(&world.volume);
    let limits = Limits { deadline: Duration::from_millis(1500), ..LIMITS };
    let (core, said) = core(open_on(slow.clone(), "volume".to_owned()).unwrap(), limits);
    let node = at(&core, "tree/latest/f");
    slow.hold(true);
    let answer = read(&core, node, 0, 1000);
    assert!(matches!(answer, Err(Failure::Plain(errno)) if errno == rustix::io::Errno::IO));
    assert!(said.0.lock().unwrap()[0].contains("no answer"));
    // It is no more than late: what comes in the end is used.
    slow.hold(false);
    assert_eq!(read(&core, node, 0, 1000).unwrap().len(), 1000);
    assert_eq!(slow.reads.load(Ordering::SeqCst), 1);
}

#[test]
fn hostile_volumes_harm_no_file_system() {
    let dir = temp_dir("core");
    let volumes = write_volumes(dir.path());
    let mut faults = 0;
    for (n, (name, seq)) in volumes.iter().enumerate() {
        let volume = dir.path().join(format!("{n}/volume"));
        let (core, said) = core(local(&volume), LIMITS);
        let mut todo = vec![Node::TOP];
        let mut seen = 0;
        while let Some(node) = todo.pop() {
            let Ok(listed) = list(&core, node) else { continue };
            for (path, child, kind) in listed {
                assert!(!path.contains(&b'/') && !path.is_empty(), "{name}: {}", path.escape_ascii());
                seen += 1;
                faults += usize::from(matches!(core.lookup(node, &path), Err(Failure::Fault(_))));
                let _ = core.readlink(child);
                let _ = core.xattrs(child, |all| all.len());
                let _ = core.seek(child, 0, true);
                match kind {
                    EntryKind::Dir if todo.len() < 1000 => todo.push(child),
                    EntryKind::File => {
                        for offset in [0, 4096, 1 << 40, u64::MAX - 5] {
                            if let Ok(bytes) = read(&core, child, offset, 1 << 20) {
                                assert!(bytes.len() <= 1 << 20);
                            }
                        }
                    }
                    _ => {}
                }
                assert!(seen < 200_000, "{name}: no end");
            }
        }
        let _ = seq;
        faults += said.0.lock().unwrap().len();
        assert!(
            said.0.lock().unwrap().iter().all(|text| !text.contains("panic")),
            "{name}: {:?}",
            said.0.lock().unwrap()
        );
        // Numbers nobody gave out.
        for number in [0, 2, 1 << 36, 10 << 36 | 5 << 40, u64::MAX] {
            assert!(core.attr(Node(number)).is_err() && list(&core, Node(number)).is_err());
        }
    }
    assert!(faults > 100, "only {faults} faults were told of {} volumes", volumes.len());
}
