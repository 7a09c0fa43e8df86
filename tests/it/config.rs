//! Configuration: jobs taken from it, where values come from, what is refused and how that is said.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::support::tools::{Mounted, need_root, skip};
use crate::support::{Bk, Ran, World, exit};

/// A world with a configuration whose volume `main` is the world's.
struct Configured {
    world: World,
    file: PathBuf,
}

impl Configured {
    fn new(name: &str, text: &str) -> Self {
        let world = World::new(name);
        let file = world.path("bk.toml");
        let volume = format!("[volume.main]\nurl = \"{}\"\n", world.named().display());
        let src = world.src.display().to_string();
        fs::write(&file, format!("{text}\n{volume}").replace("SRC", &src)).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(world.src.join("f"), "x").unwrap();
        Self { world, file }
    }

    /// bk with the configuration, and no volume in its environment.
    fn bk(&self, words: &str) -> Bk {
        self.world.bk(words).without("BK_VOLUME").env("BK_CONFIG", &self.file)
    }

    fn add(&self, name: &str, text: &str) {
        let dir = self.file.with_file_name("conf.d");
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
        fs::write(dir.join(name), text).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }

    fn listed(&self) -> Vec<serde_json::Value> {
        let lines = self.bk("list --json").run().ok().json();
        lines.into_iter().filter(|v| v["type"] == "snapshot").collect()
    }
}

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/examples").join(name)
}

