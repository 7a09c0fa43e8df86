//! A proxy that fails: a small HTTP/1.1 forwarder on loopback between bk and an S3 server, one connection a request.
//!
//! It counts requests and gives the k-th one (or all from the k-th on) a [`Fault`]. Nothing is signed anew, so what it
//! changes are answers, or whether and how often a request is passed on.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It is not passed on; the answer is this status.
    Status(u16),
    /// It is not passed on; the connection ends.
    ResetBefore,
    /// It is passed on; the connection ends without an answer.
    ResetAfter,
    /// It is passed on; half of the answer comes, and then nothing for long.
    Stall,
    /// It is not passed on, and no answer comes as long as the client waits.
    Hang,
    /// Half of the answer comes, and the connection ends.
    Cut,
    /// The answer to a GET of a range says that it is of another.
    WrongRange,
    /// A byte in the middle of an answer to a GET is another.
    Flip,
    /// A byte in the middle of what a PUT brings is another.
    FlipSent,
    /// A PUT is passed on twice; the answer is the second one's.
    Twice,
    /// A PUT is passed on a while after its connection has ended.
    Late,
    /// The PUT of a record is not answered and passed on much later; meanwhile there is no space for it: 507.
    LateThenFull,
    /// A listing loses its keys, but not what it says of them.
    KeysLost,
    /// A listing is cut off, and its length is right for that.
    PageCut,
    /// A PUT says 200, and nothing is kept.
    KeptNothing,
    /// Many objects at once may not be deleted: 403.
    BulkDenied,
    /// A PUT is passed on as if it had no condition: to a store that knows none.
    Unconditional,
    /// Many objects at once are answered with 200, and each of them with a refusal.
    EachDenied,
    /// Listings also hold what other programs leave in a bucket: markers of folders, and keys that are no paths.
    Markers,
    /// What a PUT brings is taken slowly, [`SLOW_LEN`] bytes every [`SLOW_PAUSE`].
    Slow,
    /// What answers a GET comes as slowly.
    SlowAnswer,
}

/// Bytes of a [`Fault::Slow`] PUT that are taken at once.
const SLOW_LEN: usize = 32 << 10;
const SLOW_PAUSE: Duration = Duration::from_millis(160);

impl Fault {
    /// Whether it can come to a request.
    pub fn fits(self, request: &Request) -> bool {
        let is_get = request.method == "GET" && !request.is_list();
        match self {
            Self::WrongRange => is_get && request.has_range,
            Self::Flip => is_get,
            Self::FlipSent | Self::Twice | Self::Late | Self::KeptNothing | Self::Unconditional | Self::Slow => {
                request.method == "PUT"
            }
            Self::LateThenFull => request.method == "PUT" && request.is_of_the_log(),
            Self::KeysLost | Self::PageCut | Self::Markers => request.is_list(),
            Self::BulkDenied | Self::EachDenied => request.method == "POST",
            Self::Cut | Self::SlowAnswer => request.method == "GET",
            _ => true,
        }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub target: String,
    pub has_range: bool,
    /// Of whose session it says it is.
    pub token: Option<String>,
    pub head: String,
}

impl Request {
    fn is_of_the_log(&self) -> bool {
        self.target.contains("/log/")
    }

