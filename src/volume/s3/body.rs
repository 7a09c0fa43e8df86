//! What an upload sends: bytes in memory, or a file.
//!
//! `object_store` knows bodies in memory alone. For a file it is given none, makes the request with all that belongs to it,
//! and just before the wire the file is put in the body's place: [`Files`] sets anew what the head says of the body, signs
//! anew, and sends. So no more of a long index is in memory than a connection takes.
//!
//! The digest of a file's bytes is signed, also over TLS, and sent as their checksum, too: buckets that keep what is in them for a time
//! (Object Lock) take nothing without one.

use std::{
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use bytes::Bytes;
use futures_util::{Stream, stream};
use object_store::{
    ClientConfigKey, ClientOptions, ObjectStore, PutMode, PutOptions, PutPayload,
    aws::{AmazonS3, AwsAuthorizer, AwsCredentialProvider},
    client::{HttpError, HttpErrorKind, HttpRequest, HttpResponse},
    path::Path,
};
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderMap, HeaderValue};

use super::wire::Broken;

/// A file is sent in chunks of this many bytes.
const CHUNK_LEN: u64 = 256 << 10;
/// What a server answers to an upload is read up to this many bytes.
const ANSWER_LEN_MAX: usize = 64 << 10;
/// What `object_store` says of a body that it had in memory.
const CHECKSUMS: [&str; 2] = ["x-amz-checksum-crc64nvme", CHECKSUM];
/// What is said of a file.
const CHECKSUM: &str = "x-amz-checksum-sha256";
/// A connection, with the kernel below it, holds at most this many bytes that it has taken and not sent.
const HELD_LEN: u64 = 8 << 20;
/// A server is reached in this time, when nothing else is said: as `object_store` does.
const CONNECT_TIME: Duration = Duration::from_secs(5);

/// A file that is sent from its beginning to `len`; nobody writes to it any more.
#[derive(Clone, Debug)]
pub(super) struct Spooled {
    file: Arc<File>,
    len: u64,
    sha256: [u8; 32],
    /// How much of it a connection has taken in this try.
    taken: Arc<AtomicU64>,
}

impl Spooled {
    pub fn new(file: File, len: u64, sha256: [u8; 32]) -> Self {
        Self { file: Arc::new(file), len, sha256, taken: Arc::default() }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    fn chunks(self) -> impl Stream<Item = io::Result<Bytes>> + Send {
        stream::try_unfold((self, 0), async |(body, at): (Self, u64)| {
            let len = CHUNK_LEN.min(body.len - at);
            if len == 0 {
                return Ok(None);
            }
            let file = Arc::clone(&body.file);
            let read = move || {
                let mut chunk = vec![0; usize::try_from(len).unwrap_or(0)];
                file.read_exact_at(&mut chunk, at).map(|()| chunk)
            };
            let chunk = tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??;
            body.taken.store(at + len, Ordering::Relaxed);
            Ok(Some((Bytes::from(chunk), (body, at + len))))
        })
    }
}

/// What is sent as an object.
#[derive(Debug)]
pub(super) enum Body {
    /// Its chunks are nobody else's.
    Memory(PutPayload),
    File(Spooled),
}

impl Body {
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(payload) => payload.content_length() as u64,
            Self::File(file) => file.len,
        }
    }

    /// One try to store it.
    pub async fn put(&self, client: &AmazonS3, path: &Path, mode: PutMode) -> object_store::Result<()> {
        let mut options = PutOptions::from(mode);
        let payload = match self {
            Self::Memory(payload) => payload.clone(),
            Self::File(file) => {
                file.taken.store(0, Ordering::Relaxed);
                options.extensions.insert(file.clone());
                PutPayload::new()
            }
        };
        client.put_opts(path, payload, options).await.map(|_| ())
    }

    /// How many bytes may have to move before it is seen by [`Self::sending`].
    ///
    /// When a file was taken whole, that may be all of it: what stands between may send it on only then, as proxies do.
    pub fn unseen_len(&self) -> u64 {
        match self {
            Self::File(file) if file.taken.load(Ordering::Relaxed) < file.len => file.len.min(HELD_LEN),
            Self::File(_) | Self::Memory(_) => self.len(),
        }
    }

    /// How far a connection has got; it differs when something has moved.
    ///
    /// Of chunks in memory, the last that a connection holds: it takes one after the other, and lets go of each that it has
    /// sent. Where a connection copied them instead, nothing would be seen to move: then a try has the time it would have without.
    pub fn sending(&self) -> Option<u64> {
        match self {
            Self::Memory(payload) => {
                let held = payload.iter().zip(0..).filter(|(chunk, _)| !chunk.is_unique());
                held.map(|(_, n)| n).last()
            }
            Self::File(file) => Some(file.taken.load(Ordering::Relaxed)),
        }
    }

    /// Whether `got` is what it has from `at` on.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub fn has(&self, mut at: u64, mut got: &[u8]) -> io::Result<bool> {
        match self {
            Self::Memory(payload) => {
                for chunk in payload {
                    let Some(rest) = usize::try_from(at).ok().and_then(|at| chunk.get(at..)) else {
                        at -= chunk.len() as u64;
                        continue;
                    };
                    let len = rest.len().min(got.len());
                    if rest[..len] != got[..len] {
                        return Ok(false);
                    }
                    (at, got) = (0, &got[len..]);
                }
                Ok(got.is_empty())
            }
            Self::File(file) => {
                let mut sent = vec![0; got.len()];
                file.file.read_exact_at(&mut sent, at)?;
                Ok(sent == got)
            }
        }
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Memory(bytes.into())
    }
}

