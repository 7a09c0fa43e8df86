//! Streams: standard input and the output of a command, kept only when their end was good.

use std::fs;

use crate::support::proxy::{Proxy, Request};
use crate::support::rng::Rng;
use crate::support::tools::{need, shell_ok};
use crate::support::{Bk, World, exit, sorted};

fn cat(world: &World, snapshot: &str, stream: &str) -> Vec<u8> {
    world.bk("cat").arg(snapshot).arg("--stream").arg(stream).run().ok().stdout
}

#[test]
fn standard_input_comes_back_whole() {
    let world = World::new("stdin");
    let dump = Rng::new(50).prose(9_000_000);
    for (n, options) in ["", "--compression bzip2:9", "--compression none", "--frame-size 4KiB --part-size 64KiB"]
        .into_iter()
        .enumerate()
    {
        world.bk("snapshot --job db --stdin dump.sql").words(options).small().stdin(dump.clone()).run().ok();
        let name = format!("db/{}", n + 1);
        assert!(cat(&world, &name, "dump.sql") == dump, "{options}");
        let ran = world.bk("cat --stream dump.sql --range 4194300:100").arg(&name).run().ok();
        assert!(ran.stdout == dump[4_194_300..4_194_400], "{options}");
    }
    world.bk("verify --data").run().ok();
}

