//! A small answer over HTTP, with an end: the only requests a gate makes.

use std::{path::Path, time::Duration};

use crate::error::{Error, Kind, Result};

/// A longer answer is none of a cluster manager's.
const BODY_LEN_MAX: usize = 1 << 20;
const TICK: Duration = Duration::from_millis(100);

/// Status and body of `GET url`.
pub fn get(url: &str, ca_file: Option<&Path>, timeout: Duration, stop: &dyn Fn() -> bool) -> Result<(u16, Vec<u8>)> {
    // The only provider there is; a second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed = |e: reqwest::Error| Error::new(Kind::Gate, format!("{url}: {}", chain(&e)));
    // A cluster manager is reached straight; what a proxy would say is not its answer.
    let mut builder = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none());
    if let Some(path) = ca_file {
        let pem = std::fs::read(path)
            .map_err(|e| Error::io(format!("cannot read {}", path.display()), e).with_kind(Kind::Usage))?;
        let found = reqwest::Certificate::from_pem_bundle(&pem)
            .map_err(|e| Error::usage(format!("no certificates in {}: {e}", path.display())))?;
        builder = builder.tls_certs_merge(found);
    }
    let client = builder.timeout(timeout).build().map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Error::io("cannot start an HTTP client", e))?;
    runtime.block_on(async {
        let mut answer = std::pin::pin!(async {
            let mut response = client.get(url).send().await.map_err(failed)?;
            let (status, mut body) = (response.status().as_u16(), Vec::new());
            while let Some(bytes) = response.chunk().await.map_err(failed)? {
                body.extend_from_slice(&bytes);
                if body.len() > BODY_LEN_MAX {
                    return Err(Error::new(Kind::Gate, format!("{url}: the answer is longer than 1 MiB")));
                }
            }
            Ok((status, body))
        });
        loop {
            if let Ok(answer) = tokio::time::timeout(TICK, answer.as_mut()).await {
                return answer;
            }
            if stop() {
                return Err(Error::new(Kind::Gate, format!("{url}: interrupted")));
            }
        }
    })
}

/// What went wrong, with its causes: the first alone says little.
fn chain(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut causes = Vec::new();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    causes.pop().unwrap_or_else(|| "no answer".to_owned())
}
