//! Credentials: whose they are, what is sent of them, and what happens where nobody gives any for a while.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::proxy::{Fault, Proxy};
use crate::support::{Bk, World, exit};

struct Keys {
    world: World,
    proxy: Proxy,
    id: String,
    secret: String,
}

impl Keys {
    fn new(name: &str) -> Self {
        let world = World::on_s3(name);
        let server = world.server.as_ref().unwrap();
        let env = server.env();
        let get = |name: &str| env.iter().find(|(found, _)| found == name).unwrap().1.clone();
        let (id, secret) = (get("AWS_ACCESS_KEY_ID"), get("AWS_SECRET_ACCESS_KEY"));
        let proxy = Proxy::before(&server.endpoint);
        Self { world, proxy, id, secret }
    }

    /// `bk list` without keys in the environment.
    fn bare(&self) -> Bk {
        let bk = self.world.bk("list").env("AWS_ENDPOINT_URL", &self.proxy.endpoint);
        bk.without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY")
    }

    /// The same with them.
    fn with(&self, token: &str) -> Bk {
        let bk = self.bare().env("AWS_ACCESS_KEY_ID", &self.id).env("AWS_SECRET_ACCESS_KEY", &self.secret);
        bk.env("AWS_SESSION_TOKEN", token)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.world.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    }

    /// The tokens that were sent since the last time.
    fn sent(&self) -> Vec<Option<String>> {
        let seen = self.proxy.seen();
        assert!(!seen.is_empty());
        self.proxy.pass();
        seen.into_iter().map(|request| request.token).collect()
    }
}

#[test]
fn a_token_is_sent_where_there_is_one_and_only_with_its_keys() {
    let keys = Keys::new("s3-token");
    let is_none = |about: &str| assert!(keys.sent().iter().all(Option::is_none), "{about}");
    keys.with("").run().ok();
    is_none("an empty one of the environment");
    let text = format!("aws_access_key_id = {}\naws_secret_access_key = {}\n", keys.id, keys.secret);
    let plain = keys.file("credentials", &text);
    let shared = keys.file("shared", &format!("[default]\n{text}"));
    keys.bare().env("AWS_SHARED_CREDENTIALS_FILE", &shared).env("AWS_SESSION_TOKEN", "another's").run().ok();
    is_none("of a shared file, beside another's");
    let config = format!(
        "[volume.a]\nurl = '{}'\ncredentials_file = '{}'\n[defaults]\nvolume = 'a'\n",
        keys.world.named().display(),
        plain.display()
    );
    let config = keys.file("bk.toml", &config);
    let configured =
        || keys.bare().without("BK_VOLUME").env("BK_CONFIG", &config).env("AWS_SESSION_TOKEN", "another's");
    configured().run().ok();
    is_none("of a configured file, beside another's");
    fs::write(&plain, format!("{text}aws_session_token = its-own\n")).unwrap();
    configured().run();
    assert!(keys.sent().iter().all(|token| token.as_deref() == Some("its-own")));
    // One that ends as a line does is that line.
    for token in ["of-the-session\n", " of-the-session\r\n"] {
        keys.with(token).run();
        assert!(keys.sent().iter().all(|token| token.as_deref() == Some("of-the-session")));
    }
    let id = format!("{}\n", keys.id);
    keys.with("").env("AWS_ACCESS_KEY_ID", id).run().ok();
    for (name, bad) in [("AWS_SESSION_TOKEN", "of\nthe session"), ("AWS_ACCESS_KEY_ID", "k\u{e9}y")] {
        let ran = keys.with("").env(name, bad).run().code_is(&[exit::USAGE]).says(name);
        assert!(!ran.said().contains(bad), "{}", ran.show());
    }
    fs::write(&plain, format!("{text}aws_session_token = its\u{1}own\n")).unwrap();
    configured().run().code_is(&[exit::USAGE]).says("aws_session_token");
}

#[test]
fn requests_are_signed() {
    let keys = Keys::new("s3-unsigned");
    keys.with("").env("AWS_SKIP_SIGNATURE", "false").run().ok();
    for yes in ["true", "1", "Yes"] {
        let ran = keys.with("").env("AWS_SKIP_SIGNATURE", yes).run();
        ran.code_is(&[exit::USAGE]).says("AWS_SKIP_SIGNATURE");
    }
}

/// A container's credentials, good for a few minutes more, so that they are asked for at each request; those asked for
/// within `none` are not given.
fn container(keys: &Keys, none: std::ops::Range<usize>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(240);
    let body = format!(
        r#"{{"AccessKeyId":"{}","SecretAccessKey":"{}","Token":"","Expiration":"{end:.0}"}}"#,
        keys.id, keys.secret
    );
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
            while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
            let is_given = !none.contains(&count.fetch_add(1, Ordering::Relaxed));
            let (status, body) = if is_given { ("200 OK", body.as_str()) } else { ("503 Busy", "") };
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let _ = client.write_all(format!("{head}{body}").as_bytes());
        }
    });
    (url, asked)
}

#[test]
fn credentials_that_fail_to_come_for_a_moment_are_waited_for() {
    let keys = Keys::new("s3-container");
    let token = keys.file("token", "container");
    let list = |url: &str| {
        let bk = keys.bare().env("AWS_CONTAINER_CREDENTIALS_FULL_URI", url);
        bk.env("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token).run()
    };
    // The store is busy for a moment: what was asked for last is then not new enough.
    keys.proxy.plan(2, 2, Fault::Status(503));
    let (url, asked) = container(&keys, 1..8);
    list(&url).ok();
    assert!(asked.load(Ordering::Relaxed) > 8);
    // Where none ever came it is said at once.
    let (url, asked) = container(&keys, 0..usize::MAX);
    list(&url).code_is(&[exit::VOLUME]).says("no credentials").says("docs/s3.md");
    assert_eq!(asked.load(Ordering::Relaxed), 3);
}
