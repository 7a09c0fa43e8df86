//! How a store is reached: TLS and whom it trusts, credentials and who sees them, limits, and stores that know less.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use crate::support::rng::Rng;
use crate::support::s3::Server;
use crate::support::tools::{need, shell_ok};
use crate::support::{BK, Bk, World, exit, files_below, temp_dir};

const OPTIONS: &str = "--frame-size 16KiB --part-size 64KiB --threads 2";

/// A certificate of its own authority for `localhost`, made by openssl.
const MAKE_CERTIFICATE: &str = r#"cd "$1"
openssl req -x509 -newkey rsa:2048 -nodes -keyout "$2.ca.key" -out "$2.ca" -days 2 -subj "/CN=bk test $2" \
    -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign 2>/dev/null
openssl req -newkey rsa:2048 -nodes -keyout "$2.key" -out "$2.csr" -subj /CN=localhost 2>/dev/null
printf 'subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n' > ext
openssl x509 -req -in "$2.csr" -CA "$2.ca" -CAkey "$2.ca.key" -CAcreateserial -days 2 -extfile ext -out "$2.pem" 2>/dev/null"#;

#[test]
fn tls_is_spoken_with_whom_the_file_trusts_and_no_one_else() {
    if !need("tls_is_spoken_with_whom_the_file_trusts_and_no_one_else", &["openssl"]) {
        return;
    }
    let world = World::on_s3("s3-tls");
    let certificates = world.path("certificates");
    fs::create_dir(&certificates).unwrap();
    for name in ["right", "wrong"] {
        shell_ok(MAKE_CERTIFICATE, &[&certificates, name.as_ref()]);
    }
    let server = world.server.as_ref().unwrap();
    let url = server.with_tls(&certificates.join("right.pem"), &certificates.join("right.key"));
    let bk = |words: &str| world.bk(words).env("AWS_ENDPOINT_URL", &url).env("BK_TEST_S3_TIMEOUT_MS", "3000");
    fs::write(world.src.join("f"), Rng::new(510).noise(300_000)).unwrap();
    let ca = certificates.join("right.ca");
    let snapshot = bk(&format!("snapshot --job t {OPTIONS}")).small().arg("--ca-file").arg(&ca);
    snapshot.arg("-C").arg(&world.src).arg(".").run().ok();
    bk("verify --data").env("BK_CA_FILE", &ca).run().ok();
    assert!(bk("cat t/1 f").env("BK_CA_FILE", &ca).run().ok().stdout == fs::read(world.src.join("f")).unwrap());
    // Without the file, with another's, and under another name.
    let quick = |bk: Bk| bk.env("BK_TEST_S3_TIMEOUT_MS", "100").run().code_is(&[exit::VOLUME]);
    quick(bk("list")).says("certificate");
    quick(bk("list").env("BK_CA_FILE", certificates.join("wrong.ca"))).says("certificate");
    let other = url.replace("localhost", "127.0.0.1");
    quick(bk("list").env("BK_CA_FILE", &ca).env("AWS_ENDPOINT_URL", other)).says("certificate");
}

#[test]
fn a_credentials_file_is_for_its_owner_alone() {
    let world = World::on_s3("s3-file");
    let file = world.path("credentials");
    let env = world.server.as_ref().unwrap().env();
    let get = |name: &str| env.iter().find(|(found, _)| found == name).unwrap().1.clone();
    let (id, key) = (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY"));
    fs::write(&file, format!("[default]\naws_access_key_id=no\naws_secret_access_key=no\n[bk]\naws_access_key_id = {id}\naws_secret_access_key = {key}\n")).unwrap();
    let bk = || {
        let bk = world.bk("list").without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
        bk.env("AWS_SHARED_CREDENTIALS_FILE", &file).env("AWS_PROFILE", "bk")
    };
    for mode in [0o644, 0o640, 0o620, 0o604, 0o602, 0o610, 0o601] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let ran = bk().run().code_is(&[exit::USAGE]).says("chmod 600");
        assert!(!ran.said().contains(&key), "{}", ran.show());
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        bk().run().ok();
    }
    bk().env("AWS_PROFILE", "none").run().code_is(&[exit::USAGE]).says("no credentials of profile");
    bk().without("AWS_PROFILE").run().code_is(&[exit::VOLUME]);
    fs::remove_file(&file).unwrap();
    bk().run().code_is(&[exit::USAGE]).says("cannot read the credentials");
}