    pub fn is_list(&self) -> bool {
        self.method == "GET" && self.target.contains("list-type=2")
    }
}

#[derive(Default)]
struct State {
    seen: Vec<Request>,
    /// From which request on (1 is the first), how many that it fits, and what.
    plan: Option<(usize, usize, Fault)>,
    came: usize,
    /// Whether what was to be passed on late has been, however that went.
    is_late_over: bool,
    /// Whether it may come later, where the request it was meant for does not fit.
    is_any: bool,
    /// Whether requests are counted only once the record is there and was looked at.
    is_after_commit: bool,
}

impl State {
    /// Whether the newest of the requests, which is counted from the plan's beginning on, meets the plan's fault.
    fn meets(&mut self) -> Option<Fault> {
        let (k, count, fault) = self.plan?;
        let number = self.seen.len() - if self.is_after_commit { till_the_commit(&self.seen)? } else { 0 };
        let is_its_turn = number == k || number > k && (count > 1 || self.is_any);
        let comes = is_its_turn && self.came < count && fault.fits(self.seen.last()?);
        self.came += usize::from(comes);
        comes.then_some(fault)
    }
}

/// How many requests there were till the record was there and was looked at, however often each was tried.
pub fn till_the_commit(requests: &[Request]) -> Option<usize> {
    let record = requests.iter().position(|request| request.method == "PUT" && request.is_of_the_log())?;
    let others = requests[record..].iter().position(|request| !request.is_of_the_log())?;
    Some(record + others)
}

/// Runs as long as it lives.
pub struct Proxy {
    pub endpoint: String,
    address: String,
    state: Arc<Mutex<State>>,
    ends: Arc<AtomicBool>,
}

impl Proxy {
    /// Before the server at `endpoint`.
    pub fn before(endpoint: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // What is taken slowly is not to lie in the kernel meanwhile.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 32 << 10).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let upstream = endpoint.strip_prefix("http://").unwrap().to_owned();
        let (state, ends) = (Arc::new(Mutex::new(State::default())), Arc::new(AtomicBool::new(false)));
        let (shared, end) = (Arc::clone(&state), Arc::clone(&ends));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if end.load(Ordering::Relaxed) {
                    return;
                }
                let (upstream, state) = (upstream.clone(), Arc::clone(&shared));
                // A client that goes away is part of the game.
                std::thread::spawn(move || drop(client.and_then(|client| serve(client, &upstream, &state))));
            }
        });
        Self { endpoint: format!("http://{address}"), address, state, ends }
    }

    /// Forgets what was seen; the `count` requests from the `k`-th on that `fault` fits meet it.
    pub fn plan(&self, k: usize, count: usize, fault: Fault) {
        *self.state.lock().unwrap() = State { plan: Some((k, count, fault)), ..State::default() };
    }

    /// The same for the first request from the `k`-th on that `fault` fits.
    pub fn plan_any(&self, k: usize, fault: Fault) {
        let plan = Some((k, 1, fault));
        *self.state.lock().unwrap() = State { plan, is_any: true, ..State::default() };
    }

    /// The same for all requests from the `k`-th on that follow a run's record, which is looked at before.
    pub fn plan_after_commit(&self, k: usize, fault: Fault) {
        let plan = Some((k, usize::MAX, fault));
        *self.state.lock().unwrap() = State { plan, is_after_commit: true, ..State::default() };
    }

    /// Forgets what was seen and passes everything on.
    pub fn pass(&self) {
        *self.state.lock().unwrap() = State::default();
    }

    /// What was seen since.
    pub fn seen(&self) -> Vec<Request> {
        self.state.lock().unwrap().seen.clone()
    }

    /// Whether what was to be passed on late has been, however that went.
    pub fn is_late_over(&self) -> bool {
        self.state.lock().unwrap().is_late_over
    }

    /// How many requests met the fault.
    pub fn came(&self) -> usize {
        self.state.lock().unwrap().came
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.address);
    }
}

/// The head of a request.
fn read_head(client: &mut TcpStream) -> std::io::Result<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

