//! Volumes on S3, over HTTP to real servers: whatever holds in a directory holds there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::support::inventory::{assert_same, inventory};
use crate::support::proxy::Proxy;
use crate::support::rng::Rng;
use crate::support::s3::Server;
use crate::support::{Bk, Ran, World, exit, files_below, temp_dir};

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
    // A run that takes seconds also says how far it is: not this one, however slow the machine.
    let bk = world.bk("snapshot --job t --level 0 --json").words(OPTIONS).small().env("BK_TEST_BEAT_MS", "3600000");
    let ran = bk.arg("-C").arg(&world.src).arg(".").run().ok();
    let result = ran.json().pop().unwrap();
    let requests = &result["requests"];
    let parts = result["totals"]["parts"].as_u64().unwrap();
    assert!(parts >= 5, "{result}");
    // Each part and the index, RESTORE.txt, the record, the lease, the word that it has begun and the two that check whether the
    // volume can be written, once a key.
    assert_eq!(requests["put"].as_u64(), Some(parts + 7), "{result}");
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

#[test]
fn a_warm_list_asks_only_for_what_is_new() {
    let world = World::on_s3("s3-warm");
    fs::write(world.src.join("f"), "f").unwrap();
    for job in ["a", "b"] {
        for _ in 0..4 {
            world.snapshot(job, OPTIONS).ok();
        }
    }
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    let gets = |options: &str| {
        proxy.pass();
        let ran = world.bk("list --json").words(options).env("AWS_ENDPOINT_URL", &proxy.endpoint).run().ok();
        assert!(ran.json().len() >= 9);
        let seen = proxy.seen();
        let lists = seen.iter().filter(|request| request.is_list()).count();
        // All logs in one; then there is the volume's own document.
        assert_eq!(lists, 1, "{seen:?}");
        let records = seen.iter().filter(|request| request.method == "GET" && request.target.contains("/log/")).count();
        assert_eq!(seen.len(), records + 2, "{seen:?}");
        records
    };
    let _ = fs::remove_dir_all(world.path("cache"));
    assert_eq!(gets(""), 8);
    assert_eq!(gets(""), 0);
    world.snapshot("b", OPTIONS).ok();
    assert_eq!(gets(""), 1);
    assert_eq!(gets("--no-cache"), 9);
    // A copy that is damaged is fetched again; a cache that others can write is not used.
    let cache = world.path("cache/bk");
    let copies = files_below(&cache);
    assert_eq!(copies.len(), 9);
    fs::write(&copies[0], "damaged").unwrap();
    assert_eq!(gets(""), 1);
    assert_eq!(gets(""), 0);
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(gets(""), 9);
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
    // A record that was damaged there after it was read here is found by verify, which uses no copies.
    let record = world.volume.join("log/a/00000000000000000002.json");
    let mut bytes = fs::read(&record).unwrap();
    bytes[20] ^= 1;
    fs::write(&record, bytes).unwrap();
    assert_eq!(gets(""), 0);
    world.bk("verify").run().code_is(&[exit::INTEGRITY]);
    // Nor does an expiry, which deletes.
    world.bk("expire --yes").run().code_is(&[exit::INTEGRITY]);
}

#[test]
fn a_warm_ls_asks_for_no_index() {
    let world = World::on_s3("s3-ls");
    fill(&world.src);
    take(&world, "--level 0");
    fs::write(world.src.join("d1/new"), "new").unwrap();
    take(&world, "--level 1");
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    let ask = |words: &str, code: i32| {
        proxy.pass();
        let ran = world.bk(words).env("AWS_ENDPOINT_URL", &proxy.endpoint).run().code_is(&[code]);
        let seen = proxy.seen();
        let gets = seen.iter().filter(|request| request.method == "GET" && request.target.contains(".bki")).count();
        (ran.stdout, gets)
    };
    let _ = fs::remove_dir_all(world.path("cache"));
    // Both indexes are short: each comes whole, by one request.
    let (cold, gets) = ask("ls -R t/2", 0);
    assert_eq!(gets, 2);
    let (warm, gets) = ask("ls -R t/2", 0);
    assert_eq!(gets, 0);
    assert!(cold == warm && String::from_utf8_lossy(&warm).contains("new"));
    assert_eq!(ask("cat t/2 d1/new", 0), (b"new".to_vec(), 0));
    assert_eq!(ask("ls -R t/2 --no-cache", 0).1, 2);
    assert_eq!(ask("ls -R t/2 --cache-size 0", 0).1, 2);
    let (directory, cache) = (world.path("cache/bk"), files_below(&world.path("cache/bk")));
    assert_eq!(fs::metadata(&directory).unwrap().permissions().mode() & 0o777, 0o700);
    for copy in &cache {
        assert_eq!(fs::metadata(copy).unwrap().permissions().mode() & 0o777, 0o600, "{}", copy.display());
    }
    // A copy that is damaged is none; all of them may go.
    let page = cache.iter().find(|copy| copy.to_string_lossy().contains(".bki")).unwrap();
    let mut bytes = fs::read(page).unwrap();
    bytes[10] ^= 1;
    fs::write(page, bytes).unwrap();
    let (again, gets) = ask("ls -R t/2", 0);
    assert_eq!((again == cold, gets), (true, 1));
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(ask("ls -R t/2", 0).1, 2);
    // A snapshot that is gone there is gone, whatever is kept here; a level 1 looks at the indexes that lie there.
    let index = files_below(&world.volume).into_iter().rfind(|path| path.to_string_lossy().ends_with(".bki")).unwrap();
    let good = fs::read(&index).unwrap();
    fs::remove_file(&index).unwrap();
    ask("ls t/2", exit::INTEGRITY);
    let mut bad = good.clone();
    bad[20] ^= 1;
    fs::write(&index, bad).unwrap();
    world.bk("verify").run().code_is(&[exit::INTEGRITY]);
    fs::write(&index, good).unwrap();
    world.bk("verify").run().ok();
}

