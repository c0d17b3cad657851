//! TLS, where it is served natively.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use tokio_rustls::TlsAcceptor;

use crate::config::{ConfigError, HttpConfig};
use crate::tls::{certificates, provider};

/// Reads certificate and key, if TLS is configured.
///
/// # Errors
/// A file cannot be read, or the two do not fit.
pub fn acceptor(config: &HttpConfig) -> Result<Option<TlsAcceptor>, ConfigError> {
    let (Some(certificate), Some(key)) = (&config.tls_certificate, &config.tls_key) else {
        return Ok(None);
    };
    let failed = |what: &Path, error: String| ConfigError(format!("{}: {error}", what.display()));
    let chain = certificates(certificate).map_err(ConfigError)?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
    let mut server = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret))
        .map_err(|error| failed(certificate, error.to_string()))?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(server))))
}