/// The body of a request.
fn read_body(client: &mut TcpStream, head: &str, is_slow: bool) -> std::io::Result<Vec<u8>> {
    let len = header(head, "content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
    let mut body = vec![0; len];
    for some in body.chunks_mut(if is_slow { SLOW_LEN } else { len.max(1) }) {
        client.read_exact(some)?;
        if is_slow {
            std::thread::sleep(SLOW_PAUSE);
        }
    }
    Ok(body)
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Passes a request on; gives head and body of the answer.
fn forward(upstream: &str, head: &str, body: &[u8]) -> std::io::Result<(String, Vec<u8>)> {
    let mut server = TcpStream::connect(upstream)?;
    let head = head.strip_suffix("\r\n").unwrap_or(head);
    server.write_all(format!("{head}connection: close\r\n\r\n").as_bytes())?;
    server.write_all(body)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let body = answer.split_off(end + 4);
    Ok((String::from_utf8_lossy(&answer).into_owned(), body))
}

/// The head with a header set.
fn with_header(head: &str, name: &str, value: &str) -> String {
    let kept = head
        .trim_end()
        .lines()
        .filter(|line| !line.split_once(':').is_some_and(|(found, _)| found.eq_ignore_ascii_case(name)));
    let lines: Vec<&str> = kept.collect();
    format!("{}\r\n{name}: {value}\r\n\r\n", lines.join("\r\n"))
}

/// The body of an answer that came in chunks, as a whole, and its head for that.
fn whole((head, body): (String, Vec<u8>)) -> (String, Vec<u8>) {
    if !header(&head, "transfer-encoding").is_some_and(|how| how.eq_ignore_ascii_case("chunked")) {
        return (head, body);
    }
    let (mut out, mut rest) = (Vec::new(), &body[..]);
    while let Some(end) = rest.windows(2).position(|two| two == b"\r\n") {
        let len = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        if len == 0 {
            break;
        }
        out.extend_from_slice(&rest[end + 2..end + 2 + len]);
        rest = &rest[end + 2 + len + 2..];
    }
    let lines: Vec<&str> =
        head.lines().filter(|line| !line.to_ascii_lowercase().starts_with("transfer-encoding")).collect();
    (with_header(&lines.join("\r\n"), "content-length", &out.len().to_string()), out)
}

/// A page of a listing with what other programs leave in a bucket.
fn with_markers(page: &str, target: &str) -> String {
    let asked = target.split(['?', '&']).find_map(|pair| pair.strip_prefix("prefix=")).unwrap_or_default();
    let asked = asked.replace("%2F", "/");
    let volume = asked.split('/').next().unwrap_or_default();
    let one = |(key, size): &(String, usize)| {
        format!(
            "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>&quot;0123&quot;</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        )
    };
    let names = ["/", "/log/", "/log/c/", "/data/", "/data/c/", "/runs/", "/leases/"];
    let markers = names.map(|name| (format!("{volume}{name}"), 0)).into_iter();
    let odd = ["data//x", "log//c/x", "data/./x", "log/../c/x", "runs/c/..", "log/c/.", "data/&#x1;x", "log/c/&#10;"];
    let all = markers.chain(odd.map(|key| (format!("{volume}/{key}"), 3)));
    let found: Vec<_> = all.filter(|(key, _)| key.starts_with(&asked)).collect();
    let (before, rest) = page.split_once("<IsTruncated>").unwrap();
    let text = format!("{before}{}<IsTruncated>{rest}", found.iter().map(one).collect::<String>());
    match text.split_once("<KeyCount>").and_then(|(head, rest)| Some((head, rest.split_once("</KeyCount>")?))) {
        Some((head, (count, rest))) => {
            format!("{head}<KeyCount>{}</KeyCount>{rest}", count.parse::<usize>().unwrap() + found.len())
        }
        None => text,
    }
}

fn serve(mut client: TcpStream, upstream: &str, state: &Mutex<State>) -> std::io::Result<()> {
    client.set_nodelay(true)?;
    let head = read_head(&mut client)?;
    let mut words = head.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let has_range = header(&head, "range").is_some();
    let token = header(&head, "x-amz-security-token").map(str::to_owned);
    let request =
        Request { method: method.to_owned(), target: target.to_owned(), has_range, token, head: head.clone() };
    let (fault, came) = {
        let mut state = state.lock().unwrap();
        state.seen.push(request.clone());
        (state.meets(), state.came)
    };
    let fault = match fault {
        Some(Fault::LateThenFull) if came > 1 => Some(Fault::Status(507)),
        fault => fault,
    };
    let body = read_body(&mut client, &head, fault == Some(Fault::Slow))?;
    if fault == Some(Fault::Slow) {
        // What the client gave up was in the kernel, and is nobody's any more.
        client.set_nonblocking(true)?;
        if !client.peek(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock) {
            return Ok(());
        }
        client.set_nonblocking(false)?;
    }
    let fresh = || -> std::io::Result<(String, Vec<u8>)> { Ok(whole(forward(upstream, &head, &body)?)) };
    let half = |client: &mut TcpStream, (head, body): (String, Vec<u8>)| match body.is_empty() {
        true => client.write_all(&head.as_bytes()[..head.len() / 2]),
        false => client.write_all(head.as_bytes()).and_then(|()| client.write_all(&body[..body.len() / 2])),
    };
    let (mut head_back, mut body_back) = match fault {
        Some(Fault::Status(_) | Fault::BulkDenied) => {
            let status = if let Some(Fault::Status(status)) = fault { status } else { 403 };
            let (code, text) = match status {
                403 => ("AccessDenied", "Access Denied"),
                429 => ("TooManyRequests", "Slow down"),
                503 => ("SlowDown", "Please reduce your request rate."),
                _ => ("InternalError", "We encountered an internal error. Please try again."),
            };
            let xml = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{text}</Message></Error>");
            let body = if request.method == "HEAD" { String::new() } else { xml };
            (
                format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len()),
                body.into_bytes(),
            )
        }
        Some(Fault::ResetBefore) => return Ok(()),
        Some(Fault::ResetAfter) => return fresh().map(drop),
        Some(Fault::Late) => {
            drop(client);
            std::thread::sleep(Duration::from_millis(8));
            return fresh().map(drop);
        }
        Some(Fault::LateThenFull) => {
            drop(client);
            std::thread::sleep(Duration::from_secs(3));
            let passed = fresh();
            state.lock().unwrap().is_late_over = true;
            return passed.map(drop);
        }
        Some(Fault::Stall) => {
            half(&mut client, fresh()?)?;
            // Till the client has given up.
            client.set_read_timeout(Some(Duration::from_secs(20)))?;
            return client.read(&mut [0]).map(drop);
        }
        Some(Fault::Hang) => {
            client.set_read_timeout(Some(Duration::from_secs(100)))?;
            return client.read(&mut [0]).map(drop);
        }
        Some(Fault::Cut) => return half(&mut client, fresh()?),
        Some(Fault::FlipSent) => {
            let mut body = body.clone();
            let at = body.len() / 2;
            body[at] ^= 0x10;
            whole(forward(upstream, &head, &body)?)
        }
        Some(Fault::Twice) => {
            fresh()?;
            fresh()?
        }
        Some(Fault::EachDenied) => {
            let text = String::from_utf8_lossy(&body).into_owned();
            let keys = text.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>")).map(|(key, _)| key);
            let error = |key| {
                format!("<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>")
            };
            let errors: String = keys.map(error).collect();
            let xml = format!("<?xml version=\"1.0\"?><DeleteResult>{errors}</DeleteResult>");
            (format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", xml.len()), xml.into_bytes())
        }
        Some(Fault::KeptNothing) => {
            let head = "HTTP/1.1 200 OK\r\nETag: \"0123\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            (head.to_owned(), Vec::new())
        }
        Some(Fault::Unconditional) => {
            // It would not be let through without its condition, which is signed: first the object goes.
            let (head, body) = fresh()?;
            if head.starts_with("HTTP/1.1 412") {
                let head = "HTTP/1.1 200 OK\r\nETag: \"0123\"\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                (head.to_owned(), Vec::new())
            } else {
                (head, body)
            }
        }
        _ => fresh()?,
    };
    let is_good = head_back.starts_with("HTTP/1.1 2");
    match fault {
        Some(Fault::WrongRange) if is_good => {
            let range = header(&head_back, "content-range").unwrap_or("bytes 0-0/1").to_owned();
            let rest = range.trim_start_matches("bytes ").to_owned();
            let (span, total) = rest.split_once('/').unwrap();
            let (from, to) = span.split_once('-').unwrap();
            let add = |n: &str| n.parse::<u64>().unwrap() + 1;
            let (from, to) = (add(from), add(to));
            head_back = with_header(&head_back, "content-range", &format!("bytes {from}-{to}/{}", add(total)));
        }
        Some(Fault::Flip) if is_good && !body_back.is_empty() => {
            let at = body_back.len() / 2;
            body_back[at] ^= 0x10;
        }
        Some(Fault::KeysLost) if is_good => {
            let text = String::from_utf8_lossy(&body_back).into_owned();
            if let (Some(from), Some(to)) = (text.find("<Contents>"), text.rfind("</Contents>")) {
                body_back = format!("{}{}", &text[..from], &text[to + "</Contents>".len()..]).into_bytes();
            }
            head_back = with_header(&head_back, "content-length", &body_back.len().to_string());
        }
        Some(Fault::Markers) if is_good => {
            let text = with_markers(&String::from_utf8_lossy(&body_back), &request.target);
            body_back = text.into_bytes();
            head_back = with_header(&head_back, "content-length", &body_back.len().to_string());
        }
        Some(Fault::PageCut) if is_good => {
            body_back.truncate(body_back.len() / 2);
            head_back = with_header(&head_back, "content-length", &body_back.len().to_string());
        }
        _ => {}
    }
    client.write_all(with_header(&head_back, "connection", "close").as_bytes())?;
    if fault != Some(Fault::SlowAnswer) {
        return client.write_all(&body_back);
    }
    for some in body_back.chunks(SLOW_LEN) {
        client.write_all(some)?;
        std::thread::sleep(SLOW_PAUSE);
    }
    Ok(())
}
