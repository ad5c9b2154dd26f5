//! The lab's own certificate authority and what it signs.
//!
//! A data directory keeps `pki/` with the authority, the administrator's client certificate, the key that signs
//! service account tokens and the administrator's bearer token, each file with mode 0600. They survive restarts, so
//! kubeconfigs handed out stay valid. The serving certificate is made anew at each start: its names follow the address.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jiff::{ToSpan, Zoned};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// A failure to make, read or use keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("access key material")]
    Io(#[from] io::Error),
    /// A key or certificate could not be made or parsed.
    #[error("{operation}")]
    Certificate {
        /// What was being done, with the file concerned.
        operation: String,
        /// The cause.
        #[source]
        source: rcgen::Error,
    },
    /// The TLS library refused the configuration.
    #[error("configure TLS")]
    Tls(#[from] rustls::Error),
    /// A PEM file does not hold what it should.
    #[error("{path} holds no usable PEM; remove the directory {} to start over", path.parent().unwrap_or(path).display(), path = path.display())]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// The system's random number generator failed.
    #[error("the system gave no random bytes")]
    Random,
}

/// Keys, certificates and the administrator's token.
pub(crate) struct Pki {
    pub(crate) ca_pem: String,
    pub(crate) server_config: Arc<rustls::ServerConfig>,
    pub(crate) admin_cert_pem: String,
    pub(crate) admin_key_pem: String,
    /// PKCS#8 of the ECDSA P-256 key that signs service account tokens.
    pub(crate) token_key: Vec<u8>,
    pub(crate) admin_token: String,
}

impl Pki {
    /// Reads `dir`, making whatever is missing, and signs a serving certificate for `names` (DNS names and addresses).
    pub(crate) fn open(dir: &Path, names: &[String]) -> Result<Self, PkiError> {
        fs_err::create_dir_all(dir)?;
        fs_err::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        let (ca_pem, issuer) = authority(dir)?;
        let ca_der = CertificateDer::from_pem_slice(ca_pem.as_bytes())
            .map_err(|_| PkiError::Pem { path: dir.join("ca.crt") })?;
        let (admin_cert_pem, admin_key_pem) = administrator(dir, &issuer)?;

        let mut params = params("kube-apiserver", None)?;
        params.subject_alt_names =
            CertificateParams::new(names.to_vec()).map_err(wrap("name the serving certificate"))?.subject_alt_names;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().map_err(wrap("generate the serving key"))?;
        let cert = params.signed_by(&key, &issuer).map_err(wrap("sign the serving certificate"))?;
        let server_config =
            server_config(&ca_der, cert.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))?;

        let token_key = if let Some(pem) = read(&dir.join("sa.key"))? {
            let Ok(PrivateKeyDer::Pkcs8(key)) = PrivateKeyDer::from_pem_slice(pem.as_bytes()) else {
                return Err(PkiError::Pem { path: dir.join("sa.key") });
            };
            key.secret_pkcs8_der().to_vec()
        } else {
            let key = KeyPair::generate().map_err(wrap("generate the token key"))?;
            write_private(&dir.join("sa.key"), &key.serialize_pem())?;
            key.serialize_der()
        };
        let admin_token = match read(&dir.join("admin.token"))? {
            Some(token) if !token.trim().is_empty() => token.trim().to_owned(),
            _ => {
                let mut bytes = [0_u8; 32];
                SystemRandom::new().fill(&mut bytes).map_err(|_| PkiError::Random)?;
                let token = URL_SAFE_NO_PAD.encode(bytes);
                write_private(&dir.join("admin.token"), &token)?;
                token
            }
        };
        Ok(Self { ca_pem, server_config, admin_cert_pem, admin_key_pem, token_key, admin_token })
    }

    /// A kubeconfig with authority and administrator's certificate embedded.
    pub(crate) fn kubeconfig(&self, server: &str) -> String {
        let [ca, cert, key] =
            [&self.ca_pem, &self.admin_cert_pem, &self.admin_key_pem].map(|pem| STANDARD.encode(pem.as_bytes()));
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: outrigger\n  cluster:\n    server: {server}\n    certificate-authority-data: {ca}\n\
             users:\n- name: kubernetes-admin\n  user:\n    client-certificate-data: {cert}\n    client-key-data: {key}\n\
             contexts:\n- name: outrigger\n  context:\n    cluster: outrigger\n    user: kubernetes-admin\ncurrent-context: outrigger\n"
        )
    }
}

fn wrap(operation: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let operation = operation.to_owned();
    move |source| PkiError::Certificate { operation, source }
}

/// Parameters valid from yesterday for ten years.
fn params(common_name: &str, organisation: Option<&str>) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(Vec::<String>::new()).map_err(wrap("make certificate parameters"))?;
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let today = Zoned::now().with_time_zone(jiff::tz::TimeZone::UTC).date();
    let ymd = |date: jiff::civil::Date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = ymd(today.saturating_sub(1.day()));
    params.not_after = ymd(today.saturating_add(3650.days()));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn authority(dir: &Path) -> Result<(String, Issuer<'static, KeyPair>), PkiError> {
    let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
    if let (Some(cert), Some(key)) = (read(&cert_path)?, read(&key_path)?) {
        let key = KeyPair::from_pem(&key).map_err(wrap("parse ca.key"))?;
        let issuer = Issuer::from_ca_cert_pem(&cert, key).map_err(wrap("parse ca.crt"))?;
        return Ok((cert, issuer));
    }
    let mut params = params("outrigger-ca", None)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    let key = KeyPair::generate().map_err(wrap("generate the authority's key"))?;
    let cert = params.self_signed(&key).map_err(wrap("sign the authority's certificate"))?;
    write_private(&key_path, &key.serialize_pem())?;
    write_private(&cert_path, &cert.pem())?;
    Ok((cert.pem(), Issuer::new(params, key)))
}

fn administrator(dir: &Path, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String), PkiError> {
    let (cert_path, key_path) = (dir.join("admin.crt"), dir.join("admin.key"));
    if let (Some(cert), Some(key)) = (read(&cert_path)?, read(&key_path)?) {
        return Ok((cert, key));
    }
    let mut params = params("kubernetes-admin", Some("system:masters"))?;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().map_err(wrap("generate the administrator's key"))?;
    let cert = params.signed_by(&key, issuer).map_err(wrap("sign the administrator's certificate"))?;
    write_private(&key_path, &key.serialize_pem())?;
    write_private(&cert_path, &cert.pem())?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn server_config(
    ca: &CertificateDer<'static>,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<rustls::ServerConfig>, PkiError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![cert, ca.clone()], key)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs_err::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file with mode 0600 so that it is there as a whole or not at all.
pub(crate) fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    match fs_err::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = fs_err::OpenOptions::new();
    options.write(true).create_new(true);
    fs_err::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs_err::rename(&temporary, path)
}
