//! `muster cluster cert`: an authority of the cluster's own, and certificates of nodes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_protocol::cluster::frame::is_name;
use muster_protocol::time::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};

use super::tls::NODE_URI;
use crate::run::RunError;

/// How long the authority stands, in days.
const AUTHORITY_DAYS: i64 = 3_650;
/// How long a node's certificate stands, in days.
const NODE_DAYS: i64 = 1_825;
/// So that a clock that is somewhat behind takes them too, in days.
const BACKDATED_DAYS: i64 = 1;
const DAY_MS: i64 = 86_400_000;

/// What to make.
#[derive(Args)]
pub struct CertificateArguments {
    /// Folder for the files; an authority that is in there signs again.
    folder: PathBuf,
    /// Name of a node, as in `cluster.node`; may be given several times.
    #[arg(long, required = true)]
    node: Vec<String>,
    /// A further name (DNS) or address for the certificates; may be given several times.
    #[arg(long)]
    san: Vec<String>,
}

/// Makes the files; gives what to say about them.
///
/// # Errors
/// A name cannot be one, a file is there already or cannot be written, or the authority's key cannot be read.
pub fn make(arguments: &CertificateArguments, now: Timestamp) -> Result<String, RunError> {
    let CertificateArguments { folder, node: nodes, san } = arguments;
    for node in nodes {
        if !is_name(node) || node == "ca" {
            return Err(format!(
                "--node {node:?}: 1 to 128 letters, digits, '.', '-' and '_', and not \"ca\""
            )
            .into());
        }
    }
    let files: Vec<_> = nodes
        .iter()
        .map(|node| (node, folder.join(format!("{node}.pem")), folder.join(format!("{node}-key.pem"))))
        .collect();
    if let Some(there) = files.iter().flat_map(|(_, file, key)| [file, key]).find(|path| path.exists()) {
        return Err(format!("{} is there already, and is not overwritten", there.display()).into());
    }
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let (ca, ca_key) = (folder.join("ca.pem"), folder.join("ca-key.pem"));
    let parameters = authority(now)?;
    let key = match std::fs::read_to_string(&ca_key) {
        Ok(pem) if ca.exists() => {
            KeyPair::from_pem(&pem).map_err(|error| format!("{}: {error}", ca_key.display()))?
        }
        Ok(_) => return Err(format!("{} is there, but {} is not", ca_key.display(), ca.display()).into()),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            write(&ca_key, &key.serialize_pem())?;
            write(&ca, &parameters.self_signed(&key)?.pem())?;
            key
        }
        Err(error) => return Err(format!("{}: {error}", ca_key.display()).into()),
    };
    // What an issuer says of itself is its name and its key, which are the same each time.
    let issuer = Issuer::new(parameters, key);
    for (node, file, key_file) in &files {
        let key = KeyPair::generate()?;
        let certificate = of_node(node, san, now)?.signed_by(&key, &issuer)?;
        write(key_file, &key.serialize_pem())?;
        write(file, &certificate.pem())?;
    }
    Ok(explanation(&ca, &ca_key, &files))
}

fn explanation(ca: &Path, ca_key: &Path, files: &[(&String, PathBuf, PathBuf)]) -> String {
    let mut text = format!(
        "{} goes to every node. {} stays here, or somewhere safe: whoever has it can be a node.\n",
        ca.display(),
        ca_key.display()
    );
    for (node, file, key) in files {
        text += &format!(
            "\nnode {node}:\n  [cluster]\n  node = {:?}\n  ca = {:?}\n  certificate = {:?}\n  key = {:?}\n",
            node, ca, file, key
        );
    }
    text
}

fn authority(now: Timestamp) -> Result<CertificateParams, RunError> {
    let mut parameters = named("Muster cluster authority", now, AUTHORITY_DAYS)?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(parameters)
}

