//! What goes over the wire: every request is counted, every refusal becomes a [`Refused`] with the server's own code,
//! and a listing that cannot be whole is an error.
//!
//! It sits between `object_store` and its HTTP client, so it sees each request once, whoever asked for it. The body of a
//! refusal is reduced to code and message: it may name keys and strings to sign.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::StreamExt;
use object_store::{
    Certificate, ClientConfigKey, ClientOptions,
    aws::AwsCredentialProvider,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
        ReqwestConnector,
    },
};

use reqwest::header::HeaderValue;

use super::body::{Files, Spooled};
use crate::{
    model::{show, time::Instant},
    volume::Requests,
};

/// A refusal's body is read up to this many bytes; what servers say fits well.
const REFUSAL_LEN_MAX: usize = 64 << 10;
/// A page of a listing has at most 1,000 keys of at most 1,024 bytes and about 300 bytes of markup each.
const PAGE_LEN_MAX: usize = 16 << 20;
/// Longest server's message that is shown.
const MESSAGE_LEN_MAX: usize = 300;
/// Credentials are asked for this often: without them nothing else can be asked.
const CREDENTIALS_TRY_COUNT: u32 = 3;
const CREDENTIALS_PAUSE: Duration = Duration::from_millis(200);

/// An answer that is not a success.
#[derive(Debug)]
pub(super) struct Refused {
    pub status: u16,
    /// The server's own name for it, such as `SlowDown`; may be empty.
    pub code: String,
    message: String,
}

