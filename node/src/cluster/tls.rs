//! Who may link: both ends of a connection show a certificate that the cluster's authority has signed.
//!
//! The authority is the cluster's own, so a certificate of it means a node of this cluster, whatever address it was dialled
//! at: addresses come and go, and prove nothing. A certificate that names nodes (`muster://node/NAME`, as `muster cluster
//! cert` writes it) stands for these alone; one that names none, such as one that all share, for any.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::config::{ClusterConfig, ConfigError};
use crate::run::RunError;
use crate::tls::{certificates, provider, trusted};

/// What a certificate calls a node, in front of its name.
pub const NODE_URI: &str = "muster://node/";

/// Both ends of TLS between nodes.
#[derive(Clone)]
pub struct Tls {
    /// For connections that come.
    pub acceptor: TlsAcceptor,
    /// For those that are dialled.
    pub connector: TlsConnector,
}

/// [`Tls`] as the files have it, read again when they change: certificates are replaced while nodes run.
pub struct Certificates {
    config: ClusterConfig,
    current: Mutex<(Option<[SystemTime; 3]>, Tls)>,
}

impl Certificates {
    /// Reads what the configuration names, if it does.
    ///
    /// # Errors
    /// As [`Tls::load`].
    pub fn load(config: &ClusterConfig) -> Result<Option<Arc<Self>>, ConfigError> {
        let changed = changed(config);
        let tls = Tls::load(config)?;
        let certificates = |tls| Self { config: config.clone(), current: Mutex::new((changed, tls)) };
        Ok(tls.map(certificates).map(Arc::new))
    }

    /// What the files say, or said last if they cannot be used now.
    pub fn current(&self) -> Tls {
        let mut current = self.current.lock();
        let changed = changed(&self.config);
        if changed.is_some() && changed != current.0 {
            match Tls::load(&self.config) {
                Ok(Some(tls)) => {
                    tracing::info!("certificates between nodes were read again");
                    current.1 = tls;
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "certificates between nodes changed, and cannot be used")
                }
            }
            current.0 = changed;
        }
        current.1.clone()
    }
}

/// When each of the files was changed last.
fn changed(config: &ClusterConfig) -> Option<[SystemTime; 3]> {
    let changed = |file: &Option<PathBuf>| std::fs::metadata(file.as_ref()?).ok()?.modified().ok();
    Some([changed(&config.ca)?, changed(&config.certificate)?, changed(&config.key)?])
}

impl Tls {
    /// Reads what the configuration names, if it does.
    ///
    /// # Errors
    /// A file cannot be read, or certificate and key do not fit.
    pub fn load(config: &ClusterConfig) -> Result<Option<Self>, ConfigError> {
        let (Some(ca), Some(certificate), Some(key)) = (&config.ca, &config.certificate, &config.key) else {
            return Ok(None);
        };
        let failed = |what: &Path, error: String| ConfigError(format!("{}: {error}", what.display()));
        let roots = Arc::new(trusted(ca).map_err(ConfigError)?);
        let chain = certificates(certificate).map_err(ConfigError)?;
        let secret = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error.to_string()))?;
        let server = server(roots.clone(), chain.clone(), secret.clone_key());
        let server = server.map_err(|error| failed(certificate, error.to_string()))?;
        let client = client(roots, chain, secret).map_err(|error| failed(certificate, error.to_string()))?;
        Ok(Some(Self {
            acceptor: TlsAcceptor::from(Arc::new(server)),
            connector: TlsConnector::from(Arc::new(client)),
        }))
    }
}

fn server(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, RunError> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider()).build()?;
    Ok(ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?)
}

fn client(
    roots: Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, RunError> {
    let signatures = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider()).build()?;
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(SignedByCluster { roots, signatures }))
        .with_client_auth_cert(chain, key)?)
}

/// Takes a certificate that the cluster's authority has signed, whatever names it has: which node it stands for is looked
/// at once the other end has said who it is ([`stands_for`]).
#[derive(Debug)]
struct SignedByCluster {
    roots: Arc<RootCertStore>,
    signatures: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for SignedByCluster {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let algorithms = provider().signature_verification_algorithms.all;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            algorithms,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signatures.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signatures.supported_verify_schemes()
    }
}

/// Whether a certificate stands for this node.
pub fn stands_for(certificate: &CertificateDer<'_>, node: &str) -> bool {
    let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else { return false };
    let mut nodes = certificate.valid_uri_names().filter_map(|uri| uri.strip_prefix(NODE_URI)).peekable();
    nodes.peek().is_none() || nodes.any(|name| name == node)
}

/// For a listener that nobody is to get in by: it asks for a certificate of an authority whose key is thrown away here.
pub fn closed_door() -> Result<TlsAcceptor, RunError> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(Vec::new())?.signed_by(&key, &authority)?;
    let mut roots = RootCertStore::empty();
    roots.add(authority.der().clone())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let server = server(Arc::new(roots), vec![certificate.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(server)))
}