#[test]
fn secrets_are_seen_by_no_one() {
    let world = World::on_s3("s3-canary");
    let server = world.server.as_ref().unwrap();
    let secrets: Vec<String> =
        server.env().into_iter().filter(|(name, _)| name.contains("KEY")).map(|one| one.1).collect();
    assert_eq!(secrets.len(), 2);
    let token = "bk-canary-token".to_owned();
    let key = &secrets[1];
    let mut said = Vec::new();
    let mut keep = |ran: crate::support::Ran| said.push(ran.show());
    let loud = |words: &str| world.bk(words).env("RUST_LOG", "trace").env("RUST_BACKTRACE", "1");
    fs::write(world.src.join("f"), Rng::new(511).noise(300_000)).unwrap();
    let tree = || loud(&format!("snapshot --job t {OPTIONS} --json")).small().arg("-C").arg(&world.src).arg(".");
    keep(tree().run().ok());
    // What a command is given, and what others see of bk while it runs: its arguments.
    let peek = "env; tr '\\0' ' ' < /proc/$PPID/cmdline; cat /proc/self/environ | tr '\\0' '\\n'";
    let command = |bk: Bk| bk.words(OPTIONS).small().words("--job run -- bash -c").arg(peek);
    keep(command(loud("snapshot")).run().ok());
    let seen = loud("cat run/1 --stream run").run().ok().text();
    assert!(seen.contains("RUST_LOG=trace") && seen.contains("snapshot"), "{seen}");
    said.push(seen);
    // Requests that fail in many ways, with a token that no one gave.
    let mut keep = |ran: crate::support::Ran| said.push(ran.show());
    for (name, value) in [
        ("AWS_SECRET_ACCESS_KEY", token.as_str()),
        ("AWS_SESSION_TOKEN", &token),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ] {
        for words in
            ["list", "verify --json", "ls t/1", "volume check", "expire --yes", "volume create s3://bk-test/other"]
        {
            keep(loud(words).env(name, value).env("BK_TEST_S3_TIMEOUT_MS", "30").run());
        }
    }
    for words in ["list", "verify --data --json", "volume info --json", "why t/1", "expire --dry-run"] {
        keep(loud(words).run().ok());
    }
    for text in &said {
        assert!(!text.contains(key) && !text.contains(&token), "{text}");
    }
    // The key's id is no secret in itself, but nothing of ours needs to show it either.
    let shows_id = said.iter().filter(|text| text.contains(&secrets[0])).count();
    assert_eq!(shows_id, 0);
    // What lies there and here.
    for file in files_below(&world.path("s3")).into_iter().chain(files_below(&world.path("cache"))) {
        let bytes = fs::read(&file).unwrap();
        for secret in [key, &token, &secrets[0]] {
            let found = bytes.windows(secret.len()).any(|part| part == secret.as_bytes());
            assert!(!found, "{} holds {secret}", file.display());
        }
    }
    // A command gets a secret that it is said to need, and only then.
    let local = world.path("local");
    Bk::new("volume create").arg(&local).run().ok();
    for (seq, words, is_given) in [(1, "snapshot", false), (2, "snapshot --pass-env AWS_SECRET_ACCESS_KEY", true)] {
        let bk = Bk::new(&format!("{words} --volume")).arg(&local).words("--job run -- env");
        bk.env("AWS_SECRET_ACCESS_KEY", "of-the-command").run().ok();
        let seen = Bk::new(&format!("cat run/{seq} --stream run --volume")).arg(&local).run().ok().text();
        assert_eq!(seen.contains("AWS_SECRET_ACCESS_KEY=of-the-command"), is_given, "{seen}");
    }
}

