//! Reaching a bucket: what was typed, what the environment says, and what follows from both.

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use object_store::{
    Certificate, RetryConfig, StaticCredentialProvider,
    aws::{AmazonS3Builder, AmazonS3ConfigKey, AwsCredential, AwsCredentialProvider, Checksum, S3ConditionalPut},
};

use super::{
    Inner, S3Store, Threads,
    ahead::Ahead,
    body::is_yes,
    retry::Limits,
    upload::Budget,
    watch::Watch,
    wire::{Connector, Counts},
};
use crate::{
    config::credentials,
    error::{Error, Kind, Result},
    model::{
        place::{Access, Bucket, Keys},
        units::parse_size,
    },
};

/// Bytes held for uploads, when nothing else is said.
const IN_FLIGHT_BYTES: u64 = 256 << 20;
/// Longest index that is sent from memory, when nothing else is said.
const IN_MEMORY_LEN_MAX: u64 = 8 << 20;
/// Threads that wait for the network and sign requests.
const THREAD_COUNT: usize = 2;

impl S3Store {
    /// Reaches a bucket. Nothing is asked of it yet.
    pub fn open(bucket: &Bucket, access: &Access) -> Result<Self> {
        let counts = Arc::new(Counts::default());
        let credentials = Arc::new(OnceLock::new());
        let builder = builder(bucket, access, &counts, &credentials)?;
        let client = builder.clone().build().map_err(|e| unusable(bucket, &e))?;
        credentials.get_or_init(|| Arc::clone(client.credentials()));
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREAD_COUNT)
            .thread_name("bk-s3")
            .enable_all()
            .build()
            .map_err(|e| Error::io("cannot start threads", e))?;
        let in_flight = match std::env::var("BK_S3_IN_FLIGHT") {
            Ok(text) if !text.is_empty() => parse_size(&text).map_err(|e| e.context("BK_S3_IN_FLIGHT"))?,
            _ => access.in_flight.unwrap_or(IN_FLIGHT_BYTES),
        };
        // Sessions of directory buckets sign in a way of their own.
        let is_express = builder.get_config_value(&AmazonS3ConfigKey::S3Express).is_some_and(|text| is_yes(&text));
        let in_memory_len_max = if is_express { u64::MAX } else { in_memory_len_max() };
        let inner = Inner {
            client,
            bulk: OnceLock::new(),
            has_no_bulk: AtomicBool::new(false),
            is_exclusive: AtomicBool::new(false),
            builder,
            bucket: bucket.clone(),
            patience: Limits::from_env(),
            is_in_a_hurry: AtomicBool::new(false),
            counts,
            budget: Arc::new(Budget::new(in_flight)),
            watch: Watch::new(access.stop.clone()),
            ahead: Ahead::default(),
            in_memory_len_max,
        };
        Ok(Self { inner: Arc::new(inner), threads: Arc::new(Threads(Some(runtime))) })
    }
}

/// Spooled objects up to this length are sent from memory, as parts are; tests say `BK_TEST_S3_IN_MEMORY`.
fn in_memory_len_max() -> u64 {
    let set = std::env::var("BK_TEST_S3_IN_MEMORY").ok().and_then(|text| text.parse().ok());
    set.unwrap_or(IN_MEMORY_LEN_MAX)
}

fn unusable(bucket: &Bucket, error: &object_store::Error) -> Error {
    Error::usage(format!("cannot reach {bucket}: {error}"))
}

