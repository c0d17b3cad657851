//! What every end of TLS begins with: who does the cryptography, and certificates from files.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

/// Who does the cryptography. Libraries bring others along, so each configuration names this one.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates of a PEM file, in its order.
///
/// # Errors
/// It cannot be read, or there is none in it.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(format!("{}: no certificate in it", file.display())),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

/// Trust in whoever the certificates of a PEM file have signed.
///
/// # Errors
/// As [`certificates`], or one of them can sign nothing.
pub fn trusted(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(roots)
}