/// Sends requests that have a file for their body.
pub(super) struct Files {
    options: ClientOptions,
    authorities: Vec<u8>,
    is_tls: bool,
    credentials: Arc<OnceLock<AwsCredentialProvider>>,
    /// Made when it is first needed.
    client: OnceLock<reqwest::Client>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Files").finish_non_exhaustive()
    }
}

impl Files {
    /// With what `options` say of reaching the server.
    pub fn new(
        options: &ClientOptions,
        authorities: Vec<u8>,
        is_tls: bool,
        credentials: Arc<OnceLock<AwsCredentialProvider>>,
    ) -> Self {
        Self { options: options.clone(), authorities, is_tls, credentials, client: OnceLock::new() }
    }

    fn client(&self) -> Result<&reqwest::Client, HttpError> {
        if let Some(client) = self.client.get() {
            return Ok(client);
        }
        let said = |key| self.options.get_config_value(&key).filter(|text| !text.is_empty());
        let connect_time = said(ClientConfigKey::ConnectTimeout).and_then(|text| time_of(&text));
        let mut builder = reqwest::Client::builder()
            .http1_only()
            .https_only(self.is_tls)
            .connect_timeout(connect_time.unwrap_or(CONNECT_TIME));
        if let Some(agent) = said(ClientConfigKey::UserAgent) {
            builder = builder.user_agent(agent);
        }
        if let Some(url) = said(ClientConfigKey::ProxyUrl) {
            if let Some(pem) = said(ClientConfigKey::ProxyCaCertificate) {
                let certificate = reqwest::Certificate::from_pem(pem.as_bytes()).map_err(failed)?;
                builder = builder.tls_certs_merge([certificate]);
            }
            let not_for = said(ClientConfigKey::ProxyExcludes).and_then(|text| reqwest::NoProxy::from_string(&text));
            builder = builder.proxy(reqwest::Proxy::all(url).map_err(failed)?.no_proxy(not_for));
        }
        let certificates = reqwest::Certificate::from_pem_bundle(&self.authorities).map_err(failed)?;
        builder = match self.is_tls {
            true => builder.tls_certs_merge(certificates),
            false => builder.tls_certs_only(certificates),
        };
        if said(ClientConfigKey::AllowInvalidCertificates).is_some_and(|text| is_yes(&text)) {
            builder = builder.tls_danger_accept_invalid_certs(true);
        }
        let made = builder.build().map_err(failed)?;
        Ok(self.client.get_or_init(|| made))
    }

    /// Sends `body` with the head of `request`.
    pub async fn send(&self, mut request: HttpRequest, body: Spooled) -> Result<HttpResponse, HttpError> {
        let headers = request.headers_mut();
        for name in CHECKSUMS {
            headers.remove(name);
        }
        let checksum = HeaderValue::from_str(&BASE64_STANDARD.encode(body.sha256)).map_err(|_| not("no checksum"))?;
        headers.insert(CHECKSUM, checksum);
        headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len));
        if let Some((region, service)) = scope(headers) {
            let credentials = self.credentials.get().ok_or_else(|| not("the credentials are not known yet"))?;
            let credential = credentials.get_credential().await.map_err(unknown)?;
            let authorizer = AwsAuthorizer::new(&credential, &service, &region);
            authorizer.try_authorize(&mut request, Some(&body.sha256)).map_err(unknown)?;
        }
        let (head, _) = request.into_parts();
        let url = head.uri.to_string().parse().map_err(|_| not("no address"))?;
        let mut request = reqwest::Request::new(head.method, url);
        *request.headers_mut() = head.headers;
        *request.body_mut() = Some(reqwest::Body::wrap_stream(body.chunks()));
        let mut answer = self.client()?.execute(request).await.map_err(failed)?;
        let mut text = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            let left = ANSWER_LEN_MAX.saturating_sub(text.len());
            text.extend_from_slice(&chunk[..chunk.len().min(left)]);
        }
        let mut response = HttpResponse::new(text.into());
        *response.status_mut() = answer.status();
        *response.headers_mut() = std::mem::take(answer.headers_mut());
        Ok(response)
    }
}

/// Whether `object_store` takes a word of its configuration for a yes.
pub(super) fn is_yes(text: &str) -> bool {
    ["1", "true", "on", "yes", "y"].iter().any(|yes| text.eq_ignore_ascii_case(yes))
}