#[test]
fn a_job_is_taken_from_the_file() {
    let c = Configured::new(
        "job",
        "node = 'logical'\n[defaults]\nexpire = { 0 = '4w', 1 = '1w' }\n[job.home]\npaths = ['.']\ndirectory = 'SRC'\n\
         exclude = ['*.o']\nlevel = 1\n[job.home.stream.b]\ncommand = ['echo', 'from b']\n[job.home.stream.a]\n\
         command = 'echo $WHO'\nshell = true\nenv = { WHO = 'ann' }",
    );
    fs::write(c.world.src.join("left.o"), "x").unwrap();
    c.bk("snapshot home").run().ok();
    c.bk("snapshot home").run().ok();
    let rows = c.listed();
    assert_eq!((rows[0]["level"].as_u64(), rows[1]["level"].as_u64()), (Some(0), Some(1)), "{rows:?}");
    let weeks = |row: &serde_json::Value| {
        let at = |key: &str| row[key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
        (at("expires_at") - at("taken_at")) / 604_800
    };
    // Level 0 was taken instead of 1: it is kept as long as a level 0.
    assert_eq!((weeks(&rows[0]), weeks(&rows[1])), (4, 1));
    let text = c.bk("ls -R home/latest").run().ok().text();
    assert!(text.contains(" f") && !text.contains("left.o"), "{text}");
    assert_eq!(c.bk("cat home/latest --stream a").run().ok().stdout, b"ann\n");
    assert_eq!(c.bk("cat home/latest --stream b").run().ok().stdout, b"from b\n");
    let record = fs::read_to_string(c.world.volume.join("log/home/00000000000000000001.json")).unwrap_or_default();
    assert!(record.is_empty() || record.contains("\"node\":\"logical\""), "{record}");
    // A flag goes over the file, the environment too.
    c.bk("snapshot home --level 0 --expire never").run().ok();
    c.bk("snapshot home --level 0").env("BK_EXPIRE", "6mo").run().ok();
    let rows = c.listed();
    assert!(rows[2]["expires_at"].is_null() && rows[3]["expires_at"].is_string(), "{rows:?}");
    c.bk("verify home/latest --data").run().ok();
}

#[test]
fn every_verb_finds_the_volume() {
    let c = Configured::new("verbs", "[volume.other]\nurl = 'SRC-none'\n[job.home]\nvolume = 'main'\npaths = ['SRC']");
    c.bk("snapshot home").run().ok();
    let target = c.world.path("back");
    for words in [
        "ls home/1",
        "list home",
        "verify home/1",
        "why home/1",
        "hold home/1",
        "release home/1",
        "expire home --dry-run",
        "diff home/1 home/1",
        "list --volume main",
        "volume info main",
        "export home/1",
    ] {
        c.bk(words).run().ok();
    }
    c.bk("restore home/1 --target").arg(&target).run().ok();
    // Two volumes, none of them the one that is meant by default.
    c.bk("list").run().code_is(&[exit::USAGE]).says("main, other");
    c.bk("list --volume mian").run().code_is(&[exit::USAGE]).says("did you mean `main`");
    // With the volume's place, a broken configuration stands in nobody's way.
    fs::write(&c.file, "this is not TOML").unwrap();
    c.bk("ls home/1 --volume").arg(c.world.named()).run().ok();
    c.bk("ls home/1").run().code_is(&[exit::USAGE]).says("bk.toml:1");
}

#[test]
fn files_beside_it_belong_to_it() {
    let c = Configured::new("confd", "");
    c.add("10-home.toml", &format!("[job.home]\npaths = ['{}']\n", c.world.src.display()));
    c.bk("snapshot home").run().ok();
    c.bk("config show home").run().ok().says("conf.d/10-home.toml:2");
    c.add("20-again.toml", "[job.home]\npaths = ['/etc']\n");
    c.bk("snapshot home")
        .run()
        .code_is(&[exit::USAGE])
        .says("20-again.toml:1: job.home stands in")
        .says("10-home.toml:1");
}

#[test]
fn sets_by_role_and_agents() {
    let c = Configured::new(
        "role",
        "[agent.text.stream.dump]\ncommand = ['echo', 'text']\n[agent.bin.stream.dump]\ncommand = ['echo', 'bin']\n\
         [job.pair]\nper_node = true\nagent = 'text'\npaths = ['SRC/own']\n[job.pair.role.active]\n\
         paths = ['SRC/own', 'SRC/shared']\n[job.pair.role.other]\nstream = {}",
    );
    for name in ["own", "shared"] {
        fs::create_dir(c.world.src.join(name)).unwrap();
        fs::write(c.world.src.join(name).join(format!("in-{name}")), "x").unwrap();
    }
    c.bk("snapshot pair").run().code_is(&[exit::USAGE]).says("--role");
    c.bk("snapshot pair --node n1 --role active").run().ok();
    c.bk("snapshot pair --node n2 --role standby").run().ok();
    c.bk("snapshot pair --node n1 --role active --agent bin").run().ok();
    let names = |snapshot: &str| c.bk("ls -R").arg(snapshot).run().ok().text();
    assert!(names("pair.n1/1").contains("in-shared") && !names("pair.n2/1").contains("in-shared"));
    assert_eq!(c.bk("cat pair.n1/1 --stream dump").run().ok().stdout, b"text\n");
    assert_eq!(c.bk("cat pair.n1/2 --stream dump").run().ok().stdout, b"bin\n");
    c.bk("cat pair.n2/1 --stream dump").run().code_is(&[exit::USAGE]);
    c.bk("snapshot pair --role active --agent bni").run().code_is(&[exit::USAGE]).says("did you mean `bin`");
}

#[test]
fn the_gate_tells_the_role() {
    let c = Configured::new(
        "gate-role",
        "[job.pair]\n[job.pair.gate]\nkind = 'command'\ncommand = ['cat', 'SRC/role']\n[job.pair.role.active]\n\
         paths = ['SRC/f']\n[job.pair.role.other.stream.d]\ncommand = ['echo', 'other']",
    );
    let role =
        |role: &str| fs::write(c.world.src.join("role"), format!("{{\"act\": true, \"role\": \"{role}\"}}\n")).unwrap();
    let state = c.world.path("state");
    let bk = |words: &str| c.bk(words).env("BK_STATE_DIR", &state);
    role("active");
    bk("snapshot pair").run().ok();
    assert!(
        c.bk("ls -R pair/1").run().ok().text().contains(" f") || c.bk("ls -R pair/1").run().ok().text().contains("/f")
    );
    role("standby");
    bk("snapshot pair").run().ok();
    assert_eq!(c.bk("cat pair/latest --stream d").run().ok().stdout, b"other\n");
    bk("snapshot pair --role active").run().ok();
    c.bk("cat pair/latest --stream d").run().code_is(&[exit::USAGE]);
}

/// What a set has goes before what the job has, whoever told the role.
#[test]
fn a_role_has_steps_volume_and_numbers_of_its_own() {
    let c = Configured::new(
        "role-keys",
        "[job.pair]\npaths = ['SRC']\nvolume = 'main'\nmax_hold = '1h'\ngate = { kind = 'command', command = ['cat', 'SRC/role'] }\n\
         [job.pair.role.active]\nvolume = 'two'\nmetrics = 'SRC/../numbers.prom'\ncopy_to = ['main']\n\
         step = [{ name = 'app', enter = ['touch', 'SRC/../entered'], leave = ['touch', 'SRC/../left'] }]\n[job.pair.role.other]",
    );
    let two = c.world.path("two");
    c.add("two.toml", &format!("[volume.two]\nurl = '{}'\n", two.display()));
    c.bk("volume create").arg(&two).run().ok();
    let there = |name: &str| c.world.src.with_file_name(name).exists();
    let state = c.world.path("state");
    let run = |role: &str, words: &str| {
        fs::write(c.world.src.join("role"), format!("{{\"act\": true, \"role\": \"{role}\"}}\n")).unwrap();
        let ran = c.bk(words).env("BK_STATE_DIR", &state).run().ok();
        let seen = ["entered", "left", "numbers.prom"].map(there);
        for name in ["entered", "left", "numbers.prom"] {
            drop(fs::remove_file(c.world.src.with_file_name(name)));
        }
        let listed = |volume: &Path| {
            let lines = Bk::new("list --json --volume").arg(volume).run().ok().json();
            lines.iter().filter(|line| line["type"] == "snapshot").count()
        };
        (seen, listed(&two), listed(Path::new(&c.world.named())), ran)
    };
    let none = run("standby", "snapshot pair");
    assert_eq!((none.0, none.1, none.2), ([false; 3], 0, 1), "{}", none.3.show());
    let told = run("active", "snapshot pair");
    assert_eq!((told.0, told.1, told.2), ([true; 3], 1, 2), "{}", told.3.show());
    let typed = run("standby", "snapshot pair --role active");
    assert_eq!((typed.0, typed.1, typed.2), ([true; 3], 2, 3), "{}", typed.3.show());
    let looked = run("active", "snapshot pair --validate");
    assert_eq!((looked.0, looked.1, looked.2), ([false; 3], 2, 3), "{}", looked.3.show());
    // What holds before the role is known cannot depend on it; nor do paths on where bk is started.
    for (keys, why) in [
        ("[job.x]\npaths = ['/']\nvolume = 'main'\n[job.x.role.a]\nper_node = true", "holds before the role is known"),
        (
            "[job.x]\npaths = ['/']\nvolume = 'main'\n[job.x.role.a]\ngate = { kind = 'lease' }",
            "holds before the role is known",
        ),
        ("[job.x]\npaths = ['/']\nvolume = 'main'\nmetrics = 'x.prom'", "not an absolute path"),
        ("[job.x]\npaths = ['/']\nvolume = 'main'\nmax_hold = '0s'", "no time"),
        ("[job.x]\npaths = ['/']\nvolume = 'main'\noffline = true", "is marked `offline = true`"),
        ("state_dir = 'st'", "not an absolute path"),
    ] {
        c.add("wrong.toml", keys);
        c.bk("config check").run().code_is(&[exit::USAGE]).says(why);
    }
}

#[test]
fn a_dump_that_is_not_sane_is_no_snapshot() {
    let c = Configured::new(
        "sane",
        "[job.db.stream.dump]\ncommand = ['cat', 'SRC/f']\nmin_size = 10\nmax_drop = 50\nend_line = '-- complete'",
    );
    let dump = |len: usize, end: &str| fs::write(c.world.src.join("f"), format!("{}\n{end}", "x".repeat(len))).unwrap();
    dump(1000, "-- complete\n\n");
    c.bk("snapshot db").run().ok();
    for (len, end, why) in [
        (1000, "-- comple", "does not end with the line `-- complete` (it ends with"),
        (100, "-- complete\n", "% less than the"),
        (0, "", "at least 10 B are expected"),
    ] {
        dump(len, end);
        c.bk("snapshot db").run().code_is(&[exit::ERROR]).says("the stream dump").says(why);
        assert_eq!(c.listed().len(), 1, "{len} {end}");
    }
    // Half as long is just enough; what a failed run stored is gone.
    dump(600, "-- complete\n");
    c.bk("snapshot db").run().ok();
    c.bk("verify").run().ok();
    assert_eq!(crate::support::sorted(&c.world.volume.join("data/db")).len(), 2);
}

#[test]
fn a_source_that_is_not_mounted_is_not_empty() {
    let c = Configured::new(
        "guards",
        "[job.a]\npaths = ['SRC']\nmin_files = 3\n[job.b]\npaths = ['SRC']\nrequire_mount = ['SRC']",
    );
    c.bk("snapshot a").run().code_is(&[exit::ERROR]).says("there are 1 files, and at least 3 are expected");
    for n in 0..2 {
        fs::write(c.world.src.join(format!("more{n}")), "x").unwrap();
    }
    c.bk("snapshot a").run().ok();
    c.bk("snapshot b").run().code_is(&[exit::ERROR]).says("nothing is mounted at");
    assert_eq!(c.listed().len(), 1);
    let Some(_mount) = Mounted::tmpfs(&c.world.src, "1m") else {
        skip("a_source_that_is_not_mounted_is_not_empty", "cannot mount");
        return;
    };
    fs::write(c.world.src.join("g"), "x").unwrap();
    c.bk("snapshot b").run().ok();
}

#[test]
fn the_volume_is_the_one_that_is_meant() {
    let c = Configured::new("medium", "[job.home]\npaths = ['SRC']\n");
    let text = fs::read_to_string(&c.file).unwrap();
    let info = c.bk("volume info main --json").run().ok().json().pop().unwrap();
    let id = info["id"].as_str().unwrap();
    fs::write(&c.file, format!("{text}id = '{id}'\n")).unwrap();
    c.bk("snapshot home").run().ok();
    fs::write(&c.file, format!("{text}id = '{}'\n", "0".repeat(32))).unwrap();
    c.bk("snapshot home").run().code_is(&[exit::VOLUME]).says(id).says("is another volume");
    if c.world.server.is_none() {
        fs::write(&c.file, format!("{text}require_mount = true\n")).unwrap();
        c.bk("snapshot home").run().code_is(&[exit::VOLUME]).says("nothing is mounted at");
        fs::write(&c.file, format!("{text}require_mount = '/proc'\n")).unwrap();
        c.bk("snapshot home").run().code_is(&[exit::VOLUME]).says("does not lie in what is mounted at /proc");
        fs::write(&c.file, format!("{text}min_free = '900TiB'\n")).unwrap();
        c.bk("snapshot home").run().code_is(&[exit::NO_SPACE]);
    }
    fs::write(&c.file, text).unwrap();
    assert_eq!(c.listed().len(), 1);
}

#[test]
fn a_stream_gets_no_secrets_of_bk() {
    let c = Configured::new(
        "secrets",
        "[job.a.stream.env]\ncommand = ['env']\n[job.b.stream.env]\ncommand = ['env']\npass_env = ['AWS_CANARY']",
    );
    let with = |bk: Bk| bk.env("AWS_CANARY", "canary1").env("BK_S3_SECRET", "canary2").env("PGPASSWORD", "hunter");
    with(c.bk("snapshot a")).run().ok();
    with(c.bk("snapshot b")).run().ok();
    with(c.bk("snapshot --job c -- env")).run().ok();
    with(c.bk("snapshot --job d --pass-env AWS_CANARY -- env")).run().ok();
    let env = |job: &str, stream: &str| {
        String::from_utf8(c.bk("cat --stream").arg(stream).arg(format!("{job}/1")).run().ok().stdout).unwrap()
    };
    for (job, stream, is_passed) in [("a", "env", false), ("b", "env", true), ("c", "c", false), ("d", "d", true)] {
        let env = env(job, stream);
        assert_eq!(env.contains("canary1"), is_passed, "{job}");
        assert!(!env.contains("canary2") && env.contains("PGPASSWORD=hunter"), "{job}");
    }
}

#[test]
fn what_others_can_write_is_not_read() {
    let c = Configured::new("modes", "[job.home]\npaths = ['SRC']");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    mode(&c.file, 0o620);
    c.bk("snapshot home").run().code_is(&[exit::USAGE]).says("can be written by others (mode 0620)").says("chmod go-w");
    mode(&c.file, 0o644);
    c.bk("config check").run().ok();
    let keys = c.world.path("keys");
    fs::write(&keys, "aws_access_key_id = AK\naws_secret_access_key = canary\n").unwrap();
    c.add(
        "s3.toml",
        &format!(
            "[volume.s3]\nurl = 's3://bucket/x'\ncredentials_file = '{}'\n[defaults]\nvolume = 'main'",
            keys.display()
        ),
    );
    mode(&keys, 0o640);
    let ran = c
        .bk("config check")
        .run()
        .code_is(&[exit::USAGE])
        .says("others can read or write")
        .says("(mode 0640)")
        .says("chmod 600");
    assert!(!ran.said().contains("canary"));
    mode(&keys, 0o600);
    c.bk("config check").run().ok();
    assert!(!c.bk("config show home -v").run().ok().said().contains("canary"));
    if need_root("what_others_can_write_is_not_read") {
        std::os::unix::fs::chown(&c.file, Some(65_534), None).unwrap();
        c.bk("config check").run().code_is(&[exit::USAGE]).says("belongs to user 65534");
    }
}

#[test]
fn shown_values_name_their_place_and_no_secrets() {
    let c = Configured::new(
        "show",
        "[defaults]\nexpire = '4w'\n[job.home]\npaths = ['SRC']\n[job.home.stream.d]\ncommand = ['x']\nenv = { PW = 'canary' }",
    );
    let ran = c.bk("config show home").run().ok();
    let text = ran.text();
    assert!(text.contains("expire = \"4w\"  # ") && text.contains("bk.toml:2, defaults"), "{text}");
    assert!(text.contains("env = { PW = … }") && !text.contains("canary"), "{text}");
    c.bk("config show").run().ok().says("job home  on main");
    c.bk("config show hoem").run().code_is(&[exit::USAGE]).says("did you mean `home`");
}

#[test]
fn limits_of_a_volume_stand_in_the_file() {
    let c = Configured::new("limits", "[job.home]\npaths = ['SRC']");
    let text = fs::read_to_string(&c.file).unwrap();
    // What cannot be made smaller takes its time: what is let through at once is a second's worth at most.
    let mut rng = crate::support::rng::Rng::new(5);
    fs::write(c.world.src.join("noise"), rng.noise(600_000)).unwrap();
    fs::write(&c.file, format!("{text}limit_upload = '200KiB'\nlimit_download = '100MiB'\n")).unwrap();
    let took = |words: &str| {
        let started = std::time::Instant::now();
        c.bk(words).run().ok();
        started.elapsed()
    };
    // At this rate it cannot be quicker; how long it takes at most is not asked.
    assert!(took("snapshot home") > std::time::Duration::from_secs(1), "the limit of the file does not hold");
    let shown = c.bk("config show").run().ok();
    let shown = shown.says("limit_upload = \"200KiB\"  # ").says("limit_download");
    assert!(shown.text().contains("bk.toml:"), "{}", shown.show());
    for (key, says) in [
        ("limit_upload = '5'", "volume.main.limit_upload: limit_upload: 5 is below 1024 bytes a second"),
        ("limit_upload = 'fast'", "limit_upload"),
        ("cache_size = '1MiB'", "this is for volumes on S3"),
        ("exclusive_writer = true", "this is for volumes on S3"),
    ] {
        fs::write(&c.file, format!("{text}{key}\n")).unwrap();
        if c.world.server.is_none() {
            c.bk("config check").run().code_is(&[exit::USAGE]).says(says);
        }
    }
    fs::write(&c.file, format!("{text}\n[volume.far]\nurl = 's3://bucket/x'\ncache_size = '2GiB'\nexclusive_writer = true\n[defaults]\nvolume = 'main'\n"))
        .unwrap();
    c.bk("config check").run().ok();
    c.bk("config show").run().ok().says("cache_size = \"2GiB\"").says("exclusive_writer = true");
}

#[test]
fn the_first_configuration_is_written_and_passes() {
    let world = World::new("init");
    let file = world.path("etc/bk.toml");
    Bk::new("config init").arg(&file).run().ok();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    Bk::new("config check --config").arg(&file).run().ok();
    let before = fs::read(&file).unwrap();
    Bk::new("config init --config").arg(&file).run().code_is(&[exit::USAGE]).says("stays");
    assert_eq!(fs::read(&file).unwrap(), before);
    Bk::new("config check").run().code_is(&[exit::USAGE]).says("bk config init");
    Bk::new("config check --config /no/such/file").run().code_is(&[exit::USAGE]).says("/no/such/file");
}

#[test]
fn the_examples_pass() {
    let mut seen = 0;
    for file in crate::support::sorted(&example("")) {
        if file.extension().is_some_and(|ext| ext == "toml") {
            // What is checked out may be writable by a group.
            let world = World::new("example");
            let copy = world.path("bk.toml");
            fs::copy(&file, &copy).unwrap();
            fs::set_permissions(&copy, fs::Permissions::from_mode(0o600)).unwrap();
            Bk::new("config check --config").arg(&copy).run().ok();
            seen += 1;
        }
    }
    assert!(seen >= 6, "{seen}");
}

#[test]
fn the_log_says_what_was_said() {
    let c = Configured::new("log", "log = { file = 'SRC-log', max_size = 300, keep = 2 }\n[job.home]\npaths = ['SRC']");
    let log = PathBuf::from(format!("{}-log", c.world.src.display()));
    for _ in 0..8 {
        c.bk("snapshot home --quiet").run().ok();
    }
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("snapshot home/8 level 0") && text.contains("Z bk["), "{text}");
    assert_eq!(log.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let aside = |n: u32| PathBuf::from(format!("{}.{n}", log.display())).exists();
    assert!(aside(1) && aside(2) && !aside(3));
    // Where it cannot be written there is still a snapshot.
    let ran = c.bk("snapshot home --log /no/such/dir/log").run().ok();
    ran.says("cannot write the log");
    let typed = c.world.path("typed");
    c.bk("snapshot home --log").arg(&typed).words("--role x").run().ok();
    let typed = c.world.path("second");
    c.bk("snapshot --job j --log").arg(&typed).words("-- sh -c").arg("exit 3 # canary").run().code_is(&[exit::ERROR]);
    let text = fs::read_to_string(&typed).unwrap();
    assert!(text.contains("(exit 1)") && !text.contains("canary"), "{text}");
    c.bk("snapshot home -v").run().ok().says("on volume");
}

/// A file of cases: `=== name`, the configuration, `---`, what bk says. `BK_TEST_UPDATE=1` writes what it says now.
#[test]
fn mistakes_are_told_with_file_line_and_key() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/mistakes.txt");
    let text = fs::read_to_string(&path).unwrap();
    let world = World::new("mistakes");
    let file = world.path("bk.toml");
    let (mut now, mut wrong, mut count) = (String::new(), Vec::new(), 0);
    for case in text.split("=== ").skip(1) {
        let (name, rest) = case.split_once('\n').unwrap();
        let (toml, expected) = rest.split_once("---\n").unwrap();
        fs::write(&file, toml).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let ran: Ran = Bk::new("config check --config").arg(&file).run();
        assert_eq!(ran.code(), exit::USAGE, "{name}\n{}", ran.show());
        let said = String::from_utf8_lossy(&ran.stderr).replace(&file.display().to_string(), "bk.toml");
        now += &format!("=== {name}\n{toml}---\n{said}");
        count += 1;
        if said != expected {
            wrong.push(format!("{name}\n  expected:\n{expected}  said:\n{said}"));
        }
    }
    if std::env::var_os("BK_TEST_UPDATE").is_some() {
        fs::write(&path, now).unwrap();
        return;
    }
    assert!(count >= 20, "{count} mistakes");
    assert!(wrong.is_empty(), "{}\nBK_TEST_UPDATE=1 writes what is said now into {}", wrong.join("\n"), path.display());
}

