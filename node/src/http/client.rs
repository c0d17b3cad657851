//! A small HTTP client for the command line and the demo: one request, one JSON answer.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// Bytes of an answer.
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address cannot be used.
    #[error("{0} is not an http:// or https:// address")]
    Address(String),
    /// The server cannot be reached, or hung up.
    #[error("{0}: {1}")]
    Unreachable(String, String),
    /// The server refused.
    #[error("{status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// As the server put it.
        message: String,
    },
}

/// A server, and who speaks to it.
#[derive(Clone)]
pub struct Client {
    base: String,
    token: Option<String>,
    roots: Arc<RootCertStore>,
}

impl Client {
    /// For a server at `base`, such as `http://127.0.0.1:4000`.
    #[must_use]
    pub fn new(base: &str, token: Option<String>, roots: RootCertStore) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), token, roots: Arc::new(roots) }
    }

    /// The same server, as somebody else.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// Sends a request and gives the `data` of its answer.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let (status, bytes) = self.send_with(method, path, &[], body).await?;
        read_answer(status, &bytes)
    }

    /// Sends a request with headers of its own; gives status and body as they are.
    ///
    /// # Errors
    /// The server cannot be reached.
    pub async fn send_with(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<(u16, Bytes), ClientError> {
        let address = format!("{}{path}", self.base);
        let uri: Uri = address.parse().map_err(|_| ClientError::Address(address.clone()))?;
        let authority = uri.authority().cloned().ok_or_else(|| ClientError::Address(address.clone()))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(ClientError::Address(address)),
        };
        let path_and_query = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request =
            Request::builder().method(method).uri(path_and_query).header(HOST, authority.as_str());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let body = body.map_or_else(Bytes::new, |body| body.to_string().into());
        let request = request
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|_| ClientError::Address(address.clone()))?;
        let unreachable = |error: String| ClientError::Unreachable(self.base.clone(), error);
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let tcp = TcpStream::connect((authority.host(), port))
            .await
            .map_err(|error| unreachable(error.to_string()))?;
        if tls {
            let name = ServerName::try_from(authority.host().to_owned())
                .map_err(|error| unreachable(error.to_string()))?;
            let stream =
                self.connector()?.connect(name, tcp).await.map_err(|error| unreachable(error.to_string()))?;
            exchange(stream, request).await.map_err(unreachable)
        } else {
            exchange(tcp, request).await.map_err(unreachable)
        }
    }

    fn connector(&self) -> Result<TlsConnector, ClientError> {
        let config = ClientConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .map_err(|error| ClientError::Unreachable(self.base.clone(), error.to_string()))?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<(u16, Bytes), String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let connection = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    let status = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    connection.abort();
    Ok((status, body.map_err(|error| error.to_string())?.to_bytes()))
}

fn read_answer(status: u16, bytes: &[u8]) -> Result<Value, ClientError> {
    let answer: Value = serde_json::from_slice(bytes).unwrap_or_default();
    if (200..300).contains(&status) {
        return Ok(answer.get("data").cloned().unwrap_or(answer));
    }
    let first = &answer["errors"][0];
    let text = |field: &str| first[field].as_str().unwrap_or_default();
    let place = if text("field").is_empty() { String::new() } else { format!(" ({})", text("field")) };
    Err(ClientError::Refused { status, message: format!("{}{place}: {}", text("code"), text("message")) })
}
