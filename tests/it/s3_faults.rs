//! A server that fails at any request: a run ends as its exit code says, at most one record is made, nothing that was
//! listed is lost, and a listing that failed is never an empty one.

use std::fs;
use std::path::PathBuf;

use crate::support::proxy::{Fault, Proxy, Request, till_the_commit};
use crate::support::rng::Rng;
use crate::support::s3::Server;
use crate::support::tools::shell_ok;
use crate::support::{Bk, Ran, World, exit, list, lost};

const OPTIONS: &str = "--frame-size 16KiB --part-size 64KiB --threads 1";
/// What one request may take; the whole run is tried for six times as long.
const TIMEOUT_MS: &str = "1500";

/// A volume with a level 0 behind a proxy, and a source that has changed since.
struct Scene {
    world: World,
    proxy: Proxy,
    saved: PathBuf,
}

impl Scene {
    fn new(name: &str) -> Self {
        let mut world = World::on_s3(name);
        world.server.as_mut().unwrap().spools_all = true;
        let mut rng = Rng::new(400);
        for n in 0..6 {
            let len = rng.below(9_000) as usize;
            fs::write(world.src.join(format!("f{n}")), rng.content(len)).unwrap();
        }
        fs::write(world.src.join("big"), rng.noise(90_000)).unwrap();
        world.snapshot("c", &format!("{OPTIONS} --level 0")).ok();
        fs::write(world.src.join("since"), rng.noise(70_000)).unwrap();
        let proxy = Proxy::before(&world.server.as_ref().unwrap().endpoint);
        let saved = world.path("saved");
        shell_ok(r#"cp -a "$1" "$2""#, &[&world.path("s3"), &saved]);
        Self { world, proxy, saved }
    }

    fn reset(&self) {
        shell_ok(r#"find "$2" -mindepth 1 -delete; cp -a "$1/." "$2/""#, &[&self.saved, &self.world.path("s3")]);
        let _ = fs::remove_dir_all(self.world.path("cache"));
    }

    fn bk(&self, words: &str) -> Bk {
        self.world.bk(words).env("AWS_ENDPOINT_URL", &self.proxy.endpoint).env("BK_TEST_S3_TIMEOUT_MS", TIMEOUT_MS)
    }

    fn snapshot(&self, level: u8) -> Ran {
        let bk = self.bk(&format!("snapshot --job c {OPTIONS} --level {level}")).small();
        bk.arg("-C").arg(&self.world.src).arg(".").run()
    }

    /// The requests of a run that nothing happens to.
    fn clean(&self, level: u8) -> Vec<Request> {
        self.reset();
        self.proxy.pass();
        self.snapshot(level).ok();
        self.proxy.seen()
    }

    /// What must hold whatever happened: looked at as the directory that it is, past the proxy.
    fn check(&self, ran: &Ran, about: &str) {
        let listed = list(&self.world.volume);
        let made = match listed.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["c/1"] => false,
            ["c/1", "c/2"] => true,
            _ => panic!("{about}: {listed:?}\n{}", ran.show()),
        };
        match ran.code() {
            0 => assert!(made, "{about}: said done, but is not there\n{}", ran.show()),
            exit::LOST => {}
            exit::ERROR | exit::VOLUME | exit::INTEGRITY => {
                assert!(!made, "{about}: said failed, but is there\n{}", ran.show());
            }
            code => panic!("{about}: exit code {code}\n{}", ran.show()),
        }
        assert!(!ran.said().contains(Server::secret()), "{about}: shows the secret\n{}", ran.show());
        let verify = Bk::new("verify --data --volume").arg(&self.world.volume).run();
        assert_eq!(verify.code(), 0, "{about}: verify\n{}", verify.show());
        assert_eq!(lost(&self.world.volume, "c"), Vec::<String>::new(), "{about}: looks lost\n{}", ran.show());
    }
}

/// Gives each request of a run of `level` each of `faults` that fits it.
fn at_every_request(name: &str, level: u8, faults: &[Fault], codes: &[i32]) {
    let mut scene = Scene::new(name);
    // An index goes from its file once, and once from memory.
    scene.world.server.as_mut().unwrap().spools_all = level == 0;
    let requests = scene.clean(level);
    assert!(requests.len() >= 15, "{requests:?}");
    let mut came = 0;
    for (n, request) in requests.iter().enumerate() {
        for fault in faults.iter().filter(|fault| fault.fits(request)) {
            let about = format!("level {level}, {fault:?} at request {}, {} {}", n + 1, request.method, request.target);
            scene.reset();
            scene.proxy.plan(n + 1, 1, *fault);
            let ran = scene.snapshot(level);
            came += scene.proxy.came();
            assert!(codes.contains(&ran.code()), "{about}: not one of {codes:?}\n{}", ran.show());
            scene.check(&ran, &about);
        }
    }
    eprintln!("{name}: {came} faults at {} requests", requests.len());
    assert!(came > 0, "no fault came");
}

/// What is got over by trying again.
const PASSING: [Fault; 7] = [
    Fault::Status(500),
    Fault::Status(503),
    Fault::Status(429),
    Fault::ResetBefore,
    Fault::ResetAfter,
    Fault::Stall,
    Fault::Cut,
];
const ANSWERS: [Fault; 6] =
    [Fault::WrongRange, Fault::FlipSent, Fault::Twice, Fault::Late, Fault::KeysLost, Fault::PageCut];

#[test]
fn a_failure_that_passes_is_got_over_at_level_0() {
    at_every_request("s3-passing-0", 0, &PASSING, &[0]);
}

#[test]
fn a_failure_that_passes_is_got_over_at_level_1() {
    at_every_request("s3-passing-1", 1, &PASSING, &[0]);
}

#[test]
fn an_answer_that_is_wrong_is_got_over() {
    at_every_request("s3-answers-0", 0, &ANSWERS, &[0]);
    at_every_request("s3-answers-1", 1, &ANSWERS, &[0]);
}

#[test]
fn a_flipped_byte_is_never_data() {
    // A document is read again. A block of the base's index is an error, or the base is none.
    at_every_request("s3-flip-0", 0, &[Fault::Flip], &[0, exit::VOLUME, exit::INTEGRITY]);
    at_every_request("s3-flip-1", 1, &[Fault::Flip], &[0, exit::VOLUME, exit::INTEGRITY]);
}

#[test]
fn what_is_read_through_failures_is_right_or_an_error() {
    let scene = Scene::new("s3-reads");
    scene.proxy.pass();
    let big = fs::read(scene.world.src.join("big")).unwrap();
    scene.bk("cat c/1 big --no-cache").run().ok();
    let requests = scene.proxy.seen();
    let passing = PASSING.iter().chain(&ANSWERS).map(|fault| (*fault, &[0][..]));
    let faults: Vec<_> = passing.chain([(Fault::Flip, &[0, exit::VOLUME, exit::INTEGRITY][..])]).collect();
    let mut came = 0;
    for (n, request) in requests.iter().enumerate() {
        for (fault, codes) in faults.iter().filter(|(fault, _)| fault.fits(request)) {
            let about = format!("{fault:?} at request {}, {} {}", n + 1, request.method, request.target);
            scene.proxy.plan(n + 1, 1, *fault);
            let ran = scene.bk("cat c/1 big --no-cache --threads 1").run();
            came += scene.proxy.came();
            assert!(codes.contains(&ran.code()), "{about}\n{}", ran.show());
            assert!(ran.code() != 0 || ran.stdout == big, "{about}: other bytes");
            assert!(big.starts_with(&ran.stdout), "{about}: other bytes before the error");
        }
    }
    assert!(came > 50, "only {came} faults came");
}

#[test]
fn what_fails_after_the_commit_changes_nothing() {
    let scene = Scene::new("s3-after");
    let requests = scene.clean(1);
    let committed = till_the_commit(&requests).unwrap();
    assert!(committed + 2 <= requests.len(), "{requests:?}");
    let mut came = 0;
    for k in 1..=requests.len() - committed {
        for fault in [Fault::Status(403), Fault::Status(503), Fault::ResetBefore, Fault::ResetAfter] {
            let about = format!("{fault:?} from request {k} after the commit on");
            scene.reset();
            scene.proxy.plan_after_commit(k, fault);
            // Short, as it is tried till the end; long enough for what is answered before, on a machine with other work.
            let bk = scene.bk(&format!("snapshot --job c {OPTIONS} --level 1"));
            let bk = bk.small().env("BK_TEST_S3_TIMEOUT_MS", "300");
            let ran = bk.arg("-C").arg(&scene.world.src).arg(".").run();
            assert_eq!(ran.code(), 0, "{about}\n{}", ran.show());
            came += scene.proxy.came();
            scene.check(&ran, &about);
        }
    }
    assert!(came >= 8, "only {came} faults came");
}

/// No space is a plain no only when nothing is on its way: a record that comes later must find the objects it names.
#[test]
fn a_record_that_is_stored_after_all_is_whole() {
    let scene = Scene::new("s3-late-full");
    scene.clean(1);
    scene.reset();
    scene.proxy.plan(1, usize::MAX, Fault::LateThenFull);
    let ran = scene.snapshot(1).code_is(&[exit::VOLUME, exit::LOST]);
    assert!(scene.proxy.came() > 1, "{}", ran.show());
    while !scene.proxy.is_late_over() {
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(list(&scene.world.volume), ["c/1", "c/2"], "the record never came\n{}", ran.show());
    scene.world.bk("verify --data c/2").run().ok();
}

#[test]
fn access_denied_ends_the_run_at_once() {
    let scene = Scene::new("s3-denied");
    let requests = scene.clean(1);
    for n in 1..=till_the_commit(&requests).unwrap() {
        let about = format!("denied from request {n} on");
        scene.reset();
        scene.proxy.plan(n, usize::MAX, Fault::Status(403));
        let ran = scene.snapshot(1);
        // A commit that was made, but cannot be looked at, is unknown.
        assert!([exit::ERROR, exit::VOLUME, exit::LOST].contains(&ran.code()), "{about}\n{}", ran.show());
        assert!(ran.said().contains("403"), "{about}\n{}", ran.show());
        // The one that is refused, those under way beside it, and what tidies up.
        assert!(scene.proxy.seen().len() <= n + 12, "{about}: {:?}", scene.proxy.seen());
        scene.check(&ran, &about);
    }
}

#[test]
fn a_server_that_stays_down_ends_the_run_in_time() {
    let scene = Scene::new("s3-down");
    let requests = scene.clean(1);
    for n in (1..=till_the_commit(&requests).unwrap()).step_by(5) {
        for fault in [Fault::Status(503), Fault::ResetBefore, Fault::ResetAfter] {
            let about = format!("{fault:?} from request {n} on");
            scene.reset();
            scene.proxy.plan(n, usize::MAX, fault);
            let bk =
                scene.bk(&format!("snapshot --job c {OPTIONS} --level 1")).small().env("BK_TEST_S3_TIMEOUT_MS", "30");
            let ran = bk.arg("-C").arg(&scene.world.src).arg(".").run();
            let listed = list(&scene.world.volume).len();
            let codes: &[i32] = &[exit::ERROR, exit::VOLUME, exit::LOST];
            assert!(codes.contains(&ran.code()), "{about}\n{}", ran.show());
            // The server may have done what it never answered; then nobody can say so now.
            let is_unknown = fault == Fault::ResetAfter && ran.code() == exit::LOST;
            assert!(listed == 1 || is_unknown, "{about}\n{}", ran.show());
            Bk::new("verify --data --volume").arg(&scene.world.volume).run().ok();
        }
    }
}

#[test]
fn a_put_that_keeps_nothing_is_noticed() {
    let scene = Scene::new("s3-kept-nothing");
    let requests = scene.clean(0);
    for (n, request) in requests.iter().enumerate().filter(|(_, request)| request.method == "PUT") {
        let about = format!("nothing kept at request {}, {}", n + 1, request.target);
        scene.reset();
        scene.proxy.plan(n + 1, 1, Fault::KeptNothing);
        let ran = scene.snapshot(0);
        // A lease is made again, or not at all. Uploads run side by side: the n-th request may be another one this time.
        let is_lease = request.target.contains("/leases/");
        assert!(ran.code() != 0 || is_lease || scene.proxy.came() == 0, "{about}\n{}", ran.show());
        scene.check(&ran, &about);
    }
}

#[test]
fn a_failed_listing_is_never_an_empty_one() {
    let scene = Scene::new("s3-lists");
    let before = fs::read_dir(scene.world.volume.join("data/c")).unwrap().count();
    for fault in [Fault::Status(403), Fault::Status(500), Fault::KeysLost, Fault::PageCut, Fault::Cut] {
        for words in ["list", "verify --quick", "expire --yes --allow-last --sweep-grace 0"] {
            scene.reset();
            // Only listings fail, all of them.
            let asks = Request {
                method: "GET".into(),
                target: "/?list-type=2".into(),
                has_range: false,
                token: None,
                head: String::new(),
            };
            assert!(fault.fits(&asks));
            // Opening is one GET; the listing of the log is next.
            scene.proxy.plan(2, usize::MAX, fault);
            let ran = scene.bk(words).env("BK_TEST_S3_TIMEOUT_MS", "30").run();
            assert!(ran.code() != 0, "{words} with {fault:?}\n{}", ran.show());
            assert_eq!(fs::read_dir(scene.world.volume.join("data/c")).unwrap().count(), before);
            Bk::new("verify --data --volume").arg(&scene.world.volume).run().ok();
        }
    }
}

#[test]
fn a_store_without_conditional_create_is_refused() {
    let scene = Scene::new("s3-unconditional");
    let place = format!("{}-2", scene.world.named().into_string().unwrap());
    for (fault, says) in [(Fault::Unconditional, "conditional create"), (Fault::Status(501), "conditional create")] {
        // Opening is a HEAD and a LIST; what follows are the probe's creates.
        scene.proxy.plan(3, usize::MAX, fault);
        let bk = scene.bk("volume create").arg(&place).env("BK_TEST_S3_TIMEOUT_MS", "100");
        bk.run().code_is(&[exit::VOLUME]).says(says);
        scene.proxy.plan(1, usize::MAX, Fault::Unconditional);
        scene.bk("volume check").run().code_is(&[exit::VOLUME]).says("NO").says("If-None-Match");
    }
    scene.proxy.pass();
    scene.bk("volume check").run().ok();
    scene.bk("volume create").arg(&place).run().ok();
}

#[test]
fn a_store_that_forgot_conditional_create_is_noticed() {
    let scene = Scene::new("s3-forgot");
    scene.proxy.plan(1, usize::MAX, Fault::Unconditional);
    let ran = scene.snapshot(1).code_is(&[exit::VOLUME]).says("conditional create").says("versions");
    assert!(scene.proxy.came() > 0);
    scene.check(&ran, "without conditional create");
    scene.proxy.pass();
    scene.snapshot(1).ok();
}

#[test]
fn what_may_not_go_at_once_goes_one_by_one() {
    let scene = Scene::new("s3-bulk");
    scene.snapshot(0).ok();
    scene.proxy.plan(1, usize::MAX, Fault::BulkDenied);
    scene.bk("expire --set c/1 2001-01-01T00:00:00Z").run().ok();
    scene.bk("expire --yes").run().ok().says("1 snapshots expired");
    let at_once: Vec<Request> = scene.proxy.seen().into_iter().filter(|request| request.method == "POST").collect();
    assert!(!at_once.is_empty() && at_once.len() == scene.proxy.came(), "{at_once:?}");
    let left = crate::support::files_below(&scene.world.volume.join("data/c"));
    assert_eq!(left.iter().filter(|path| path.ends_with("index-00000.bki")).count(), 1, "{left:?}");
    Bk::new("verify --data --volume").arg(&scene.world.volume).run().ok();
}

#[test]
fn what_is_refused_one_by_one_goes_one_by_one() {
    let scene = Scene::new("s3-each");
    scene.snapshot(0).ok();
    scene.proxy.plan(1, usize::MAX, Fault::EachDenied);
    scene.bk("expire --set c/1 2001-01-01T00:00:00Z").run().ok();
    scene.bk("expire --yes").run().ok().says("1 snapshots expired");
    let at_once: Vec<Request> = scene.proxy.seen().into_iter().filter(|request| request.method == "POST").collect();
    assert!(at_once.len() == 1 && scene.proxy.came() == 1, "{at_once:?}");
    Bk::new("verify --data --volume").arg(&scene.world.volume).run().ok();
}

#[test]
fn what_others_leave_in_the_bucket_is_no_matter() {
    let scene = Scene::new("s3-markers");
    scene.proxy.plan(1, usize::MAX, Fault::Markers);
    let place = format!("{}-2", scene.world.named().into_string().unwrap());
    scene.bk("volume create").arg(&place).run().ok();
    scene.snapshot(1).ok();
    scene.bk("list").run().ok().says("c/2");
    scene.bk("check c").run().ok();
    scene.snapshot(0).ok();
    scene.bk("expire --set c/2 2001-01-01T00:00:00Z").run().ok();
    scene.bk("expire").run().ok().says("1 snapshots expired");
    scene.bk("verify").run().ok();
    scene.bk("status").run().ok();
    assert!(scene.proxy.came() > 10);
    Bk::new("verify --data --volume").arg(&scene.world.volume).run().ok();
}

/// What goes slowly, but goes, is waited for longer than what stands still: this takes 30 s, a try of its length 25 s. The
/// kernel takes 1.5 MB of it at once.
#[test]
fn a_slow_line_is_no_failure() {
    let scene = Scene::new("s3-slow");
    let dump = Rng::new(420).noise(6 << 20);
    scene.proxy.plan(1, usize::MAX, Fault::Slow);
    let bk = scene.bk("snapshot --job slow --stdin dump --level 0 --part-size 8MiB --frame-size 256KiB");
    bk.small().env("BK_TEST_S3_TIMEOUT_MS", "1000").stdin(dump.clone()).run().ok();
    assert!(Bk::new("cat slow/1 --stream dump --volume").arg(&scene.world.volume).run().ok().stdout == dump);
}

/// So for what is read: this takes 15 s, a try of its length 12.7 s and one without 1 s.
#[test]
fn a_slow_line_is_no_failure_to_a_reader() {
    let scene = Scene::new("s3-slow-read");
    let dump = Rng::new(421).noise(3 << 20);
    let bk = scene.bk("snapshot --job slow --stdin dump --level 0 --part-size 8MiB --frame-size 256KiB");
    bk.small().stdin(dump.clone()).run().ok();
    scene.proxy.plan(1, usize::MAX, Fault::SlowAnswer);
    let read = scene.bk("cat slow/1 --stream dump").env("BK_TEST_S3_TIMEOUT_MS", "1000").run().ok();
    assert!(read.stdout == dump && scene.proxy.came() > 3);
}

#[test]
fn a_file_is_sent_with_a_checksum_that_is_signed() {
    let scene = Scene::new("s3-checksum");
    let index = scene.clean(0).into_iter().find(|one| one.method == "PUT" && one.target.contains("/index-")).unwrap();
    let (_, key) = index.target.split('?').next().unwrap().trim_start_matches('/').split_once('/').unwrap();
    let stored = fs::read(scene.world.volume.parent().unwrap().join(key)).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &stored);
    let sum = base64::Engine::encode(&base64::prelude::BASE64_STANDARD, digest);
    let lines: Vec<&str> = index.head.lines().filter(|line| line.starts_with("x-amz-checksum-")).collect();
    assert_eq!(lines, [format!("x-amz-checksum-sha256: {sum}")], "{}", index.head);
    let signed = index.head.split("SignedHeaders=").nth(1).unwrap().split(',').next().unwrap();
    assert!(signed.split(';').any(|name| name == "x-amz-checksum-sha256"), "{}", index.head);
    assert!(index.head.contains("user-agent: bk/"), "{}", index.head);
}

#[test]
fn what_is_tidied_after_a_failure_is_soon_given_up() {
    let scene = Scene::new("s3-hurry");
    let requests = scene.clean(1);
    let first =
        requests.iter().position(|request| request.method == "PUT" && request.target.contains("/tree-")).unwrap();
    scene.reset();
    scene.proxy.plan(first + 1, usize::MAX, Fault::Hang);
    let bk = scene.bk(&format!("snapshot --job c {OPTIONS} --level 1")).small().env("BK_TEST_S3_TIMEOUT_MS", "1000");
    let ran = bk.arg("-C").arg(&scene.world.src).arg(".").run().code_is(&[exit::VOLUME]);
    let seen = scene.proxy.seen();
    let asked = |what: &dyn Fn(&Request) -> bool| seen[first..].iter().filter(|request| what(request)).count();
    // A part was tried till the end; whether it left anything is asked once.
    let stored = asked(&|request| request.method == "PUT" && request.target.contains("/tree-"));
    let listed = asked(&|request| request.is_list() && request.target.contains("data%2F"));
    assert!(stored >= 4 && listed == 1, "{stored} and {listed}: {seen:?}\n{}", ran.show());
    scene.check(&ran, "a store that hangs");
}

/// A run of three levels behind a proxy, with the volume as it is before each level kept.
struct Levels {
    scene: Scene,
    before: Vec<PathBuf>,
    requests: Vec<Vec<Request>>,
}

/// A case: the level, the request from 1 on, and what happens to it.
type Case = (u8, usize, Fault);

impl Levels {
    fn new(name: &str) -> Self {
        let scene = Scene::new(name);
        let (mut before, mut requests) = (Vec::new(), Vec::new());
        for level in 0..3 {
            let kept = scene.world.path(&format!("before-{level}"));
            shell_ok(r#"cp -a "$1" "$2""#, &[&scene.world.path("s3"), &kept]);
            before.push(kept);
            scene.proxy.pass();
            scene.change(level);
            scene.snapshot(level).ok();
            requests.push(scene.proxy.seen());
        }
        Self { scene, before, requests }
    }

    fn cases(&self, faults: &[Fault], is_all: bool) -> Vec<Case> {
        let mut cases = Vec::new();
        for (level, requests) in (0..3).zip(&self.requests) {
            for (n, request) in requests.iter().enumerate() {
                let fitting: Vec<Fault> = faults.iter().copied().filter(|fault| fault.fits(request)).collect();
                // Each request meets one, another one each time: every fault meets every kind of request.
                let taken =
                    if is_all { &fitting[..] } else { &fitting[(n + usize::from(level)) % fitting.len()..][..1] };
                cases.extend(taken.iter().map(|fault| (level, n + 1, *fault)));
            }
        }
        cases
    }

    fn run(&self, (level, k, fault): Case) -> bool {
        let (scene, before) = (&self.scene, usize::from(level) + 1);
        let request = &self.requests[usize::from(level)][k - 1];
        let about = format!("level {level}, {fault:?} at request {k}, {} {}", request.method, request.target);
        let s3 = scene.world.path("s3");
        shell_ok(r#"find "$2" -mindepth 1 -delete; cp -a "$1/." "$2/""#, &[&self.before[usize::from(level)], &s3]);
        let _ = fs::remove_dir_all(scene.world.path("cache"));
        scene.change(level);
        scene.proxy.plan(k, 1, fault);
        let ran = scene.snapshot(level);
        let came = scene.proxy.came() > 0;
        let codes: &[i32] = match fault {
            Fault::Status(403) => &[0, exit::ERROR, exit::VOLUME, exit::LOST],
            Fault::Flip => &[0, exit::VOLUME, exit::INTEGRITY],
            Fault::KeptNothing => &[0, exit::ERROR, exit::VOLUME, exit::INTEGRITY, exit::LOST],
            _ => &[0],
        };
        assert!(codes.contains(&ran.code()), "{about}: not one of {codes:?}\n{}", ran.show());
        let listed = list(&scene.world.volume).len();
        match ran.code() {
            0 => assert_eq!(listed, before + 1, "{about}: said done\n{}", ran.show()),
            exit::LOST => assert!(listed == before || listed == before + 1, "{about}\n{}", ran.show()),
            _ => assert_eq!(listed, before, "{about}: said failed\n{}", ran.show()),
        }
        assert!(!ran.said().contains(Server::secret()), "{about}: shows the secret\n{}", ran.show());
        // The run is taken again where it failed, and the levels after it go on.
        scene.proxy.pass();
        if listed == before {
            scene.snapshot(level).ok();
        }
        for next in level + 1..3 {
            scene.change(next);
            scene.snapshot(next).ok();
        }
        assert_eq!(list(&scene.world.volume), ["c/1", "c/2", "c/3", "c/4"], "{about}");
        let verify = Bk::new("verify --data --volume").arg(&scene.world.volume).run();
        assert_eq!(verify.code(), 0, "{about}: verify\n{}", verify.show());
        came
    }
}

impl Scene {
    /// What has changed in the source by the time a level is taken.
    fn change(&self, level: u8) {
        let mut rng = Rng::new(410 + u64::from(level));
        fs::write(self.world.src.join("since"), rng.noise(20_000)).unwrap();
        fs::write(self.world.src.join(format!("at-{level}")), rng.noise(5_000)).unwrap();
    }
}

const ALL: [Fault; 16] = [
    Fault::Status(500),
    Fault::Late,
    Fault::ResetAfter,
    Fault::Status(403),
    Fault::WrongRange,
    Fault::Twice,
    Fault::KeysLost,
    Fault::ResetBefore,
    Fault::Flip,
    Fault::FlipSent,
    Fault::PageCut,
    Fault::Status(503),
    Fault::Cut,
    Fault::KeptNothing,
    Fault::Status(429),
    Fault::Stall,
];

#[test]
fn three_levels_through_a_failure_at_every_request() {
    const SIDE_BY_SIDE: usize = 3;
    let is_all = std::env::var_os("BK_TEST_FAULTS").is_some_and(|which| which == "all");
    let came: usize = std::thread::scope(|scope| {
        let shares: Vec<_> = (0..SIDE_BY_SIDE)
            .map(|share| {
                scope.spawn(move || {
                    let levels = Levels::new(&format!("s3-levels-{share}"));
                    let cases = levels.cases(&ALL, is_all);
                    let own = cases.into_iter().skip(share).step_by(SIDE_BY_SIDE);
                    own.filter(|case| levels.run(*case)).count()
                })
            })
            .collect();
        shares.into_iter().map(|share| share.join().unwrap()).sum()
    });
    eprintln!("three levels: {came} faults came");
    assert!(came >= 60, "only {came} faults came");
}

#[test]
fn three_levels_on_moto_through_failures() {
    let Some(server) = Server::moto("three_levels_on_moto_through_failures") else { return };
    let proxy = Proxy::before(&server.endpoint);
    let dir = crate::support::temp_dir("s3-moto-levels");
    let mut world = World::before(dir, server);
    let mut came = 0;
    // A spread over the requests of the run and over what happens. moto holds no body against its checksum: what it is sent
    // damaged it keeps, wherever in the run that is.
    for (n, fault) in ALL.iter().enumerate().filter(|(_, fault)| **fault != Fault::FlipSent) {
        let place = format!("{}-{n}", world.named().into_string().unwrap());
        let bk = |words: &str| world.bk(words).env("BK_VOLUME", &place);
        bk("volume create").arg(&place).run().ok();
        let level_hit = u8::try_from(n % 3).unwrap();
        for level in 0..3_u8 {
            fs::write(world.src.join(format!("at-{level}")), Rng::new(u64::from(level)).noise(70_000)).unwrap();
            let snapshot = || {
                let bk = bk(&format!("snapshot --job c {OPTIONS} --level {level}")).small();
                let bk = bk.env("AWS_ENDPOINT_URL", &proxy.endpoint).env("BK_TEST_S3_TIMEOUT_MS", TIMEOUT_MS);
                bk.arg("-C").arg(&world.src).arg(".").run()
            };
            let before = usize::from(level);
            let count = || {
                let ran = bk("list --json").run().ok();
                ran.json().iter().filter(|line| line["type"] == "snapshot").count()
            };
            if level == level_hit {
                // The first one from there on that it fits.
                proxy.plan_any(1 + n, *fault);
            } else {
                proxy.pass();
            }
            let ran = snapshot();
            came += proxy.came();
            proxy.pass();
            let about = format!("{fault:?} from request {} on at level {level}", 1 + n);
            match ran.code() {
                0 => assert_eq!(count(), before + 1, "{about}\n{}", ran.show()),
                exit::LOST => {}
                exit::ERROR | exit::VOLUME | exit::INTEGRITY => assert_eq!(count(), before, "{about}\n{}", ran.show()),
                code => panic!("{about}: exit code {code}\n{}", ran.show()),
            }
            if count() == before {
                snapshot().ok();
            }
        }
        // moto holds no body against its checksum, as S3 does: what was flipped on its way there is found by verify.
        let codes: &[i32] = if *fault == Fault::FlipSent { &[0, exit::INTEGRITY] } else { &[0] };
        bk("verify --data").run().code_is(codes);
    }
    assert!(came >= 12, "only {came} faults came");
    world.server.take();
}