/// The keys a table has, by what it says when it meets one that is none.
fn keys<T: serde::de::DeserializeOwned>() -> Vec<String> {
    let said = toml::from_str::<T>("no-such-key = 0").err().unwrap().message().to_owned();
    let mut keys: Vec<String> = said.split('`').skip(3).step_by(2).map(str::to_owned).collect();
    keys.sort();
    keys
}

#[test]
fn the_documentation_names_every_key_and_no_other() {
    use bk::config::{gate, keys as typed, runbook, step};
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
    let text = fs::read_to_string(path).unwrap();
    let documented = |heading: &str| {
        let rest = text.split_once(&format!("\n## {heading}\n")).unwrap_or_else(|| panic!("no section {heading}")).1;
        let section = rest.split("\n## ").next().unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
        let mut keys: Vec<String> = rows.map(|(key, _)| key.to_owned()).collect();
        keys.sort();
        keys
    };
    assert_eq!(documented("The file"), keys::<typed::FileText>());
    assert_eq!(documented("`[log]`"), keys::<typed::LogText>());
    assert_eq!(documented("`[volume.NAME]`"), keys::<typed::VolumeText>());
    assert_eq!(documented("`[job.NAME]`"), keys::<typed::JobText>());
    assert_eq!(documented("`[job.NAME.stream.NAME]`"), keys::<typed::StreamText>());
    assert_eq!(documented("`[job.NAME.gate]`"), keys::<gate::GateText>());
    assert_eq!(documented("`[[job.NAME.step]]`"), keys::<step::StepText>());
    assert_eq!(documented("`[job.NAME.check]`"), keys::<typed::CheckText>());
    assert_eq!(documented("`[job.NAME.drill]`"), keys::<typed::DrillText>());
    assert_eq!(documented("`[[job.NAME.runbook]]`"), keys::<runbook::Action>());
}