#[test]
fn a_store_without_conditional_create_is_for_one_writer() {
    let dir = temp_dir("s3-exclusive");
    let server = Server::own_without_conditions(&dir.path().join("s3"));
    let world = World::before(dir, server);
    let create = |words: &str| world.bk(&format!("volume create {words}")).arg(world.named()).run();
    create("").code_is(&[exit::VOLUME]).says("conditional create").says("--exclusive-writer");
    assert_eq!(files_below(&world.volume).len(), 0);
    create("--exclusive-writer").ok().says("never let two processes write");
    let file = fs::read_to_string(world.volume.join("bk-volume.json")).unwrap();
    assert!(file.contains("\"exclusive_writer\":true"), "{file}");
    create("--exclusive-writer").code_is(&[exit::VOLUME]).says("is a volume already");
    world.bk("volume check").run().ok().says("NO");
    fs::write(world.src.join("f"), Rng::new(512).noise(300_000)).unwrap();
    world.snapshot("t", &format!("{OPTIONS} --level 0")).ok();
    fs::write(world.src.join("g"), "g").unwrap();
    world.snapshot("t", &format!("{OPTIONS} --level 1")).ok();
    assert_eq!(world.list(), ["t/1", "t/2"]);
    world.bk("verify --data").run().ok();
    world.bk("expire --set t/2 2001-01-01T00:00:00Z").run().ok();
    world.bk("expire --yes").run().ok();
    assert_eq!(world.list(), ["t/1"]);
    // A record that is there is never replaced: one put by hand at the next number is a fault, and it stays.
    let log = world.volume.join("log/t");
    let next = log.join(format!("{:020}.json", fs::read_dir(&log).unwrap().count() + 1));
    fs::write(&next, "another's").unwrap();
    assert_ne!(world.snapshot("t", &format!("{OPTIONS} --level 0")).code(), 0);
    assert_eq!(fs::read_to_string(&next).unwrap(), "another's");
    // A store that knows conditions makes a volume for many all the same; a directory needs no such word.
    let other = World::on_s3("s3-not-exclusive");
    let place = format!("{}-2", other.named().into_string().unwrap());
    other.bk("volume create --exclusive-writer").arg(&place).run().ok();
    let second = other.volume.with_file_name(format!("{}-2", crate::support::name_of(&other.volume)));
    let file = fs::read_to_string(second.join("bk-volume.json")).unwrap();
    assert!(!file.contains("exclusive"), "{file}");
    Bk::new("volume create --exclusive-writer").arg(other.path("d")).run().code_is(&[exit::USAGE]);
}

#[test]
fn limits_hold_on_average() {
    let content = Rng::new(513).noise(3 << 20);
    for world in [World::new("limit"), World::on_s3("s3-limit")] {
        fs::write(world.src.join("f"), &content).unwrap();
        // Only that it is not faster: a machine under load is slower by itself.
        let at_least = |bk: Bk, seconds: u64, about: &str| {
            let began_at = Instant::now();
            let ran = bk.run().ok();
            let took = began_at.elapsed();
            assert!(took >= Duration::from_secs(seconds), "{about}: {took:?}\n{}", ran.show());
            ran
        };
        let options = "snapshot --job t --frame-size 256KiB --part-size 16MiB --limit-upload 1MiB";
        at_least(world.bk(options).arg("-C").arg(&world.src).arg("."), 2, "snapshot");
        let cat = at_least(world.bk("cat t/1 f --limit-download 1MiB"), 2, "cat");
        assert!(cat.stdout == content);
        at_least(world.bk("verify --limit-download 1MiB"), 2, "verify");
        world.bk("list --limit-download 12x").run().code_is(&[exit::USAGE]);
        world.bk("list --limit-upload 1").run().code_is(&[exit::USAGE]);
    }
}

/// Highest resident size of a bk run, KiB, as the kernel says.
fn peak(world: &World, words: &[&str]) -> u64 {
    let script = "import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)";
    let bk = world.bk_under(&["python3".as_ref(), "-c".as_ref(), script.as_ref()], "");
    let ran = words.iter().fold(bk, |bk, word| bk.arg(word)).run().ok();
    ran.text().trim().parse().unwrap()
}

#[test]
fn memory_is_bounded_whatever_the_size() {
    if !need("memory_is_bounded_whatever_the_size", &["python3"]) {
        return;
    }
    assert!(!BK.is_empty());
    let world = World::on_s3("s3-memory");
    // What does not compress, more than the bound, and uploads slower than it is read.
    let block = Rng::new(514).noise(24 << 20);
    for n in 0..20_u8 {
        let mut bytes = block.clone();
        bytes.rotate_left(usize::from(n) * 1000 + 1);
        fs::write(world.src.join(format!("f{n}")), bytes).unwrap();
    }
    let (src, out) = (world.src.to_str().unwrap().to_owned(), world.path("out").to_str().unwrap().to_owned());
    let snapshot = |options: &[&str]| {
        let words = ["snapshot", "--quiet", "--threads", "2", "--job", "m", "-C", &src, "."];
        peak(&world, &[&words[..], options].concat())
    };
    let defaults = snapshot(&[]) >> 10;
    let small = snapshot(&["--part-size", "16MiB"]) >> 10;
    let restore = peak(&world, &["restore", "--quiet", "--threads", "2", "m/1", "--target", &out]) >> 10;
    fs::remove_dir_all(&out).unwrap();
    let verify = peak(&world, &["verify", "--threads", "2", "m/1"]) >> 10;
    eprintln!("MiB: snapshot {defaults}, with --part-size 16MiB {small}, restore {restore}, verify {verify}");
    assert!(defaults <= 400, "{defaults} MiB");
    assert!(small <= 160, "{small} MiB with --part-size 16MiB");
    assert!(restore <= 160 && verify <= 160, "restore {restore} MiB, verify {verify} MiB");
}