fn of_node(node: &str, further: &[String], now: Timestamp) -> Result<CertificateParams, RunError> {
    let mut parameters = named(node, now, NODE_DAYS)?;
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Each end is a server or a client, as who dials whom falls out.
    parameters.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    parameters.use_authority_key_identifier_extension = true;
    parameters.subject_alt_names =
        vec![SanType::URI(format!("{NODE_URI}{node}").try_into()?), SanType::DnsName(node.try_into()?)];
    for name in further {
        parameters.subject_alt_names.push(match name.parse::<IpAddr>() {
            Ok(address) => SanType::IpAddress(address),
            Err(_) => SanType::DnsName(name.as_str().try_into()?),
        });
    }
    Ok(parameters)
}

fn named(name: &str, now: Timestamp, days: i64) -> Result<CertificateParams, RunError> {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, name);
    let date = |at: Timestamp| -> Result<_, RunError> {
        let mut text = Vec::new();
        at.write_iso(&mut text);
        let text = String::from_utf8(text)?;
        let mut fields = text.splitn(3, '-');
        let mut field = |length: usize| {
            fields.next().and_then(|field| field.get(..length)).ok_or("the clock shows no date")
        };
        Ok(rcgen::date_time_ymd(field(4)?.parse()?, field(2)?.parse()?, field(2)?.parse()?))
    };
    parameters.not_before = date(now.plus_ms(-BACKDATED_DAYS * DAY_MS))?;
    parameters.not_after = date(now.plus_ms(days * DAY_MS))?;
    Ok(parameters)
}

/// Writes a new file that only its owner reads.
fn write(path: &Path, text: &str) -> Result<(), RunError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| format!("{}: {error}", path.display()).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;

    use super::super::tls::{Tls, stands_for};
    use super::*;
    use crate::config::ClusterConfig;

    fn arguments(folder: &Path, node: &[&str]) -> CertificateArguments {
        CertificateArguments {
            folder: folder.to_owned(),
            node: node.iter().map(|&name| name.to_owned()).collect(),
            san: vec!["muster.example".to_owned(), "10.0.0.1".to_owned()],
        }
    }

    #[test]
    fn files_are_private_never_overwritten_and_the_authority_signs_again() {
        let folder = tempfile::tempdir().unwrap();
        let now = Timestamp::from_unix_ms(1_764_000_000_000);
        let said = make(&arguments(folder.path(), &["a", "b_1"]), now).unwrap();
        assert!(said.contains("ca-key.pem") && said.contains("node = \"b_1\""), "{said}");
        let ca = std::fs::read(folder.path().join("ca.pem")).unwrap();
        let error = make(&arguments(folder.path(), &["c", "a"]), now).unwrap_err().to_string();
        assert!(error.contains("a.pem"), "{error}");
        assert!(!folder.path().join("c.pem").exists(), "all or nothing");
        make(&arguments(folder.path(), &["c"]), now).unwrap();
        assert_eq!(std::fs::read(folder.path().join("ca.pem")).unwrap(), ca);
        let mut files = 0;
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
            files += 1;
        }
        assert_eq!(files, 8);
        assert!(make(&arguments(folder.path(), &["ca"]), now).is_err());
        assert!(make(&arguments(folder.path(), &["a/b"]), now).is_err());
    }

    #[test]
    fn a_certificate_stands_for_the_node_it_names_and_is_taken_by_both_ends() {
        let folder = tempfile::tempdir().unwrap();
        let now = crate::system_clock::environment().now();
        make(&arguments(folder.path(), &["a"]), now).unwrap();
        let certificate = CertificateDer::from_pem_file(folder.path().join("a.pem")).unwrap();
        assert!(stands_for(&certificate, "a") && !stands_for(&certificate, "b"));
        let shared = rcgen::generate_simple_self_signed(["muster".to_owned()]).unwrap();
        assert!(stands_for(shared.cert.der(), "a") && stands_for(shared.cert.der(), "b"));
        let config = ClusterConfig {
            ca: Some(folder.path().join("ca.pem")),
            certificate: Some(folder.path().join("a.pem")),
            key: Some(folder.path().join("a-key.pem")),
            ..ClusterConfig::default()
        };
        assert!(Tls::load(&config).unwrap().is_some());
        let misfit = ClusterConfig { key: Some(folder.path().join("ca-key.pem")), ..config };
        assert!(Tls::load(&misfit).is_err());
    }
}
