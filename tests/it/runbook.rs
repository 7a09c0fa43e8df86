//! `bk restore --runbook` and `bk drill`: what is asked, refused and told; commands that do not read their stream; what a drill finds.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use rustix::process::Signal;

use crate::support::rng::Rng;
use crate::support::tools::{Mounted, need_root, shell_ok, skip};
use crate::support::{Bk, World, exit, files_below, sorted};

/// A world with a configured job `shop` of a tree and a stream, with one snapshot.
struct Shop {
    world: World,
    file: PathBuf,
}

impl Shop {
    /// `more` follows the job; `WORLD` in it is the world's directory.
    fn new(more: &str) -> Self {
        let world = World::new("runbook");
        let dump = Rng::new(3).noise(3_000_000);
        fs::write(world.path("dump"), &dump).unwrap();
        fs::create_dir(world.src.join("sub")).unwrap();
        for name in ["a", "sub/b", "sub/c"] {
            fs::write(world.src.join(name), format!("content of {name}")).unwrap();
        }
        std::os::unix::fs::symlink("a", world.src.join("link")).unwrap();
        fs::hard_link(world.src.join("a"), world.src.join("sub/hard")).unwrap();
        let file = world.path("bk.toml");
        let shop = Self { world, file };
        shop.configure(more);
        shop.bk("snapshot shop").run().ok();
        shop
    }

