//! Volumes on S3, over HTTP to real servers: whatever holds in a directory holds there.

use std::fs;
use std::path::Path;

use crate::support::inventory::{assert_same, inventory};
use crate::support::rng::Rng;
use crate::support::s3::Server;
use crate::support::{Bk, Ran, World, exit, temp_dir};

const OPTIONS: &str = "--frame-size 16KiB --part-size 64KiB --threads 2";

fn fill(src: &Path) {
    let mut rng = Rng::new(300);
    for n in 0..30 {
        let dir = src.join(format!("d{}", n % 4));
        fs::create_dir_all(&dir).unwrap();
        let len = rng.below(20_000) as usize;
        fs::write(dir.join(format!("f{n}")), rng.content(len)).unwrap();
    }
    fs::write(src.join("big"), rng.noise(400_000)).unwrap();
    std::os::unix::fs::symlink("big", src.join("link")).unwrap();
}

fn take(world: &World, options: &str) -> Ran {
    world.snapshot("t", &format!("{OPTIONS} {options}")).ok()
}

fn restores(world: &World, snapshot: &str, name: &str) {
    let (target, ran) = world.restore(snapshot, name);
    ran.ok();
    assert_same(&inventory(&world.src), &inventory(&target), &crate::roundtrip::exact(), snapshot);
}

/// What people do with a volume, on `world`'s.
fn behaviours(world: &World) {
    world.bk("volume create").arg(world.named()).run().code_is(&[exit::VOLUME]).says("is a volume already");
    let check = world.bk("volume check --json").run().ok();
    let found = &check.json()[0];
    for what in ["creates_once", "racing_creates", "reads_after_write", "lists_after_write", "deletes"] {
        assert_eq!(found[what], true, "{what}: {}", check.show());
    }
    assert_eq!(world.list(), Vec::<String>::new());

    // A tree at three levels.
    fill(&world.src);
    let ran = world.snapshot("t", &format!("{OPTIONS} --level 0 --json")).ok();
    let result = ran.json().pop().unwrap();
    let requests = &result["requests"];
    let parts = result["totals"]["parts"].as_u64().unwrap();
    assert!(parts >= 5, "{result}");
    // Each part and the index, RESTORE.txt, the record and what checks that the volume can be written.
    assert_eq!(requests["put"].as_u64(), Some(parts + 4), "{result}");
    assert!(requests["sent_bytes"].as_u64().unwrap() >= result["totals"]["stored_bytes"].as_u64().unwrap(), "{result}");
    fs::write(world.src.join("d1/new"), "new").unwrap();
    take(world, "--level 1");
    fs::remove_file(world.src.join("d2/f2")).unwrap();
    take(world, "--level 2");
    assert_eq!(world.list(), ["t/1", "t/2", "t/3"]);
    restores(world, "t/3", "out3");
    world.bk("ls t/3 d1").run().ok().says("new");
    let cat = world.bk("cat t/3 big").run().ok();
    assert!(cat.stdout == fs::read(world.src.join("big")).unwrap());
    let cat = world.bk("cat t/2 big --range 100000:5000").run().ok();
    assert!(cat.stdout == fs::read(world.src.join("big")).unwrap()[100_000..105_000]);
    world.bk("diff t/1 t/3").run().ok().says("d1/new").says("f2");
    let tar = world.bk("export t/3").run().ok();
    assert!(tar.stdout.len() > 400_000 && &tar.stdout[257..262] == b"ustar");

    // Streams.
    let dump = Rng::new(301).content(300_000);
    world.bk("snapshot --job in --stdin dump").words(OPTIONS).small().stdin(dump.clone()).run().ok();
    assert!(world.bk("cat in/1 --stream dump").run().ok().stdout == dump);
    world.bk("snapshot --job run --small").run().code_is(&[exit::USAGE]);
    world.bk("snapshot --job run").words(OPTIONS).small().words("-- printf hello").run().ok();
    assert!(world.bk("cat run/1 --stream run").run().ok().stdout == b"hello");
    world.bk("snapshot --job run").words(OPTIONS).small().words("-- false").run().code_is(&[exit::ERROR]);
    assert_eq!(world.list().len(), 5);
    world.bk("verify").run().ok();
    world.bk("verify --data").run().ok();

    // Expiry: level 2 goes, level 0 is held by level 1, a hold keeps the other job's.
    for name in ["t/1", "t/3", "in/1"] {
        world.bk("expire --set").words(name).arg("2001-01-01T00:00:00Z").run().ok();
    }
    world.bk("hold in/1 --comment audit").run().ok();
    world.bk("expire --dry-run --yes").run().ok();
    assert_eq!(world.list().len(), 5);
    let ran = world.bk("expire --yes --json").run().ok();
    let result = ran.json().pop().unwrap();
    assert_eq!((result["expired"].as_u64(), result["runs"].as_u64()), (Some(1), Some(1)), "{}", ran.show());
    assert!(result["objects"].as_u64() >= Some(2), "{}", ran.show());
    assert_eq!(world.list(), ["in/1", "run/1", "t/1", "t/2"]);
    world.bk("why t/1").run().ok();
    world.bk("release in/1").run().ok();
    world.bk("verify --data").run().ok();
    let info = world.bk("volume info --json").run().ok().json().pop().unwrap();
    assert_eq!((info["snapshots"].as_u64(), info["jobs"].as_u64()), (Some(4), Some(3)), "{info}");
    assert!(info["free_bytes"].is_null());
}

#[test]
fn all_of_it_on_a_server_over_files() {
    let world = World::on_s3("s3-own");
    behaviours(&world);
    // What lies there is a volume as in a directory, to the byte.
    Bk::new("verify --data --volume").arg(&world.volume).run().ok();
    let left: Vec<String> =
        fs::read_dir(&world.volume).unwrap().map(|e| crate::support::name_of(&e.unwrap().path())).collect();
    let probes: Vec<&String> = left.iter().filter(|name| name.starts_with("bk-probe")).collect();
    for probe in probes {
        assert!(crate::support::files_below(&world.volume.join(probe)).is_empty(), "{left:?}");
    }
}

#[test]
fn all_of_it_on_moto() {
    let Some(server) = Server::moto("all_of_it_on_moto") else { return };
    behaviours(&World::on(temp_dir("s3-moto"), server));
}

#[test]
fn all_of_it_on_the_server_given() {
    let Some(server) = Server::given() else {
        crate::support::tools::skip("all_of_it_on_the_server_given", "BK_TEST_S3_URL names none");
        return;
    };
    behaviours(&World::on(temp_dir("s3-given"), server));
}