#[test]
fn what_is_read_in_order_comes_in_large_requests() {
    let world = World::on_s3("s3-ahead");
    let content = Rng::new(302).noise(24 << 20);
    fs::write(world.src.join("big"), &content).unwrap();
    for n in 0..300 {
        fs::write(world.src.join(format!("f{n}")), &content[n * 1000..n * 1000 + 9000]).unwrap();
    }
    let options = "--frame-size 256KiB --part-size 16MiB --threads 2";
    world.bk("snapshot --job t").words(options).arg("-C").arg(&world.src).arg(".").run().ok();
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    for words in ["cat t/1 big", "export t/1", "verify", "verify --data", "restore t/1 --target"] {
        proxy.pass();
        let mut bk = world.bk(words).env("AWS_ENDPOINT_URL", &proxy.endpoint);
        if words.starts_with("restore") {
            bk = bk.arg(world.path("out"));
        }
        let ran = bk.run().ok();
        if words.starts_with("cat") {
            assert!(ran.stdout == content);
        }
        let seen = proxy.seen();
        let gets = seen.iter().filter(|request| request.method == "GET" && request.target.contains("/tree-")).count();
        // About 27 MB in two parts and some hundred frames.
        assert!(gets <= 8, "{words}: {gets} of {seen:?}");
    }
    assert_same(&inventory(&world.src), &inventory(&world.path("out")), &crate::roundtrip::exact(), "restore");
}

#[test]
fn what_is_wrong_is_said_and_no_secret_is_shown() {
    let world = World::on_s3("s3-wrong");
    let no_secret = |ran: Ran| assert!(!ran.said().contains(Server::secret()), "{}", ran.show());
    let wrong = world.bk("list").env("AWS_SECRET_ACCESS_KEY", "wrong").run();
    no_secret(wrong.code_is(&[exit::VOLUME]).says("403").says("credentials"));
    let nobody = world.bk("list").env("AWS_ACCESS_KEY_ID", "nobody").run();
    no_secret(nobody.code_is(&[exit::VOLUME]).says("40"));
    let elsewhere = world.bk("volume create s3://no-such-bucket/x").run();
    no_secret(elsewhere.code_is(&[exit::VOLUME]).says("bucket"));
    let other = format!("{}-other", world.named().into_string().unwrap());
    no_secret(world.bk("list --volume").arg(&other).run().code_is(&[exit::VOLUME]).says("is not a volume"));
    fs::create_dir_all(world.volume.with_file_name("taken")).unwrap();
    fs::write(world.volume.with_file_name("taken").join("a"), "a").unwrap();
    world.bk("volume create s3://bk-test/taken").run().code_is(&[exit::VOLUME]).says("is not empty");
    for bad in ["s3://", "s3://b/../c", "gs://b/c", "file://here"] {
        world.bk("list --volume").arg(bad).run().code_is(&[exit::USAGE]);
    }
    world.bk("list --endpoint localhost:9000").run().code_is(&[exit::USAGE]).says("https://");
    world.bk("list --ca-file /dev/null").run().code_is(&[exit::USAGE]).says("certificate");
    // Nobody listens there, and TLS is not spoken there.
    let quick = |words: &str| world.bk(words).env("BK_TEST_S3_TIMEOUT_MS", "50").run();
    quick("list --endpoint http://127.0.0.1:9").code_is(&[exit::VOLUME]);
    let tls = world.server.as_ref().unwrap().endpoint.replace("http://", "https://");
    no_secret(quick(&format!("list --endpoint {tls}")).code_is(&[exit::VOLUME]));
    // Credentials that nobody gives are not waited for.
    let none = world.bk("list").env("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9");
    let none = none.without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    none.run().code_is(&[exit::VOLUME]).says("no credentials").says("AWS_ACCESS_KEY_ID");
    // What is typed comes before what the environment says.
    let endpoint = world.server.as_ref().unwrap().endpoint.clone();
    let ran = world.bk("list --region us-east-1 --path-style --endpoint").arg(&endpoint);
    ran.env("AWS_ENDPOINT_URL", "http://127.0.0.1:9").env("AWS_REGION", "elsewhere").run().ok();
    // The same volume by its directory's URL.
    Bk::new("volume info --volume").arg(format!("file://{}", world.volume.display())).run().ok();
}

#[test]
fn a_listing_of_many_pages_is_whole() {
    let world = World::on_s3("s3-pages");
    fs::write(world.src.join("f"), "f").unwrap();
    world.snapshot("a", OPTIONS).ok();
    // Runs that were never recorded: 2,400 objects that a sweep must find and delete, three pages and bulk deletes of them.
    let run = world.volume.join("data/a/01ARZ3NDEKTSV4RRFFQ69G5FAV");
    fs::create_dir_all(&run).unwrap();
    for n in 0..2400 {
        fs::write(run.join(format!("tree-{n:05}.tar.zst")), "x").unwrap();
    }
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    let ran = world.bk("expire --json --sweep-grace 0").env("AWS_ENDPOINT_URL", &proxy.endpoint).run().ok();
    let result = ran.json().pop().unwrap();
    assert_eq!(result["objects"].as_u64(), Some(2400), "{}", ran.show());
    assert!(crate::support::files_below(&run).is_empty());
    let seen = proxy.seen();
    assert!(seen.iter().filter(|request| request.is_list()).count() >= 6, "{}", seen.len());
    assert_eq!(seen.iter().filter(|request| request.method == "POST").count(), 3);
    assert!(seen.len() < 30, "{}", seen.len());
    world.bk("verify --data").run().ok();
}
