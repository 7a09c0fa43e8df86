//! The S3 server of our own, s3s-fs over a directory: for the tests, and for benches to measure against.
//!
//! s3s-fs looks whether an object is there before it takes the body: its PUTs are let through one after the other.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::runtime::Runtime;

pub const BUCKET: &str = "bk-test";
const KEY_ID: &str = "bk-test-key";
pub const SECRET: &str = "bk-test-secret-never-shown";

/// What kind of server.
#[derive(Clone, Copy, Default)]
pub struct Kind {
    /// It heeds `If-None-Match`.
    pub has_conditions: bool,
    /// How long each request waits.
    pub delay: Duration,
    /// Ranges are not read by s3s-fs, which does it 4 KiB at a time.
    pub reads_at_once: bool,
}

/// The answer to a request for a range of an object, read whole.
fn range_of(file: &Path, request: &hyper::Request<hyper::body::Incoming>) -> Option<hyper::Response<s3s::Body>> {
    use std::os::unix::fs::FileExt;
    let range = request.headers().get("range")?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let file = std::fs::File::open(file).ok()?;
    let len = file.metadata().ok()?.len();
    let end = len.min(last + 1);
    let mut bytes = vec![0; usize::try_from(end.checked_sub(first)?).ok()?];
    file.read_exact_at(&mut bytes, first).ok()?;
    let answer = hyper::Response::builder()
        .status(206)
        .header("content-range", format!("bytes {first}-{}/{len}", end - 1))
        .header("last-modified", "Sat, 21 Nov 2026 00:00:00 GMT")
        .header("etag", "\"unknown\"");
    answer.body(s3s::Body::from(bytes)).ok()
}

/// What bk needs in its environment to reach one: first where it is.
pub fn env(endpoint: &str) -> Vec<(String, String)> {
    let known = [
        ("AWS_ENDPOINT_URL", endpoint),
        ("AWS_ACCESS_KEY_ID", KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
        ("AWS_REGION", "us-east-1"),
    ];
    known.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
}

/// Serves the directory `root` as long as the runtime lives; gives its URL, too.
pub fn serve(root: &Path, kind: Kind) -> (Runtime, String) {
    let Kind { has_conditions, delay, reads_at_once } = kind;
    let files = root.to_owned();
    std::fs::create_dir_all(root.join(BUCKET)).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
    builder.set_auth(s3s::auth::SimpleAuth::from_single(KEY_ID, SECRET));
    let service = builder.build();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    runtime.spawn(async move {
        let one_put = Arc::new(tokio::sync::Mutex::new(()));
        loop {
            let Ok((socket, _)) = listener.accept().await else { return };
            // Else each answer waits for the acknowledgement of its first half.
            let _ = socket.set_nodelay(true);
            let (service, one_put, files) = (service.clone(), Arc::clone(&one_put), files.clone());
            let handle = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let (service, one_put) = (service.clone(), Arc::clone(&one_put));
                let forgets = !has_conditions && request.headers().contains_key("if-none-match");
                let file = files.join(request.uri().path().trim_start_matches('/'));
                async move {
                    tokio::time::sleep(delay).await;
                    if reads_at_once && let Some(answer) = range_of(&file, &request) {
                        return Ok(answer);
                    }
                    let _held = match *request.method() == hyper::Method::PUT {
                        true => Some(one_put.lock().await),
                        false => None,
                    };
                    if forgets {
                        let _ = std::fs::remove_file(file);
                    }
                    Service::call(&service, request).await
                }
            });
            tokio::spawn(async move {
                let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                drop(server.serve_connection(TokioIo::new(socket), handle).await);
            });
        }
    });
    (runtime, endpoint)
}
