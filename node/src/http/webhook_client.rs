//! Calls the receivers of webhooks (agrenting.md R144). A name is resolved once, and the connection goes to an address that was
//! looked at: nobody can show one address to the check and another to the call. Redirects are not followed, proxies of the
//! environment not used, and of an answer no more is read than is needed to see that it came.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, USER_AGENT};
use http::uri::Scheme;
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use muster_actors::webhooks::Caller;
use muster_protocol::time::Timestamp;
use muster_protocol::webhook::address::{is_port_allowed, is_public};
use muster_protocol::webhook::{Delivery, Webhook, WebhookSettings};
use ring::hmac;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::addresses::Networks;
use crate::tls;

/// Bytes of an answer's body that are read.
const ANSWER_BYTES_MAX: usize = 4 * 1024;
/// Bytes of an answer's head.
const ANSWER_HEAD_BYTES_MAX: usize = 16 * 1024;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;
/// How long a name may take to be resolved when a webhook is created. What has not been by then is looked at when it is
/// called.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls receivers over HTTP.
pub struct WebhookClient {
    allowed: Networks,
    timeout: Duration,
    tls: TlsConnector,
}

/// A URL that can be called.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_tls: bool,
}

impl WebhookClient {
    /// By these settings; trusts whom the machine trusts.
    ///
    /// # Errors
    /// A network is malformed, or TLS cannot be set up.
    pub fn new(settings: &WebhookSettings) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            tracing::warn!("this machine trusts no certificate: webhooks over https cannot be called");
        }
        Self::trusting(settings, roots)
    }

    fn trusting(settings: &WebhookSettings, roots: RootCertStore) -> Result<Self, String> {
        let allowed = Networks::parse(&settings.allow_private)?;
        let config = ClientConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let timeout = Duration::from_millis(settings.timeout_ms.max(1));
        Ok(Self { allowed, timeout, tls: TlsConnector::from(Arc::new(config)) })
    }

    fn may_call(&self, address: IpAddr) -> bool {
        is_public(address) || self.allowed.contains(address.to_canonical())
    }

    /// Where a target is. All its addresses have to be allowed: one that is not was meant to be reached by chance.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, String> {
        let found: Vec<SocketAddr> = match target.host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, target.port)],
            Err(_) => tokio::net::lookup_host((target.host.as_str(), target.port))
                .await
                .map_err(|_| "the host's name cannot be resolved".to_owned())?
                .collect(),
        };
        if found.is_empty() {
            return Err("the host's name cannot be resolved".to_owned());
        }
        if found.iter().all(|address| self.may_call(address.ip())) {
            Ok(found.into_iter().take(ADDRESSES_MAX).collect())
        } else {
            Err(REFUSED.to_owned())
        }
    }

    async fn connect(&self, target: &Target) -> Result<TcpStream, String> {
        let mut problem = String::new();
        for address in self.addresses(target).await? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(error) => problem = format!("cannot connect: {}", error.kind()),
            }
        }
        Err(problem)
    }

    async fn send(&self, webhook: &Webhook, delivery: &Delivery, at: Timestamp) -> Result<u16, String> {
        let target = Target::parse(&webhook.url)?;
        let request = request(&target, webhook, delivery, at)?;
        let stream = self.connect(&target).await?;
        if !target.is_tls {
            return exchange(stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone()).map_err(|_| "the host has no name")?;
        let stream = self.tls.connect(name, stream).await;
        exchange(stream.map_err(|error| format!("TLS: {error}"))?, request).await
    }
}

const REFUSED: &str = "leads to an address that is not public";

