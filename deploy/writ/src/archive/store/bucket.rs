//! An archive in an S3-compatible bucket.
//!
//! rusty-s3 signs addresses (AWS Signature Version 4, in the query) and does no I/O; requests go out through the HTTP
//! client the rest of Writ uses. An address that is signed may hold a session token, so none is ever shown, and of an
//! answer that is an error only its code: stores repeat what was signed.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use rusty_s3::{Bucket as Address, Credentials, S3Action, UrlStyle, actions::ListObjectsV2};
use writ_broker::oidc::issuer_client;
use writ_bus::keyfile;
use writ_common::{digest::Digest, visible::visible};

use super::{Environment, Listed, Read, check_key};

/// How long one request may take in all, and how long the other side may be silent.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long a signed address counts; a request has to begin within it.
const SIGNED_FOR: Duration = Duration::from_secs(900);
/// How often something is asked in all, and the first pause between; it doubles.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(200);
/// Most bytes of an answer that is an error, and of a page of a list.
const ERROR_BYTES_MAX: usize = 64 * 1024;
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// A bucket, and a prefix in it.
pub(super) struct Bucket {
    address: Address,
    credentials: Credentials,
    /// Empty, or with a slash at its end.
    prefix: String,
    client: Client,
}

/// What one request came to.
struct Answer {
    status: StatusCode,
    /// The code of an error, if it names one.
    code: Option<String>,
    read: Read,
}