    fn configure(&self, more: &str) {
        let dir = self.world.path("").display().to_string();
        let dir = dir.trim_end_matches('/');
        let text = format!(
            "state_dir = 'WORLD/bk-state'\n[volume.main]\nurl = '{}'\n[job.shop]\npaths = ['.']\ndirectory = 'WORLD/src'\n\
             [job.shop.stream.dump]\ncommand = ['cat', 'WORLD/dump']\n{more}",
            self.world.named().display()
        );
        fs::write(&self.file, text.replace("WORLD", dir)).unwrap();
        fs::set_permissions(&self.file, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn bk(&self, words: &str) -> Bk {
        self.world.bk(words).without("BK_VOLUME").env("BK_CONFIG", &self.file)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.world.path(name)).unwrap_or_default()
    }
}

const RESTORE: &str = "[[job.shop.runbook]]\nname = 'note'\nenter = 'echo enter >> WORLD/log'\nleave = 'echo leave $BK_RESULT >> WORLD/log'\nshell = true\n\
    [[job.shop.runbook]]\nname = 'files'\nrestore = ['sub']\nexclude = ['/sub/c']\ntarget = 'WORLD/back'\n";

#[test]
fn it_asks_before_it_overwrites() {
    let shop = Shop::new(RESTORE);
    shop.bk("restore --runbook shop").run().code_is(&[exit::USAGE]).says("nobody can be asked").says("--yes");
    shop.bk("restore --runbook shop").stdin("shop\n").run().code_is(&[exit::USAGE]);
    assert!(shop.text("log").is_empty() && !shop.world.path("back").exists());
    let plan = shop.bk("restore --runbook shop --dry-run").run().ok();
    let plan =
        plan.says("from shop/1, level 0").says("restore sub below").says("but for /sub/c").says("left: `echo leave");
    assert!(shop.text("log").is_empty() && !shop.world.path("back").exists(), "{}", plan.show());
    let rows = shop.bk("restore --runbook shop --dry-run --json").run().ok().json();
    assert_eq!((rows.len(), &rows[1]["name"]), (3, &"files".into()));
    shop.bk("restore --runbook shop --yes").run().ok().says("restored shop/1");
    assert_eq!(shop.text("log"), "enter\nleave done\n");
    assert_eq!(shop.text("back/sub/b"), "content of sub/b");
    assert!(!shop.world.path("back/sub/c").exists() && !shop.world.path("back/a").exists());
    for words in [
        "restore shop/1 --runbook shop --yes",
        "restore --runbook shop --yes --target /x",
        "restore --yes shop/1 --target /x",
        "restore --runbook shpo --yes",
        "restore --runbook shop --yes --snapshot shop",
        "restore",
    ] {
        shop.bk(words).run().code_is(&[exit::USAGE]);
    }
    assert_eq!(shop.text("log"), "enter\nleave done\n");
}

/// On a terminal the job's name is the answer.
#[test]
fn on_a_terminal_the_answer_is_the_name() {
    let me = "on_a_terminal_the_answer_is_the_name";
    if !crate::support::tools::need(me, &["python3"]) {
        return;
    }
    let shop = Shop::new(RESTORE);
    let script = "import os, pty, sys\n\
        pid, fd = pty.fork()\n\
        if pid == 0: os.execv(sys.argv[2], sys.argv[2:])\n\
        said = b''\n\
        while b'to go on: ' not in said:\n    said += os.read(fd, 4096)\n\
        os.write(fd, sys.argv[1].encode() + b'\\n')\n\
        try:\n    while True:\n        said = os.read(fd, 4096)\n        if not said: break\nexcept OSError: pass\n\
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))";
    for (answer, code, log) in [("yes", 1, ""), ("", 1, ""), ("shop", 0, "enter\nleave done\n")] {
        let python = std::ffi::OsStr::new("python3");
        let ran = shop
            .world
            .bk_under(&[python, "-c".as_ref(), script.as_ref(), answer.as_ref()], "restore --runbook shop")
            .without("BK_VOLUME")
            .env("BK_CONFIG", &shop.file)
            .run();
        assert_eq!((ran.code(), shop.text("log").as_str()), (code, log), "{answer}\n{}", ran.show());
    }
}

/// A restore that was still while a run of another node took its place restores nothing over what that one reads.
#[test]
fn a_restore_that_lost_its_lease_goes_no_further() {
    let shop = Shop::new(&RESTORE.replace(
        "enter = 'echo enter >> WORLD/log'",
        "enter = 'touch WORLD/at; while [ ! -e WORLD/go ]; do sleep 0.05; done'",
    ));
    let quick = |bk: Bk| bk.env("BK_TEST_LEASE_MS", "2400");
    let restore = quick(shop.bk("restore --runbook shop --yes")).spawn();
    let wait_for = |name: &str| {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(120);
        while !shop.world.path(name).exists() {
            assert!(std::time::Instant::now() < end, "no {name}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    wait_for("at");
    restore.signal(Signal::STOP);
    let dir = shop.world.path("").display().to_string();
    let script = format!("touch {dir}/other; while [ ! -e {dir}/other-goes ]; do sleep 0.05; done; echo dump");
    let other = || quick(shop.world.bk("snapshot --job shop --node n2 -- sh -c").arg(&script)).spawn();
    let mut taken = other();
    while !shop.world.path("other").exists() {
        // Till the lease has run out it gives way.
        if taken.child.try_wait().unwrap().is_some() {
            taken = other();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    fs::write(shop.world.path("go"), "").unwrap();
    restore.signal(Signal::CONT);
    let ran = restore.finish().code_is(&[exit::LOST]);
    fs::write(shop.world.path("other-goes"), "").unwrap();
    taken.finish().ok();
    assert_eq!(shop.text("log"), "leave lost\n", "{}", ran.show());
    assert!(!shop.world.path("back").exists(), "{}", ran.show());
}

#[test]
fn what_the_snapshot_must_hold_is_looked_for_first() {
    for (action, says) in [
        ("restore = ['nowhere']", "there is no `nowhere` in snapshot shop/1"),
        ("stream = 'other'\ninto = ['cat']", "there is no stream other in snapshot shop/1"),
    ] {
        let more = format!("{RESTORE}[[job.shop.runbook]]\nname = 'last'\n{action}\n");
        let shop = Shop::new(&more);
        let ran = shop.bk("restore --runbook shop --yes").run().code_is(&[exit::USAGE]).says(says).says("action last");
        assert!(shop.text("log").is_empty() && !shop.world.path("back").exists(), "{}", ran.show());
    }
    let shop = Shop::new("");
    shop.bk("restore --runbook shop --yes").run().code_is(&[exit::USAGE]).says("has no runbook");
}

#[test]
fn the_snapshot_is_chosen() {
    let shop = Shop::new(&RESTORE.replace("restore = ['sub']\nexclude = ['/sub/c']", "restore = []"));
    fs::write(shop.world.src.join("a"), "new content").unwrap();
    shop.bk("snapshot shop --level 1").run().ok();
    shop.bk("restore --runbook shop --yes").run().ok().says("restored shop/2");
    assert_eq!(shop.text("back/a"), "new content");
    shop.bk("restore --runbook shop --yes --snapshot shop/latest~1").run().ok().says("restored shop/1");
    assert_eq!(shop.text("back/a"), "content of a");
    shop.bk("restore --runbook shop --yes --snapshot shop/9").run().code_is(&[exit::USAGE]);
}

fn stream(line: &str) -> String {
    let note = RESTORE.split("[[job.shop.runbook]]\nname = 'files'").next().unwrap();
    format!("{note}[[job.shop.runbook]]\nname = 'dump'\nstream = 'dump'\nshell = true\n{line}\n")
}

#[test]
fn a_stream_goes_straight_into_its_command() {
    let shop = Shop::new(&stream("into = 'cat > WORLD/given; env > WORLD/env; yes some output | head -c 300000'"));
    shop.bk("restore --runbook shop --yes").env("PGPASSWORD", "canary").run().ok();
    assert!(fs::read(shop.world.path("given")).unwrap() == fs::read(shop.world.path("dump")).unwrap());
    let env = shop.text("env");
    for line in ["BK_JOB=shop", "BK_SNAPSHOT=shop/1", "BK_STEP=dump", "BK_PHASE=stream"] {
        assert!(env.lines().any(|one| one == line), "{line} is not in {env}");
    }
    assert!(!env.contains("canary"));
}

#[test]
fn a_command_that_does_not_read_its_stream_is_told() {
    for (line, says) in [
        ("into = 'exit 0'", "did not read all of the stream"),
        ("into = 'head -c 1000 > WORLD/given'", "did not read all of the stream"),
        ("into = 'head -c 2999000 > WORLD/given'", "did not read"),
        ("into = 'cat > WORLD/given; exit 3'", "exited with 3"),
        ("into = 'head -c 5 >&2; echo cannot connect >&2; exit 1'", "cannot connect"),
        ("into = 'exec <&-; sleep 1; exit 0'", "did not read"),
        ("into = 'head -c 1000 > WORLD/given; kill -9 $$'", "signal 9"),
        ("into = 'sleep 1000'\ntimeout = '1s'", "took longer than 1s"),
        ("into = 'cat > WORLD/given; sleep 1000'\ntimeout = '1s'", "took longer than 1s"),
        ("into = '/not/there'", "exited with 127"),
    ] {
        let shop = Shop::new(&stream(line));
        let ran = shop.bk("restore --runbook shop --yes --json").run().code_is(&[7]).says(says).says("action dump");
        let result = ran.json().pop().unwrap();
        assert_eq!((&result["type"], &result["outcome"]), (&"error".into(), &"step-failed".into()), "{line}");
        assert_eq!(shop.text("log"), "enter\nleave step-failed\n", "{line}\n{}", ran.show());
    }
    // One that fits into a pipe is found unread, too.
    let shop = Shop::new(&stream("into = 'exit 0'"));
    fs::write(shop.world.path("dump"), "little").unwrap();
    shop.bk("snapshot shop").run().ok();
    shop.bk("restore --runbook shop --yes").run().code_is(&[7]).says("did not read the last 6 B of 6 B");
    shop.configure(&stream("into = 'head -c 5 > /dev/null'"));
    shop.bk("restore --runbook shop --yes").run().code_is(&[7]).says("did not read the last 1 B");
}

/// A command must not take a part of the stream for all of it.
#[test]
fn a_damaged_stream_ends_its_command_first() {
    let shop = Shop::new(&stream("into = 'cat > WORLD/given && touch WORLD/believed'"));
    let part = files_below(&shop.world.volume.join("data"))
        .into_iter()
        .find(|path| path.display().to_string().contains("stream-dump"));
    let mut bytes = fs::read(part.as_ref().unwrap()).unwrap();
    let at = bytes.len() * 2 / 3;
    bytes[at] ^= 1;
    fs::set_permissions(part.as_ref().unwrap(), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(part.unwrap(), bytes).unwrap();
    shop.bk("restore --runbook shop --yes").run().code_is(&[exit::INTEGRITY]).says("digest").says("was ended");
    assert!(!shop.world.path("believed").exists());
    assert_eq!(shop.text("log"), "enter\nleave failed\n");
}

#[test]
fn a_signal_stops_it_and_all_is_left() {
    let shop = Shop::new(&stream("into = 'touch WORLD/at; sleep 1000; touch WORLD/believed'"));
    let running = shop.bk("restore --runbook shop --yes").spawn();
    while !shop.world.path("at").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    running.signal(Signal::TERM);
    running.finish().code_is(&[143]);
    assert!(!shop.world.path("believed").exists());
    assert_eq!(shop.text("log"), "enter\nleave interrupted\n");
}

#[test]
fn runs_of_the_job_and_its_restore_keep_away_from_each_other() {
    let shop =
        Shop::new(&stream("into = 'cat > WORLD/given; touch WORLD/at; while [ ! -e WORLD/go ]; do sleep 0.05; done'"));
    let running = shop.bk("restore --runbook shop --yes").spawn();
    while !shop.world.path("at").exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // On this machine by the lock, on another by the lease.
    shop.bk("restore --runbook shop --yes").run().code_is(&[exit::LOST]).says("is at work on this node");
    shop.bk("snapshot shop").run().ok().says("at work");
    let elsewhere = shop.world.path("state-elsewhere");
    shop.bk("restore --runbook shop --yes --state-dir")
        .arg(&elsewhere)
        .run()
        .code_is(&[exit::LOST])
        .says("another run of shop");
    fs::write(shop.world.path("go"), "").unwrap();
    running.finish().ok();
    shop.bk("snapshot shop").run().ok().says("shop/2");
}

/// From a medium that cannot be written to there is no lease, and a restore all the same.
#[test]
fn a_medium_that_is_read_only_is_restored_from() {
    let me = "a_medium_that_is_read_only_is_restored_from";
    if !need_root(me) {
        return;
    }
    let shop = Shop::new(RESTORE);
    if shop.world.server.is_some() {
        skip(me, "the volume is on S3");
        return;
    }
    let Some(disk) = Mounted::tmpfs(&shop.world.path("disk"), "64m") else {
        skip(me, "cannot mount a tmpfs");
        return;
    };
    shell_ok(r#"cp -a "$1" "$2/volume" && mount -o remount,ro "$2""#, &[&shop.world.volume, &disk.at]);
    let text = fs::read_to_string(&shop.file).unwrap();
    let moved = format!("url = '{}'", disk.at.join("volume").display());
    fs::write(&shop.file, text.replace(&format!("url = '{}'", shop.world.volume.display()), &moved)).unwrap();
    shop.bk("restore --runbook shop --yes").run().ok().says("no lease is taken").says("restored shop/1");
    assert_eq!(shop.text("back/sub/b"), "content of sub/b");
    // A drill passes, but cannot be noted there.
    fs::create_dir(shop.world.path("scratch")).unwrap();
    let ran = shop.bk("drill shop --scratch").arg(shop.world.path("scratch")).run();
    let ran = ran.says("drill of shop/1 passed").says("cannot be noted");
    assert_eq!(ran.code(), exit::VOLUME, "{}", ran.show());
}

#[test]
fn steps_follow_by_how_it_ended() {
    let after = "[[job.shop.runbook]]\nname = 'glad'\non = 'success'\nrun = 'cat > WORLD/glad'\nshell = true\n\
        [[job.shop.runbook]]\nname = 'sad'\non = 'failure'\nrun = 'cat > WORLD/sad'\nshell = true\n";
    let shop = Shop::new(&format!("{RESTORE}{after}"));
    shop.bk("restore --runbook shop --yes").run().ok();
    let told: serde_json::Value = serde_json::from_str(&shop.text("glad")).unwrap();
    assert_eq!((&told["snapshot"], &told["outcome"]), (&"shop/1".into(), &"done".into()));
    assert!(shop.text("sad").is_empty());
    shop.configure(&format!("{RESTORE}[[job.shop.runbook]]\nname = 'bad'\nrun = ['false']\n{after}"));
    fs::remove_file(shop.world.path("glad")).unwrap();
    let ran = shop.bk("restore --runbook shop --yes").run().code_is(&[7]).says("step bad");
    let told: serde_json::Value = serde_json::from_str(&shop.text("sad")).unwrap();
    assert_eq!((&told["outcome"], &told["exit"]), (&"step-failed".into(), &7.into()), "{}", ran.show());
    assert!(shop.text("glad").is_empty());
}

fn scratch(shop: &Shop) -> PathBuf {
    let dir = shop.world.path("scratch");
    fs::create_dir_all(&dir).unwrap();
    dir
}

const DRILL: &str = "[job.shop.check]\nmax_drill_age = '35d'\n[job.shop.drill]\nscratch = 'WORLD/scratch'\nshell = true\n\
    command = 'stat -c %a \"$BK_DRILL_DIR\" > WORLD/mode; cp -a \"$BK_DRILL_TREE\" WORLD/seen; cmp \"$BK_DRILL_STREAMS/dump\" WORLD/dump'\n";

#[test]
fn a_drill_restores_compares_tries_and_is_noted() {
    let shop = Shop::new(DRILL);
    let dir = scratch(&shop);
    shop.bk("check shop").run().code_is(&[1]).says("was never restored by a drill");
    fs::write(shop.world.src.join("sub/b"), "changed").unwrap();
    shop.bk("snapshot shop --level 1").run().ok();
    let ran = shop.bk("drill shop --json").run().ok();
    let result = ran.json().pop().unwrap();
    assert_eq!(
        (&result["outcome"], &result["snapshot"], &result["exit"]),
        (&"passed".into(), &"shop/2".into(), &0.into())
    );
    assert!(result["entries"].as_u64() >= Some(7) && result["bytes"].as_u64() > Some(3_000_000), "{result}");
    assert_eq!(shop.text("mode").trim(), "700");
    assert_eq!(shop.text("seen/sub/b"), "changed");
    assert!(sorted(&dir).is_empty(), "{:?}", sorted(&dir));
    shop.bk("check shop").run().ok().says("a drill of shop/2 passed").says("'shop_drill_passed'=1");
    shop.bk("check shop --warn-drill 1min --json").run().ok();
    shop.bk("check shop").env("BK_CONFIG", "").env("BK_VOLUME", shop.world.named()).run().ok().says("passed");
    // An older one, without a configuration.
    let plain = Bk::new("drill shop/1 --scratch").arg(&dir).env("BK_CONFIG", "").env("BK_VOLUME", shop.world.named());
    let plain = shop
        .world
        .server
        .iter()
        .flat_map(crate::support::s3::Server::env)
        .fold(plain, |bk, (name, value)| bk.env(&name, value));
    plain.run().ok().says("drill of shop/1 passed");
    shop.bk("verify").run().ok();
    shop.bk("expire --dry-run").run().ok();
    // The ten newest stay noted.
    for _ in 0..11 {
        shop.bk("drill shop --json -- true").run().ok();
    }
    assert_eq!(files_below(&shop.world.volume.join("drills/shop")).len(), 10);
}

#[test]
fn a_drill_that_fails_is_critical_until_one_passes() {
    let shop = Shop::new(DRILL);
    let dir = scratch(&shop);
    shop.bk("drill shop -- sh -c").arg("echo no such table >&2; exit 4").run().code_is(&[7]).says("no such table");
    shop.bk("check shop").run().code_is(&[2]).says("the drill of shop/1").says("exited with 4");
    shop.bk("drill shop").run().ok();
    shop.bk("check shop").run().ok();
    let part = files_below(&shop.world.volume.join("data"))
        .into_iter()
        .find(|path| path.display().to_string().contains("stream-dump"));
    let part = part.unwrap();
    let whole = fs::read(&part).unwrap();
    let mut bytes = whole.clone();
    bytes[1_000_000] ^= 1;
    fs::set_permissions(&part, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&part, bytes).unwrap();
    shop.bk("drill shop").run().code_is(&[exit::INTEGRITY]);
    shop.bk("check shop").run().code_is(&[2]).says("digest");
    fs::write(&part, whole).unwrap();
    assert!(sorted(&dir).is_empty());
    shop.bk("drill shop").run().ok();
    shop.bk("check shop").run().ok();
}

#[test]
fn a_drill_has_its_directory_for_itself() {
    let shop = Shop::new("");
    let dir = scratch(&shop);
    shop.bk("drill shop").run().code_is(&[exit::USAGE]).says("--scratch");
    shop.bk("drill shop --scratch /no/such/dir").run().code_is(&[exit::USAGE]).says("there is no directory");
    let own = dir.join("bk-drill-shop");
    // What others could have put there is not used.
    std::os::unix::fs::symlink(&shop.world.src, &own).unwrap();
    shop.bk("drill shop --scratch").arg(&dir).run().code_is(&[exit::ERROR]);
    fs::remove_file(&own).unwrap();
    fs::create_dir(&own).unwrap();
    fs::set_permissions(&own, fs::Permissions::from_mode(0o777)).unwrap();
    shop.bk("drill shop --scratch").arg(&dir).run().code_is(&[exit::USAGE]).says("is not bk's alone");
    fs::remove_dir(&own).unwrap();
    // Two at once; a signal; a kill whose remains the next one removes.
    for signal in [Signal::TERM, Signal::KILL] {
        let at = shop.world.path("at");
        let line = format!("touch {}; exec sleep 1000", at.display());
        let mut running = shop.bk("drill shop --scratch").arg(&dir).words("-- sh -c").arg(line).spawn();
        while !at.exists() {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        shop.bk("drill shop --scratch").arg(&dir).run().code_is(&[exit::LOST]).says("another drill of shop is at work");
        running.signal(signal);
        if signal == Signal::TERM {
            running.finish().code_is(&[143]);
            assert!(sorted(&dir).is_empty());
        } else {
            running.child.wait().unwrap();
            assert!(own.join("restored/tree/a").exists());
        }
        fs::remove_file(&at).unwrap();
    }
    shop.bk("check shop").run().ok();
    shop.bk("drill shop --scratch").arg(&dir).run().ok();
    assert!(sorted(&dir).is_empty());
}

#[test]
fn the_user_of_a_drill_gets_in() {
    if !need_root("the_user_of_a_drill_gets_in") {
        return;
    }
    let shop = Shop::new(
        "[job.shop.drill]\nscratch = 'WORLD/scratch'\nuser = 'nobody'\nshell = true\n\
         command = 'id -un; cat \"$BK_DRILL_TREE/a\" \"$BK_DRILL_STREAMS/dump\" > /dev/null && stat -c %U \"$BK_DRILL_DIR\"'\n",
    );
    let dir = scratch(&shop);
    fs::set_permissions(shop.world.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&shop.world.src, fs::Permissions::from_mode(0o755)).unwrap();
    shop.bk("snapshot shop").run().ok();
    let ran = shop.bk("drill shop").run().ok();
    assert_eq!(ran.said().matches("drill: nobody").count(), 2, "{}", ran.show());
    assert!(sorted(&dir).is_empty());
}

#[test]
fn thresholds_stand_in_the_configuration() {
    let shop = Shop::new("");
    let check = |keys: &str, words: &str| {
        shop.configure(&format!("[job.shop.check]\n{keys}\n"));
        shop.bk(&format!("check shop {words}")).run()
    };
    std::thread::sleep(std::time::Duration::from_millis(2100));
    check("", "").ok();
    check("warn_age = '1s'", "").code_is(&[1]);
    check("max_age = '1s'", "").code_is(&[2]);
    check("max_age_full = '1s'", "").code_is(&[2]).says("level 0");
    check("max_drill_age = '1s'", "").code_is(&[1]).says("never");
    if shop.world.server.is_none() {
        check("min_free = '900TiB'", "").code_is(&[1]).says("free");
        check("min_free = '900TiB'", "--warn-free 1MiB").ok();
    }
    // What is typed goes before.
    check("max_age = '1s'", "--crit-age 1h").ok();
    check("warn_age = '1h'", "--crit-drill 1h").code_is(&[2]).says("never");
    shop.configure("[job.shop.check]\nmax_drop = 90\n");
    fs::write(shop.world.path("dump"), vec![1; 1_000_000]).unwrap();
    shop.bk("snapshot shop").run().ok();
    check("max_drop = 90", "").ok();
    check("max_drop = 30", "").code_is(&[1]).says("% less");
    check("", "").code_is(&[1]).says("% less");
    check("", "--warn-drop 90").ok();
}