impl Target {
    /// Reads a URL.
    fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|_| "not a URL".to_owned())?;
        let is_tls = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            Some(scheme) if *scheme == Scheme::HTTP => false,
            _ => return Err("begins with https:// or http://".to_owned()),
        };
        let authority = uri.authority().ok_or("has a host")?;
        if authority.as_str().contains('@') {
            return Err("holds no user and no password".to_owned());
        }
        let name = authority.host();
        let host = name.trim_start_matches('[').trim_end_matches(']').trim_end_matches('.');
        if host.is_empty() {
            return Err("has a host".to_owned());
        }
        let port = match authority.as_str().strip_prefix(name).unwrap_or_default() {
            "" if is_tls => 443,
            "" => 80,
            rest => {
                rest.strip_prefix(':').and_then(|port| port.parse().ok()).ok_or("has a port up to 65535")?
            }
        };
        if !is_port_allowed(port) {
            return Err("names a port at which something else than HTTP is spoken".to_owned());
        }
        // What the resolver of the system takes for an address though it is not written like one (127.1, 0x7f000001) is
        // looked at once it is resolved, like any name.
        let host = host.to_owned();
        Ok(Self { uri, host, port, is_tls })
    }
}

/// The signature of a body: base64 of its HMAC-SHA256.
fn signature(secret: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    STANDARD.encode(hmac::sign(&key, body).as_ref())
}

fn request(
    target: &Target,
    webhook: &Webhook,
    delivery: &Delivery,
    at: Timestamp,
) -> Result<Request<Full<Bytes>>, String> {
    let body = delivery.body().bytes();
    let path = target.uri.path_and_query().map_or("/", |path| path.as_str());
    let host = target.uri.authority().map(ToString::to_string).unwrap_or_default();
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header(HOST, host)
        .header(CONTENT_TYPE, "application/json")
        .header(USER_AGENT, concat!("muster/", env!("CARGO_PKG_VERSION")))
        .header("x-webhook-id", delivery.id.to_string())
        .header("x-webhook-event", &delivery.event)
        .header("x-webhook-timestamp", (at.unix_ms() / 1_000).to_string())
        .header("x-webhook-signature", signature(&webhook.secret, &body))
        .body(Full::new(body))
        .map_err(|_| "not a URL".to_owned())
}

/// Sends a request and gives the status of its answer.
async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<u16, String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| format!("HTTP: {error}");
    let mut builder = http1::Builder::new();
    builder.max_buf_size(ANSWER_HEAD_BYTES_MAX);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(failed)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(failed)?;
        let status = response.status().as_u16();
        let mut body = response.into_body();
        let mut read = 0;
        // Whoever hangs up on a receiver that is still writing may make it believe that it failed.
        while let Some(Ok(frame)) = body.frame().await {
            read += frame.data_ref().map_or(0, Bytes::len);
            if read >= ANSWER_BYTES_MAX {
                break;
            }
        }
        Ok(status)
    };
    tokio::pin!(connection);
    tokio::pin!(talk);
    // The connection lives no longer than what is said on it.
    let mut is_open = true;
    loop {
        tokio::select! {
            biased;
            answer = &mut talk => return answer,
            _ended = &mut connection, if is_open => is_open = false,
        }
    }
}

#[async_trait]
impl Caller for WebhookClient {
    async fn check(&self, url: &str) -> Result<(), String> {
        let target = Target::parse(url)?;
        match tokio::time::timeout(CHECK_TIMEOUT, self.addresses(&target)).await {
            Ok(Err(problem)) if problem == REFUSED => Err(problem),
            // A name that is not known yet may be later.
            _ => Ok(()),
        }
    }

    async fn call(&self, webhook: &Webhook, delivery: &Delivery, at: Timestamp) -> Result<u16, String> {
        let sent = tokio::time::timeout(self.timeout, self.send(webhook, delivery, at)).await;
        let sent = sent.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        sent.map_err(|problem| {
            problem.chars().filter(|char| !char.is_control()).take(ERROR_CHARS_MAX).collect()
        })
    }
}

/// Characters of what is kept of a failure.
const ERROR_CHARS_MAX: usize = 200;

#[cfg(test)]
mod tests;