fn builder(
    bucket: &Bucket,
    access: &Access,
    counts: &Arc<Counts>,
    credentials: &Arc<OnceLock<AwsCredentialProvider>>,
) -> Result<AmazonS3Builder> {
    // The only provider there is; a second call finds the first one's.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(&bucket.name);
    if let Some(endpoint) = &access.endpoint {
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(Error::usage(format!("not an endpoint: `{endpoint}`")).with_hint("write https://HOST[:PORT]"));
        }
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &access.region {
        builder = builder.with_region(region);
    }
    let set = |builder: &AmazonS3Builder, key| builder.get_config_value(&key).filter(|value| !value.trim().is_empty());
    if let Some(keys) = keys(access, &|key| set(&builder, key))? {
        let Keys { id: key_id, secret: secret_key, token } = keys;
        let credential = AwsCredential { key_id, secret_key, token };
        builder = builder.with_credentials(Arc::new(StaticCredentialProvider::new(credential)));
    }
    let is_no = |text: &str| ["false", "0", "no", "n", "off"].contains(&text.to_ascii_lowercase().as_str());
    if set(&builder, AmazonS3ConfigKey::SkipSignature).is_some_and(|text| !is_no(&text)) {
        let error = Error::usage("AWS_SKIP_SIGNATURE is set: requests that are not signed are not made");
        return Err(error.with_hint("a public bucket is read with keys, too: any do that may read it"));
    }
    let endpoint = set(&builder, AmazonS3ConfigKey::S3Endpoint).or_else(|| set(&builder, AmazonS3ConfigKey::Endpoint));
    let is_tls = !endpoint.as_deref().is_some_and(|url| url.starts_with("http://"));
    // A name with a dot is in no certificate; other servers often have no names for buckets at all.
    let host_style = std::env::var_os("AWS_VIRTUAL_HOSTED_STYLE_REQUEST").is_none();
    if access.path_style || endpoint.is_some() && host_style {
        builder = builder.with_virtual_hosted_style_request(false);
    } else if endpoint.is_none() && host_style {
        builder = builder.with_virtual_hosted_style_request(!bucket.name.contains('.'));
    }
    // Over TLS the bytes are safe on their way and a checksum guards the rest; without it they are signed, which is slower.
    builder = builder.with_allow_http(!is_tls).with_unsigned_payload(is_tls);
    if set(&builder, AmazonS3ConfigKey::Checksum).is_none() {
        builder = builder.with_checksum_algorithm(Checksum::CRC64NVME);
    }
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let connector = Connector {
        counts: Arc::clone(counts),
        authorities: authorities(access)?,
        is_tls,
        credentials: Arc::clone(credentials),
    };
    Ok(builder
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_disable_bulk_delete(true)
        .with_disable_tagging(true)
        .with_retry(retry)
        .with_http_connector(connector))
}

/// The keys that are known: those that were configured, else those of the environment or of the file it names. Each stand
/// for themselves: nothing of others is mixed in, and a token that they do not have is not sent, not even empty.
fn keys(access: &Access, set: &dyn Fn(AmazonS3ConfigKey) -> Option<String>) -> Result<Option<Keys>> {
    if let Some(keys) = &access.keys {
        return Ok(Some(keys.clone()));
    }
    if let Some(keys) = credentials::of_environment()? {
        return Ok(Some(keys));
    }
    match (set(AmazonS3ConfigKey::AccessKeyId), set(AmazonS3ConfigKey::SecretAccessKey)) {
        (Some(id), Some(secret)) => {
            let names = ["AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"];
            credentials::made(&id, &secret, set(AmazonS3ConfigKey::Token), names).map(Some)
        }
        // One without the other is told as the client is made.
        _ => Ok(None),
    }
}

fn authorities(access: &Access) -> Result<Vec<u8>> {
    let Some(path) = &access.ca_file else { return Ok(Vec::new()) };
    let shown = path.display();
    let pem = std::fs::read(path)
        .map_err(|e| Error::io(format!("cannot read the certificates in {shown}"), e).with_kind(Kind::Usage))?;
    let found =
        Certificate::from_pem_bundle(&pem).map_err(|e| Error::usage(format!("no certificates in {shown}: {e}")))?;
    if found.is_empty() {
        return Err(Error::usage(format!("there is no certificate in {shown}")));
    }
    Ok(pem)
}