impl Bucket {
    /// `rest` is `bucket` or `bucket/prefix`.
    pub(super) fn open(rest: &str, environment: Environment<'_>) -> Result<Self> {
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let is_name = (3..=63).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte));
        ensure!(is_name, "`{}` is no name of a bucket (3 to 63 of a-z, 0-9, `.`, `-`)", visible(name));
        let prefix = prefix.trim_end_matches('/');
        if !prefix.is_empty() {
            check_key(prefix)?;
        }
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        let credentials = credentials(environment)?;
        let (endpoint, style, region) = match environment("AWS_ENDPOINT_URL") {
            Some(text) => {
                // Other stores mostly know one region and do not care for its name.
                let region = environment("AWS_REGION").unwrap_or_else(|| "us-east-1".to_owned());
                (endpoint(&text)?, UrlStyle::Path, region)
            }
            None => {
                let region = environment("AWS_REGION").context(
                    "AWS_REGION is not set; name the bucket's region, or the store with AWS_ENDPOINT_URL",
                )?;
                let is_name = region
                    .bytes()
                    .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
                ensure!(is_name, "AWS_REGION is no name of a region (`eu-central-1`)");
                let china = if region.starts_with("cn-") { ".cn" } else { "" };
                let url = Url::parse(&format!("https://s3.{region}.amazonaws.com{china}"));
                // The certificate of the store is for one name before the first dot.
                let style = if name.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
                (url.context("AWS_REGION is no name of a region")?, style, region)
            }
        };
        let client = issuer_client(&endpoint, REQUEST_TIMEOUT)
            .connect_timeout(SILENCE_MAX)
            .read_timeout(SILENCE_MAX)
            .build()
            .map_err(reqwest::Error::without_url)
            .context("no HTTPS client")?;
        let address = Address::new(endpoint, style, name.to_owned(), region);
        let address = address.ok().context("AWS_ENDPOINT_URL has no host")?;
        Ok(Self { address, credentials, prefix, client })
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Puts a file; false if there is one of that name.
    pub(super) async fn put_new(&self, key: &str, bytes: &[u8]) -> Result<bool> {
        // Some stores know no conditions and would overwrite, so that it is looked for as well.
        let there = self.read_some(key, 1, true).await?;
        if there != Read::Nothing {
            return Ok(false);
        }
        let answer = self.put(key, bytes, true).await?;
        match answer.status {
            status if status.is_success() => Ok(true),
            StatusCode::PRECONDITION_FAILED => Ok(false),
            StatusCode::NOT_IMPLEMENTED => self.replace(key, bytes).await.map(|()| true),
            _ => Err(answer.refused("cannot be put")),
        }
    }

    /// Puts a file in the place of another.
    pub(super) async fn replace(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let answer = self.put(key, bytes, false).await?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.refused("cannot be put")) }
    }

    async fn put(&self, key: &str, bytes: &[u8], is_new: bool) -> Result<Answer> {
        let key = self.key(key);
        // The store checks what arrived, and a bucket with object lock takes nothing without a checksum.
        let checksum = STANDARD.encode(Digest::plain(bytes).as_bytes());
        self.ask(ERROR_BYTES_MAX, || {
            let mut action = self.address.put_object(Some(&self.credentials), &key);
            action.headers_mut().insert("x-amz-checksum-sha256", checksum.clone());
            let request = self
                .client
                .request(Method::PUT, action.sign(SIGNED_FOR))
                .header("x-amz-checksum-sha256", &checksum)
                // Of an empty file it would not be said, and stores insist on it.
                .header("content-length", bytes.len())
                .body(bytes.to_vec());
            if is_new { request.header("if-none-match", "*") } else { request }
        })
        .await
    }

    /// Reads a file.
    pub(super) async fn read(&self, key: &str, bytes_max: u64) -> Result<Read> {
        self.read_some(key, usize::try_from(bytes_max).unwrap_or(usize::MAX), false).await
    }

    /// Reads a file, or only so much of it that one knows whether it is there.
    async fn read_some(&self, key: &str, bytes_max: usize, is_look: bool) -> Result<Read> {
        let key = self.key(key);
        let answer = self
            .ask(bytes_max, || {
                let url = self.address.get_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
                let request = self.client.request(Method::GET, url);
                if is_look { request.header("range", "bytes=0-0") } else { request }
            })
            .await?;
        match answer.status {
            status if status.is_success() => Ok(answer.read),
            // It is there, and has no first byte.
            StatusCode::RANGE_NOT_SATISFIABLE if is_look => Ok(Read::Whole(Vec::new())),
            StatusCode::NOT_FOUND if answer.code.as_deref() != Some("NoSuchBucket") => Ok(Read::Nothing),
            _ => Err(answer.refused("cannot be read")),
        }
    }

    /// Every file, in no order.
    pub(super) async fn list(&self, folder: Option<&str>) -> Result<Vec<Listed>> {
        let prefix = match folder {
            Some(folder) => format!("{}{folder}/", self.prefix),
            None => self.prefix.clone(),
        };
        let mut listed = Vec::new();
        let mut next: Option<String> = None;
        loop {
            let answer = self
                .ask(PAGE_BYTES_MAX, || {
                    let mut action = self.address.list_objects_v2(Some(&self.credentials));
                    if !prefix.is_empty() {
                        action.with_prefix(&prefix);
                    }
                    if let Some(next) = &next {
                        action.with_continuation_token(next);
                    }
                    self.client.request(Method::GET, action.sign(SIGNED_FOR))
                })
                .await?;
            let Answer { status, read: Read::Whole(body), .. } = &answer else {
                bail!("the list is larger than {PAGE_BYTES_MAX} bytes a page");
            };
            if !status.is_success() {
                return Err(answer.refused("cannot be listed"));
            }
            let text = std::str::from_utf8(body).context("the list is no text")?;
            let page = ListObjectsV2::parse_response(text).context("the answer is no list")?;
            for object in page.contents {
                // A store that answers for other prefixes than it was asked for is not followed there.
                let Some(key) = object.key.strip_prefix(&self.prefix) else { continue };
                // An object of that name is how some tools show a folder.
                if !key.is_empty() && !key.ends_with('/') {
                    listed.push(Listed { key: key.to_owned(), bytes: object.size.unwrap_or_default() });
                }
            }
            match page.next_continuation_token {
                Some(token) if next.as_ref() == Some(&token) => bail!("the list does not come to an end"),
                Some(token) => next = Some(token),
                None => return Ok(listed),
            }
        }
    }

    /// Deletes a file.
    pub(super) async fn delete(&self, key: &str) -> Result<()> {
        let key = self.key(key);
        let answer = self
            .ask(ERROR_BYTES_MAX, || {
                let url = self.address.delete_object(Some(&self.credentials), &key).sign(SIGNED_FOR);
                self.client.request(Method::DELETE, url)
            })
            .await?;
        let is_gone = answer.status.is_success()
            || (answer.status == StatusCode::NOT_FOUND && answer.code.as_deref() != Some("NoSuchBucket"));
        if is_gone { Ok(()) } else { Err(answer.refused("cannot be deleted")) }
    }

    /// Asks, again if that may help: everything asked for here can be done twice.
    async fn ask(&self, bytes_max: usize, request: impl Fn() -> RequestBuilder) -> Result<Answer> {
        let mut pause = PAUSE;
        for attempt in 1.. {
            let answer = match request().send().await {
                Ok(response) => read(response, bytes_max).await,
                Err(error) => Err(error.without_url().into()),
            };
            let again = match &answer {
                Ok(answer) => answer.is_passing(),
                Err(_) => true,
            };
            if !again || attempt == ATTEMPTS {
                return answer.context("the store does not answer");
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        bail!("the store does not answer")
    }
}

async fn read(mut response: Response, bytes_max: usize) -> Result<Answer> {
    let status = response.status();
    let is_error = !status.is_success();
    let bytes_max = if is_error { ERROR_BYTES_MAX } else { bytes_max };
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len().saturating_add(chunk.len()) > bytes_max {
            return Ok(Answer { status, code: None, read: Read::Larger });
        }
        body.extend_from_slice(&chunk);
    }
    let code = if is_error { code_of(&String::from_utf8_lossy(&body)) } else { None };
    Ok(Answer { status, code, read: Read::Whole(body) })
}