impl Refused {
    /// What the text of an answer says.
    fn said(status: u16, text: &str) -> Self {
        let of = |name: &str| -> String {
            let found = element(text, name).unwrap_or_default();
            show::name(found.chars().take(MESSAGE_LEN_MAX).collect::<String>().as_bytes())
        };
        Self { status, code: of("Code"), message: of("Message") }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the server says {}", self.status)?;
        if !self.code.is_empty() {
            write!(f, " {}", self.code)?;
        }
        if !self.message.is_empty() {
            write!(f, ": {}", self.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// A body that is not what the request asked for.
#[derive(Debug)]
pub(super) struct Broken(pub &'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Broken {}

/// Nobody gives credentials.
#[derive(Debug)]
pub(super) struct NoCredentials {
    pub why: String,
    /// Whether there were some before: then there may be again.
    pub were_given: bool,
}

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no credentials: {}", self.why)
    }
}

impl std::error::Error for NoCredentials {}

/// Counts of requests so far.
#[derive(Debug, Default)]
pub(super) struct Counts {
    put: AtomicU64,
    get: AtomicU64,
    head: AtomicU64,
    list: AtomicU64,
    delete: AtomicU64,
    other: AtomicU64,
    sent_bytes: AtomicU64,
    received_bytes: AtomicU64,
    /// Whether the store has answered anything.
    answered: AtomicBool,
    /// What the last answer said of the time, and when it came.
    date: Mutex<Option<(i64, std::time::Instant)>>,
}

impl Counts {
    /// The server's clock by its last answer, and what has passed since.
    pub fn now(&self) -> Option<Instant> {
        let (second, came) = (*self.date.lock().unwrap_or_else(PoisonError::into_inner))?;
        Instant::from_second(second.checked_add(i64::try_from(came.elapsed().as_secs()).ok()?)?).ok()
    }

    fn answered(&self, response: &HttpResponse) {
        self.answered.store(true, Ordering::Relaxed);
        let text = response.headers().get("date").and_then(|date| date.to_str().ok());
        if let Some(date) = text.and_then(|text| jiff::fmt::rfc2822::parse(text).ok()) {
            let date = (date.timestamp().as_second(), std::time::Instant::now());
            *self.date.lock().unwrap_or_else(PoisonError::into_inner) = Some(date);
        }
    }

    pub fn read(&self) -> Requests {
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        Requests {
            put: get(&self.put),
            get: get(&self.get),
            head: get(&self.head),
            list: get(&self.list),
            delete: get(&self.delete),
            other: get(&self.other),
            sent_bytes: get(&self.sent_bytes),
            received_bytes: get(&self.received_bytes),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Put,
    Get,
    Head,
    List,
    Delete,
    Other,
}

impl What {
    fn of(request: &HttpRequest) -> Self {
        // All that is asked of the store is signed; what is asked of others is for credentials.
        if !request.headers().contains_key("x-amz-content-sha256") {
            return Self::Other;
        }
        let query = request.uri().query().unwrap_or_default();
        let asks = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        match request.method().as_str() {
            "PUT" => Self::Put,
            "HEAD" => Self::Head,
            "DELETE" => Self::Delete,
            "GET" if asks("list-type") => Self::List,
            "GET" => Self::Get,
            "POST" if asks("delete") => Self::Delete,
            _ => Self::Other,
        }
    }
}

/// Makes clients that count.
#[derive(Debug)]
pub(super) struct Connector {
    pub counts: Arc<Counts>,
    /// Further authorities, as PEM; none if empty.
    pub authorities: Vec<u8>,
    pub is_tls: bool,
    /// Whoever gives the credentials; known once the store is.
    pub credentials: Arc<OnceLock<AwsCredentialProvider>>,
}

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        // How long a request may take depends on its size, which only its caller knows.
        let mut options = options.clone().with_timeout_disabled();
        if !self.is_tls {
            // Reading the system's certificates takes time, and fails where there are none.
            options = options.with_no_system_certificates(true);
        }
        for certificate in Certificate::from_pem_bundle(&self.authorities)? {
            options = options.with_root_certificate(certificate);
        }
        if options.get_config_value(&ClientConfigKey::UserAgent).is_none() {
            options = options.with_user_agent(HeaderValue::from_static(concat!("bk/", env!("CARGO_PKG_VERSION"))));
        }
        let client = ReqwestConnector::default().connect(&options)?;
        let files = Files::new(&options, self.authorities.clone(), self.is_tls, Arc::clone(&self.credentials));
        Ok(HttpClient::new(Wire { client, files, counts: Arc::clone(&self.counts) }))
    }
}

#[derive(Debug)]
struct Wire {
    client: HttpClient,
    files: Files,
    counts: Arc<Counts>,
}

#[async_trait]
impl HttpService for Wire {
    async fn call(&self, mut request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let what = What::of(&request);
        let count = match what {
            What::Put => &self.counts.put,
            What::Get => &self.counts.get,
            What::Head => &self.counts.head,
            What::List => &self.counts.list,
            What::Delete => &self.counts.delete,
            What::Other => &self.counts.other,
        };
        count.fetch_add(1, Ordering::Relaxed);
        let file = request.extensions_mut().remove::<Spooled>();
        let len = file.as_ref().map_or(request.body().content_length() as u64, Spooled::len);
        self.counts.sent_bytes.fetch_add(len, Ordering::Relaxed);
        if what == What::Other {
            return self.credentials(request).await;
        }
        let is_bulk = request.method().as_str() == "POST";
        let response = match file {
            Some(file) => self.files.send(request, file).await?,
            None => self.client.execute(request).await?,
        };
        self.counts.answered(&response);
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        if what == What::Delete && is_bulk {
            let (parts, body) = response.into_parts();
            let answer = up_to(body, PAGE_LEN_MAX).await?;
            self.counts.received_bytes.fetch_add(answer.len() as u64, Ordering::Relaxed);
            check_deleted(&answer).map_err(|refused| HttpError::new(HttpErrorKind::Unknown, refused))?;
            return Ok(HttpResponse::from_parts(parts, answer.into()));
        }
        if what != What::List {
            let len = response.headers().get("content-length").filter(|_| what != What::Head);
            let len = len.and_then(|len| len.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
            self.counts.received_bytes.fetch_add(len, Ordering::Relaxed);
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let page = up_to(body, PAGE_LEN_MAX).await?;
        self.counts.received_bytes.fetch_add(page.len() as u64, Ordering::Relaxed);
        check_page(&page).map_err(|broken| HttpError::new(HttpErrorKind::Decode, broken))?;
        Ok(HttpResponse::from_parts(parts, without_strange(page).into()))
    }
}

impl Wire {
    async fn credentials(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        for tries in 1.. {
            let failed = match self.client.execute(request.clone()).await {
                Ok(response) if response.status().is_success() => return Ok(response),
                Ok(response) => format!("the server says {}", response.status().as_u16()),
                Err(e) => e.to_string(),
            };
            if tries == CREDENTIALS_TRY_COUNT {
                let host = request.uri().host().unwrap_or_default();
                return Err(self.no_credentials(format!("{host}: {failed}")));
            }
            tokio::time::sleep(CREDENTIALS_PAUSE).await;
        }
        Err(self.no_credentials("asked too often".to_owned()))
    }

    fn no_credentials(&self, why: String) -> HttpError {
        let were_given = self.counts.answered.load(Ordering::Relaxed);
        HttpError::new(HttpErrorKind::Unknown, NoCredentials { why, were_given })
    }
}

/// A body's bytes; longer than `len_max` is an error.
async fn up_to(body: HttpResponseBody, len_max: usize) -> Result<Vec<u8>, HttpError> {
    let (mut stream, mut bytes) = (body.bytes_stream(), Vec::new());
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        if bytes.len() + chunk.len() > len_max {
            return Err(HttpError::new(HttpErrorKind::Decode, Broken("the answer is too long")));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

async fn refused(response: HttpResponse) -> HttpError {
    let (parts, body) = response.into_parts();
    let body = up_to(body, REFUSAL_LEN_MAX).await.unwrap_or_default();
    let refused = Refused::said(parts.status.as_u16(), &String::from_utf8_lossy(&body));
    HttpError::new(HttpErrorKind::Unknown, refused)
}

/// Whether an answer to the deletion of many objects, itself a success, refuses none of them.
///
/// A refusal is given the status it would have had alone, so that the objects are then deleted one by one.
fn check_deleted(answer: &[u8]) -> Result<(), Refused> {
    let text = String::from_utf8_lossy(answer);
    let Some((_, error)) = text.split_once("<Error>") else { return Ok(()) };
    let refused = Refused::said(403, error.split("</Error>").next().unwrap_or_default());
    let status = match refused.code.as_str() {
        "InternalError" => 500,
        "SlowDown" | "ServiceUnavailable" => 503,
        _ => 403,
    };
    Err(Refused { status, ..refused })
}

/// A page without the keys that are no paths: those with an empty component, as markers of folders (`shop/`) have, which other
/// programs leave, with `.` or `..` for one, or with a control character. None of them is bk's.
fn without_strange(page: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(&page);
    let is_strange = |object: &str| {
        // Of control characters XML has numbers, which nothing of bk's needs.
        let is_odd = |key: &str| key.contains("&#") || key.contains(|c: char| c.is_ascii_control());
        element(object, "Key")
            .is_some_and(|key| key.split('/').any(|part| matches!(part, "" | "." | "..")) || is_odd(key))
    };
    let (mut kept, mut rest) = (String::new(), &*text);
    while let Some((before, after)) = rest.split_once("<Contents>") {
        let Some((object, after)) = after.split_once("</Contents>") else { break };
        if is_strange(object) {
            kept.push_str(before);
        } else {
            kept.push_str(&rest[..rest.len() - after.len()]);
        }
        rest = after;
    }
    if kept.len() + rest.len() == text.len() {
        return page;
    }
    kept.push_str(rest);
    kept.into_bytes()
}

/// The text of the first element of this name; no nesting, no attributes, as in S3's answers.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    rest.split_once(&format!("</{name}>")).map(|(found, _)| found)
}

/// Whether a page of a listing says the same of itself in all places: how many keys it has, and where the next begins.
fn check_page(page: &[u8]) -> Result<(), Broken> {
    let text = std::str::from_utf8(page).map_err(|_| Broken("the listing is no text"))?;
    if !text.trim_end().ends_with("</ListBucketResult>") {
        return Err(Broken("the listing is cut off"));
    }
    let next = element(text, "NextContinuationToken").is_some_and(|token| !token.is_empty());
    match element(text, "IsTruncated") {
        Some("true") if !next => return Err(Broken("the listing goes on, but does not say where")),
        Some("false") if next => return Err(Broken("the listing has ended, but says where it goes on")),
        Some("true" | "false") => {}
        // Not saying is not a no.
        _ => return Err(Broken("the listing does not say whether it goes on")),
    }
    let count = text.matches("<Contents>").count() + text.matches("<CommonPrefixes>").count();
    match element(text, "KeyCount").map(str::parse::<usize>) {
        Some(Ok(said)) if said != count => Err(Broken("the listing has not as many keys as it says")),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{check_deleted, check_page, without_strange};

    #[test]
    fn keys_that_are_no_paths_are_passed_over() {
        let one = |key: &str| format!("<Contents><Key>{key}</Key><Size>0</Size></Contents>");
        let page = |keys: &[&str]| {
            let all: String = keys.iter().map(|key| one(key)).collect();
            format!("<ListBucketResult><Name>b</Name>{all}<IsTruncated>false</IsTruncated></ListBucketResult>\n")
        };
        let mixed = page(&["shop/", "shop/a", "shop/data//x", "shop/log/", "shop/b", "/c", "shop/log/j/"]);
        let worse =
            page(&["shop/./x", "shop/a", "..", "shop/..", "shop/b", "shop/x&#x1;", "shop/\u{1}", "shop/&#10;/x"]);
        assert_eq!(without_strange(worse.into_bytes()), page(&["shop/a", "shop/b"]).into_bytes());
        assert_eq!(without_strange(mixed.into_bytes()), page(&["shop/a", "shop/b"]).into_bytes());
        let plain = page(&["shop/a", "shop/data/b", "shop/.c/..d/e.", "shop/a&amp;b"]);
        assert_eq!(without_strange(plain.clone().into_bytes()), plain.into_bytes());
    }

    #[test]
    fn a_refusal_among_deletions_is_told() {
        let answer = |inner: &str| check_deleted(format!("<DeleteResult>{inner}</DeleteResult>").as_bytes());
        assert!(answer("<Deleted><Key>a</Key></Deleted>").is_ok() && answer("").is_ok());
        let status = |code: &str| {
            let error = format!("<Error><Key>b</Key><Code>{code}</Code><Message>no</Message></Error>");
            let refused = answer(&format!("<Deleted><Key>a</Key></Deleted>{error}")).unwrap_err();
            assert_eq!((refused.code.as_str(), refused.message.as_str()), (code, "no"));
            refused.status
        };
        assert_eq!(["AccessDenied", "InternalError", "SlowDown"].map(status), [403, 500, 503]);
    }

    #[test]
    fn a_page_that_contradicts_itself() {
        let page =
            |inner: &str| check_page(format!("<ListBucketResult>{inner}</ListBucketResult>\n").as_bytes()).is_ok();
        assert!(page("<IsTruncated>false</IsTruncated>"));
        assert!(page("<IsTruncated>false</IsTruncated><KeyCount>1</KeyCount><Contents></Contents>"));
        assert!(page("<IsTruncated>true</IsTruncated><NextContinuationToken>x</NextContinuationToken>"));
        assert!(!page("<IsTruncated>true</IsTruncated>"));
        assert!(!page("<IsTruncated>false</IsTruncated><NextContinuationToken>x</NextContinuationToken>"));
        assert!(!page("<IsTruncated>false</IsTruncated><KeyCount>2</KeyCount><Contents></Contents>"));
        assert!(!page(""));
        assert!(check_page(b"<ListBucketResult><IsTruncated>false</IsTruncated>").is_err());
        assert!(check_page(b"").is_err());
    }
}