/// A time as `object_store` writes it: `5s`, `1m 30s`.
fn time_of(text: &str) -> Option<Duration> {
    text.parse::<jiff::SignedDuration>().ok()?.try_into().ok()
}

/// Region and service that a head is signed for; `None` when it is not signed.
fn scope(headers: &HeaderMap) -> Option<(String, String)> {
    let (_, after) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once("Credential=")?;
    let mut words = after.split(',').next()?.rsplit('/').skip(1);
    let (service, region) = (words.next()?, words.next()?);
    Some((region.to_owned(), service.to_owned()))
}

fn not(what: &'static str) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, Broken(what))
}

fn unknown(error: object_store::Error) -> HttpError {
    HttpError::new(HttpErrorKind::Unknown, error)
}

fn failed(error: reqwest::Error) -> HttpError {
    // The address may hold a key.
    HttpError::new(HttpErrorKind::Request, error.without_url())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chunk_that_a_connection_holds_is_seen() {
        let payload = PutPayload::from_iter((0..4).map(|n| Bytes::from(vec![n; 100])));
        let (body, shared) = (Body::Memory(payload.clone()), payload.clone());
        drop(payload);
        assert_eq!(body.sending(), None);
        let held: Vec<_> = shared.iter().take(3).cloned().collect();
        assert_eq!(body.sending(), Some(2));
        drop(held);
        assert_eq!(body.sending(), None);
    }

    #[test]
    fn what_was_sent_is_known_again_wherever_it_lies() {
        let bytes: Vec<u8> = (0..1000_u32).map(|n| (n * 7 % 251) as u8).collect();
        let memory = Body::Memory(bytes.chunks(64).map(Bytes::copy_from_slice).collect());
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        let spooled = Body::File(Spooled::new(file, 1000, [0; 32]));
        for body in [memory, spooled] {
            assert_eq!(body.len(), 1000);
            for (at, len) in [(0, 1000), (0, 0), (1, 62), (63, 2), (64, 64), (500, 500), (999, 1)] {
                let mut some = bytes[at..at + len].to_vec();
                assert!(body.has(at as u64, &some).unwrap(), "{at}+{len}");
                if let Some(last) = some.last_mut() {
                    *last ^= 1;
                    assert!(!body.has(at as u64, &some).unwrap(), "{at}+{len}");
                }
            }
        }
    }

    #[test]
    fn a_file_that_is_not_taken_stalls_soon_however_long_it_is() {
        let file = Spooled::new(tempfile::tempfile().unwrap(), 2 << 30, [0; 32]);
        let taken = Arc::clone(&file.taken);
        let body = Body::File(file);
        assert_eq!(body.unseen_len(), HELD_LEN);
        taken.store((2 << 30) - 1, Ordering::Relaxed);
        assert_eq!(body.unseen_len(), HELD_LEN);
        taken.store(2 << 30, Ordering::Relaxed);
        assert_eq!(body.unseen_len(), 2 << 30);
        let short = Body::File(Spooled::new(tempfile::tempfile().unwrap(), 1000, [0; 32]));
        assert_eq!(short.unseen_len(), 1000);
    }

    #[test]
    fn words_and_times_are_read_as_object_store_reads_them() {
        for yes in ["1", "true", "True", "on", "YES", "y"] {
            let options = ClientOptions::new().with_config(ClientConfigKey::AllowInvalidCertificates, yes);
            let text = options.get_config_value(&ClientConfigKey::AllowInvalidCertificates).unwrap();
            assert!(is_yes(&text), "{yes}: {text}");
        }
        assert!(!["0", "false", "off", "no", "n", "", "2"].into_iter().any(is_yes));
        let options = ClientOptions::new().with_connect_timeout(Duration::from_millis(90_500));
        let text = options.get_config_value(&ClientConfigKey::ConnectTimeout).unwrap();
        assert_eq!(time_of(&text), Some(Duration::from_millis(90_500)), "{text}");
        let text = ClientOptions::new().get_config_value(&ClientConfigKey::ConnectTimeout).unwrap();
        assert_eq!(time_of(&text), Some(CONNECT_TIME), "{text}");
    }

    #[test]
    fn a_file_for_a_server_with_tls_goes_nowhere_else() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        for is_tls in [true, false] {
            let files = Files::new(&ClientOptions::new(), Vec::new(), is_tls, Arc::default());
            // Nobody listens there.
            let asked = runtime.block_on(files.client().unwrap().get("http://127.0.0.1:1/").send());
            assert_eq!(asked.unwrap_err().is_builder(), is_tls);
        }
    }

    #[test]
    fn a_scope_is_read_from_its_end() {
        let of = |text: &'static str| {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(text))]);
            scope(&headers)
        };
        let signed =
            "AWS4-HMAC-SHA256 Credential=A/B/20260101/eu-west-1/s3/aws4_request, SignedHeaders=host, Signature=0";
        assert_eq!(of(signed), Some(("eu-west-1".to_owned(), "s3".to_owned())));
        assert_eq!(of("Bearer x"), None);
        assert_eq!(scope(&HeaderMap::new()), None);
    }
}