/// The code of an error, which is one word; the rest of the answer may repeat what was signed.
fn code_of(body: &str) -> Option<String> {
    let (code, _) = body.split_once("<Code>")?.1.split_once("</Code>")?;
    let is_word = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
    (is_word && !code.is_empty()).then(|| code.to_owned())
}

impl Answer {
    /// Whether it may be another one in a moment.
    fn is_passing(&self) -> bool {
        let is_conflict = self.code.as_deref() == Some("ConditionalRequestConflict");
        let is_server = self.status.is_server_error() && self.status != StatusCode::NOT_IMPLEMENTED;
        is_server || self.status == StatusCode::TOO_MANY_REQUESTS || is_conflict
    }

    /// As an error, with what to do about it.
    fn refused(&self, what: &str) -> anyhow::Error {
        let code = self.code.as_deref().unwrap_or_default();
        let text = format!("{what}: the store answers {} {code}", self.status.as_u16());
        let text = text.trim_end();
        let advice = match code {
            "AccessDenied" | "AllAccessDisabled" => {
                "; may this key list, get and put there, and for `retain` delete? (deploy/retention.md)"
            }
            "AuthorizationHeaderMalformed" | "PermanentRedirect" | "TemporaryRedirect" => {
                "; is AWS_REGION the bucket's region?"
            }
            "ExpiredToken" | "InvalidToken" => "; AWS_SESSION_TOKEN has ended or is another key's",
            "InvalidAccessKeyId" => "; the store does not know AWS_ACCESS_KEY_ID",
            "NoSuchBucket" => "; there is no such bucket, and Writ makes none",
            "RequestTimeTooSkewed" => "; this machine's clock is wrong",
            "SignatureDoesNotMatch" => "; AWS_SECRET_ACCESS_KEY is not the one of AWS_ACCESS_KEY_ID",
            _ if self.status.is_redirection() => {
                "; is AWS_REGION the bucket's region, and AWS_ENDPOINT_URL the store's?"
            }
            _ => "",
        };
        anyhow::anyhow!("{text}{advice}")
    }
}

fn credentials(environment: Environment<'_>) -> Result<Credentials> {
    let key = environment("AWS_ACCESS_KEY_ID").context("AWS_ACCESS_KEY_ID is not set")?;
    let secret = match (environment("AWS_SECRET_ACCESS_KEY"), environment("AWS_SECRET_ACCESS_KEY_FILE")) {
        (Some(secret), None) => secret,
        (None, Some(file)) => keyfile::read_secret(Path::new(&file))?.trim().to_owned(),
        (Some(_), Some(_)) => {
            bail!("AWS_SECRET_ACCESS_KEY and AWS_SECRET_ACCESS_KEY_FILE are both set; which is it?")
        }
        (None, None) => {
            bail!("neither AWS_SECRET_ACCESS_KEY nor AWS_SECRET_ACCESS_KEY_FILE is set")
        }
    };
    Ok(match environment("AWS_SESSION_TOKEN") {
        Some(token) => Credentials::new_with_token(key, secret, token),
        None => Credentials::new(key, secret),
    })
}

/// Reads where the store is. Its text is not repeated in errors: people paste addresses with passwords.
fn endpoint(text: &str) -> Result<Url> {
    let url = Url::parse(text).ok().context("AWS_ENDPOINT_URL is no URL")?;
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    match url.scheme() {
        "https" => {}
        "http" if is_loopback => {}
        "http" => bail!("AWS_ENDPOINT_URL is plain HTTP, which is for loopback only; use https://"),
        _ => bail!("AWS_ENDPOINT_URL has to begin with https://"),
    }
    ensure!(!host.is_empty(), "AWS_ENDPOINT_URL has no host");
    ensure!(
        url.username().is_empty() && url.password().is_none(),
        "AWS_ENDPOINT_URL holds credentials; they belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    );
    ensure!(url.query().is_none() && url.fragment().is_none(), "AWS_ENDPOINT_URL has a query or a fragment");
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_error_only_the_code_is_taken() {
        let body =
            "<Error><Code>SignatureDoesNotMatch</Code><StringToSign>token=secret</StringToSign></Error>";
        assert_eq!(code_of(body).as_deref(), Some("SignatureDoesNotMatch"));
        for body in ["", "<Code></Code>", "<Code>a b</Code>", "<Code>secret", "<Code>\u{202e}</Code>"] {
            assert_eq!(code_of(body), None, "{body}");
        }
    }

    #[test]
    fn what_may_pass_is_asked_again() {
        let answer = |status: u16, code: Option<&str>| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            code: code.map(str::to_owned),
            read: Read::Nothing,
        };
        assert!(answer(503, Some("SlowDown")).is_passing());
        assert!(answer(429, None).is_passing());
        assert!(answer(409, Some("ConditionalRequestConflict")).is_passing());
        assert!(!answer(403, Some("AccessDenied")).is_passing());
        assert!(!answer(501, None).is_passing());
        assert!(!answer(412, Some("PreconditionFailed")).is_passing());
    }
}
