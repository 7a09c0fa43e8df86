//! S3 servers on loopback, all spoken to over HTTP: one of our own in this process (s3s-fs over a directory), moto from
//! PyPI as another's reading of the same texts, and whatever `BK_TEST_S3_URL` names.

mod own;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use tokio::runtime::Runtime;

use self::own::{BUCKET, Kind, SECRET};
use super::tools::skip;

/// A server that runs as long as this lives.
pub struct Server {
    /// `http://127.0.0.1:PORT`
    pub endpoint: String,
    pub bucket: String,
    /// Where its objects lie as files, if they do.
    pub dir: Option<PathBuf>,
    /// Whether it is ours to give credentials for.
    is_given: bool,
    /// Whether bk is to send indexes of any length from their files; else short ones go from memory, as nearly all do.
    pub spools_all: bool,
    runtime: Option<Runtime>,
    child: Option<Child>,
}

impl Server {
    /// s3s-fs in this process, over the directory `root`.
    pub fn own(root: &Path) -> Self {
        Self::own_of_kind(root, Kind { has_conditions: true, ..Kind::default() })
    }

    /// The same, but it does not heed `If-None-Match`: a second create replaces the first.
    pub fn own_without_conditions(root: &Path) -> Self {
        Self::own_of_kind(root, Kind::default())
    }

    fn own_of_kind(root: &Path, kind: Kind) -> Self {
        let (runtime, endpoint) = own::serve(root, kind);
        let (bucket, dir) = (BUCKET.to_owned(), Some(root.join(BUCKET)));
        Self { endpoint, bucket, dir, is_given: false, spools_all: false, runtime: Some(runtime), child: None }
    }

    /// A door with TLS before this server: gives its URL. `pem` holds certificate and key.
    pub fn with_tls(&self, certificate: &Path, key: &Path) -> String {
        use tokio_rustls::rustls::{ServerConfig, crypto::ring, pki_types::pem::PemObject};
        let chain = tokio_rustls::rustls::pki_types::CertificateDer::pem_file_iter(certificate).unwrap();
        let chain = chain.map(|one| one.unwrap()).collect();
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::from_pem_file(key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let config = config.with_single_cert(chain, key).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let runtime = self.runtime.as_ref().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = self.endpoint.strip_prefix("http://").unwrap().to_owned();
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, upstream) = (acceptor.clone(), upstream.clone());
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(socket).await else { return };
                    let Ok(mut server) = tokio::net::TcpStream::connect(upstream).await else { return };
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        format!("https://localhost:{port}")
    }

    /// moto, one request at a time; says `SKIP` where it cannot be had.
    pub fn moto(test: &str) -> Option<Self> {
        let Some(python) = python_with_moto() else {
            skip(test, "no moto[server], and pip cannot get it");
            return None;
        };
        let script = "from werkzeug.serving import make_server\n\
                      from moto.server import DomainDispatcherApplication, create_backend_app\n\
                      server = make_server('127.0.0.1', 0, DomainDispatcherApplication(create_backend_app), threaded=False)\n\
                      print(server.server_port, flush=True)\n\
                      server.serve_forever()\n";
        let mut command = Command::new(python);
        command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut port = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut port).unwrap();
        let endpoint = format!("http://127.0.0.1:{}", port.trim());
        let mut server = Self {
            endpoint,
            bucket: BUCKET.to_owned(),
            dir: None,
            is_given: false,
            spools_all: false,
            runtime: None,
            child: Some(child),
        };
        if port.trim().is_empty() {
            server.child.take().unwrap().wait().unwrap();
            skip(test, "moto does not start");
            return None;
        }
        server.make_bucket();
        Some(server)
    }

    /// What `BK_TEST_S3_URL` names: `http://HOST:PORT/BUCKET`, with credentials in the environment.
    pub fn given() -> Option<Self> {
        let url = std::env::var("BK_TEST_S3_URL").ok()?;
        let (endpoint, bucket) = url.trim_end_matches('/').rsplit_once('/').expect("BK_TEST_S3_URL is no URL/BUCKET");
        let (endpoint, bucket) = (endpoint.to_owned(), bucket.to_owned());
        Some(Self { endpoint, bucket, dir: None, is_given: true, spools_all: false, runtime: None, child: None })
    }

    fn make_bucket(&self) {
        let address = self.endpoint.strip_prefix("http://").unwrap();
        let mut stream = TcpStream::connect(address).unwrap();
        let auth = "Authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-east-1/s3/aws4_request";
        let head = format!("PUT /{} HTTP/1.1\r\nHost: {address}\r\n{auth}\r\nContent-Length: 0\r\n\r\n", self.bucket);
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[9..], b"200", "{}", String::from_utf8_lossy(&answer));
    }

    /// The volume's URL for a prefix.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.bucket)
    }

    /// What bk needs in its environment to reach it.
    pub fn env(&self) -> Vec<(String, String)> {
        let mut env = own::env(&self.endpoint);
        if self.is_given {
            env.truncate(1);
        }
        // An index of any length goes the way that long ones go.
        if self.spools_all {
            env.push(("BK_TEST_S3_IN_MEMORY".to_owned(), "0".to_owned()));
        }
        env
    }

    /// What no output may ever show.
    pub fn secret() -> &'static str {
        SECRET
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A Python that has moto: the system's, or one of a virtual environment made for it beside the test binary.
fn python_with_moto() -> Option<PathBuf> {
    let has_moto = |python: &Path| {
        let mut command = Command::new(python);
        command.args(["-c", "import moto.server, flask"]).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let system = PathBuf::from("python3");
    if has_moto(&system) {
        return Some(system);
    }
    static MADE: std::sync::OnceLock<Option<PathBuf>> = std::sync::OnceLock::new();
    let make = || {
        let venv = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto");
        let python = venv.join("bin/python");
        if has_moto(&python) {
            return Some(python);
        }
        let run = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status().is_ok_and(|status| status.success())
        };
        let made = run(Command::new(&system).args(["-m", "venv"]).arg(&venv))
            && run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "moto[server]==5.2.*"]));
        (made && has_moto(&python)).then_some(python)
    };
    MADE.get_or_init(make).clone()
}