#[test]
fn stock_tools_read_a_stream() {
    if !need("stock_tools_read_a_stream", &["zstd", "bzip2", "lbzip2"]) {
        return;
    }
    let world = World::new("stock");
    let dump = [Rng::new(51).prose(2_000_000), Rng::new(52).noise(500_000)].concat();
    for (codec, tool) in [("zstd:3", "zstd -dc"), ("bzip2:9", "bzip2 -dc"), ("bzip2:2", "lbzip2 -dc"), ("none", "cat")]
    {
        world
            .bk("snapshot --job db --stdin d --frame-size 64KiB --part-size 128KiB --compression")
            .arg(codec)
            .small()
            .stdin(dump.clone())
            .run()
            .ok();
        let parts = world.parts("db", "stream-d-");
        assert!(parts.len() > 3, "{codec}: {parts:?}");
        let run = parts[0].parent().unwrap().to_owned();
        let output = shell_ok(&format!(r#"cat "$1"/stream-d-* | {tool}"#), &[&run]);
        // A seek table is a skippable frame: only zstd has it, and `none` must stay bare bytes.
        assert!(output.stdout == dump, "{codec}: {} bytes of {}", output.stdout.len(), dump.len());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{codec}");
        for part in parts {
            shell_ok(&format!(r#"{tool} < "$1" > /dev/null"#), &[&part]);
        }
    }
}

#[test]
fn a_command_that_succeeds_is_kept() {
    let world = World::new("command");
    world.bk("snapshot --job db -- sh -c").arg("echo one; echo to-stderr >&2; echo two").run().ok();
    assert_eq!(cat(&world, "db/1", "db"), b"one\ntwo\n");
    world.bk("snapshot --job db --stream-name dump.sql -- printf").arg("a b").run().ok();
    assert_eq!(cat(&world, "db/latest", "dump.sql"), b"a b");
    assert_eq!(cat(&world, "db/latest~1", "db"), b"one\ntwo\n");
}

#[test]
fn a_command_that_fails_leaves_no_snapshot() {
    let world = World::new("failing");
    let commands = [
        "exit 3",
        "echo some; exit 3",
        "head -c 100000 /dev/urandom; kill -9 $$",
        "head -c 20000000 /dev/zero; exit 1",
        "exec 1>&-; exit 1",
        "true",
    ];
    for command in commands {
        world.bk("snapshot --job db -- sh -c").arg(command).run().code_is(&[exit::ERROR]);
        assert_eq!(world.list(), Vec::<String>::new(), "{command}");
    }
    world.bk("snapshot --job db -- /no/such/program").run().code_is(&[exit::ERROR]).says("/no/such/program");
    world.bk("verify").run().ok();
    world.bk("snapshot --job db -- echo good").run().ok();
    assert_eq!(world.list().len(), 1);
    assert_eq!(cat(&world, "db/latest", "db"), b"good\n");
}

#[test]
fn streams_are_named_where_nothing_was_asked_for() {
    let world = World::new("named");
    fs::write(world.src.join("f"), "in a file").unwrap();
    world.bk("snapshot --job one --stdin dump.sql").stdin("all of it").run().ok();
    // The only one needs no name, in whole or in part.
    world.bk("ls one/1").run().ok().says("stream dump.sql, 9 B").says("bk cat one/1 --stream dump.sql");
    assert_eq!(world.bk("cat one/1").run().ok().stdout, b"all of it");
    assert_eq!(world.bk("cat one/1 --range 4:2").run().ok().stdout, b"of");
    let listed = world.bk("ls --json one/1").run().ok().json().pop().unwrap();
    assert_eq!(listed["streams"][0]["name"], "dump.sql", "{listed}");
    // Of a tree there is none.
    world.bk("snapshot --job tree -C").arg(&world.src).arg(".").run().ok();
    world.bk("cat tree/1").run().code_is(&[exit::USAGE]).says("name a PATH").says("no streams");
    assert!(!world.bk("ls tree/1").run().ok().said().contains("stream"));
}

#[test]
fn a_command_that_closes_early_is_waited_for() {
    let world = World::new("early");
    // Output ends first, the failure comes after: it still counts.
    world.bk("snapshot --job db -- sh -c").arg("echo data; exec 1>&-; sleep 0.3; exit 7").run().code_is(&[exit::ERROR]);
    assert!(world.list().is_empty());
    world.bk("snapshot --job db -- sh -c").arg("echo data; exec 1>&-; sleep 0.3; exit 0").run().ok();
    assert_eq!(world.list().len(), 1);
}

#[test]
fn an_empty_stream_is_a_failure() {
    let world = World::new("nothing");
    world.bk("snapshot --job db --stdin dump").stdin("").run().code_is(&[exit::ERROR]).says("empty");
    world.bk("snapshot --job db -- true").run().code_is(&[exit::ERROR]).says("empty");
    assert!(world.list().is_empty());
    world.bk("snapshot --job db --stdin dump").stdin("x").run().ok();
    assert_eq!(cat(&world, "db/latest", "dump"), b"x");
}

#[test]
fn a_run_whose_source_failed_finishes_nothing() {
    let world = World::on_s3("s3-failed-source");
    let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
    let bk = |words: &str| world.bk(words).small().env("AWS_ENDPOINT_URL", &proxy.endpoint);
    let options = "--frame-size 16KiB --part-size 64KiB --compression none";
    // The fifth part is the one that is not full.
    let ends = ["/stream-db-00004", "/index-"];
    let is_end = |request: &&Request| request.method == "PUT" && ends.iter().any(|end| request.target.contains(end));
    for threads in [1, 2, 4] {
        proxy.pass();
        let ran = bk(&format!("snapshot --job db {options} --threads {threads}"));
        let ran = ran.words("-- sh -c").arg("head -c 300000 /dev/urandom; exit 7").run().code_is(&[exit::ERROR]);
        let seen = proxy.seen();
        assert!(!seen.iter().any(|request| is_end(&request)), "{seen:?}\n{}", ran.show());
    }
    proxy.pass();
    bk(&format!("snapshot --job db {options} -- head -c 300000 /dev/urandom")).run().ok();
    assert_eq!(proxy.seen().iter().filter(is_end).count(), 2);
    bk("verify --data").run().ok();
}

#[test]
fn a_slow_stream_arrives_whole() {
    let world = World::new("slow");
    let script = "for n in 1 2 3 4 5; do printf %s $n; sleep 0.05; done";
    world.bk("snapshot --job db -- sh -c").arg(script).run().ok();
    assert_eq!(cat(&world, "db/1", "db"), b"12345");
}

#[test]
fn a_full_volume_stops_the_command() {
    // A command that never ends by itself: bk must end it when it cannot go on.
    let world = World::new("endless");
    fs::create_dir_all(world.volume.join("data")).unwrap();
    let me = "a_full_volume_stops_the_command";
    let Some(mount) = crate::support::tools::Mounted::tmpfs(&world.path("tiny"), "8m") else {
        crate::support::tools::skip(me, "cannot mount");
        return;
    };
    let volume = mount.at.join("v");
    Bk::new("volume create").arg(&volume).run().ok();
    let ran = Bk::new("snapshot --job db --volume").arg(&volume).words("-- cat /dev/urandom").run();
    ran.code_is(&[exit::NO_SPACE]);
    assert!(crate::support::list(&volume).is_empty());
}

#[test]
fn a_block_device_is_a_stream_of_its_size() {
    let me = "a_block_device_is_a_stream_of_its_size";
    if !need(me, &["losetup"]) || !crate::support::tools::need_root(me) {
        return;
    }
    let world = World::new("device");
    let image = world.path("image");
    let bytes = [Rng::new(53).noise(600 * 1024), vec![0; 1 << 20]].concat();
    fs::write(&image, &bytes).unwrap();
    let found = shell_ok(r#"losetup -f --show "$1""#, &[&image]);
    let device = String::from_utf8_lossy(&found.stdout).trim().to_owned();
    let ran = world.bk("snapshot --job disk").arg(&device).run();
    let listed = world.bk("ls disk/1 --json").run();
    shell_ok(r#"losetup -d "$1""#, &[device.as_ref()]);
    ran.ok();
    let run = sorted(&world.volume.join("data/disk")).pop().unwrap();
    let part = sorted(&run).into_iter().find(|p| crate::support::name_of(p).starts_with("stream-")).unwrap();
    let output = shell_ok(r#"zstd -dc "$1""#, &[&part]);
    assert!(output.stdout == bytes, "{}", listed.show());
}
