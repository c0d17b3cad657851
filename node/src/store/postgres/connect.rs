//! Where the database is and how it is spoken to, from the settings: the URL, and TLS.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use muster_actors::store::{StoreError, StoreResult};
use muster_protocol::limits::Limits;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::tls;

/// What is connected to.
#[derive(Clone)]
pub struct Target {
    /// Address, user, password, database.
    pub config: tokio_postgres::Config,
    /// How a connection is encrypted, if it is.
    pub tls: MakeRustlsConnect,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // There is a password in it.
        f.write_str("Target")
    }
}

impl Target {
    /// Reads the settings. `sslmode` of the URL is `disable`, `prefer` (without the word), `require`, or `verify-full`; the
    /// last, and any other but `disable` when there is `tls_ca`, checks the server's certificate and its name.
    ///
    /// # Errors
    /// They cannot be used; what is said holds nothing of the URL.
    pub fn new(url: &str, tls_ca: Option<&Path>, limits: &Limits) -> StoreResult<Self> {
        let refused = |problem: &str| StoreError::Unavailable(format!("store.url: {problem}"));
        let (url, verifies) = without_verify_full(url);
        if verifies && tls_ca.is_none() {
            return Err(refused("sslmode=verify-full needs store.tls_ca, the certificates to trust"));
        }
        let mut config: tokio_postgres::Config = url.parse().map_err(|_| {
            refused("must be postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=disable, prefer, require or verify-full")
        })?;
        if verifies || (tls_ca.is_some() && config.get_ssl_mode() != SslMode::Disable) {
            config.ssl_mode(SslMode::Require);
        }
        if config.get_application_name().is_none() {
            config.application_name("muster");
        }
        let statement = Duration::from_millis(limits.store_statement_timeout_ms);
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(statement);
        }
        // Whoever does not even take bytes is gone; whoever takes long over a statement is told to end it.
        config.tcp_user_timeout(statement * 2).keepalives_idle(statement * 2);
        Ok(Self { config, tls: MakeRustlsConnect::new(client_config(tls_ca)?) })
    }
}

/// The URL as the library knows it, and whether the certificate has to be verified.
fn without_verify_full(url: &str) -> (String, bool) {
    const VERIFY: &str = "sslmode=verify-full";
    (url.replace(VERIFY, "sslmode=require"), url.contains(VERIFY))
}

fn client_config(tls_ca: Option<&Path>) -> StoreResult<ClientConfig> {
    let provider = tls::provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    let Some(path) = tls_ca else {
        let verifier = Arc::new(Unverified(provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    };
    let roots =
        tls::trusted(path).map_err(|problem| StoreError::Unavailable(format!("store.tls_ca: {problem}")))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// Encrypts without asking who answers: what `sslmode=require` has always meant for PostgreSQL.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
