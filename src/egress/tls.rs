//! TLS towards destinations: which certificates are trusted.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore};

use super::client::ClientError;

/// What is offered to servers, the preferred one first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Reads the system's certificate authorities and those in `extra_ca`, a PEM file.
pub(super) fn config(extra_ca: Option<&Path>) -> Result<ClientConfig, ClientError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = verifier(extra_ca, provider.signature_verification_algorithms)?;
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    Ok(config)
}

fn verifier(extra_ca: Option<&Path>, algorithms: WebPkiSupportedAlgorithms) -> Result<Verifier, ClientError> {
    let mut roots = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::debug!(%error, "a system certificate can't be read");
    }
    let (_, ignored) = roots.add_parsable_certificates(system.certs);
    if ignored > 0 {
        tracing::debug!(ignored, "system certificates that can't be used");
    }
    let own = extra_ca.map(read).transpose()?.unwrap_or_default();
    for certificate in &own {
        let result = if may_issue(certificate) {
            roots.add(certificate.clone())
        } else {
            ParsedCertificate::try_from(certificate).map(drop)
        };
        result.map_err(|error| unreadable(extra_ca, error.to_string()))?;
    }
    if roots.is_empty() {
        tracing::warn!("no certificate authorities were found: deliveries to https destinations will fail");
    }
    Ok(Verifier { roots, own, algorithms })
}

fn read(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| unreadable(Some(path), error.to_string()))?;
    if certificates.is_empty() {
        return Err(unreadable(Some(path), "it holds no certificate".to_owned()));
    }
    Ok(certificates)
}

fn unreadable(path: Option<&Path>, reason: String) -> ClientError {
    ClientError::ExtraCa { path: path.unwrap_or(Path::new("")).display().to_string(), reason }
}

/// Trusts what leads to an authority, and the certificates in `extra_ca_file` themselves, as OpenSSL does
/// (`X509_V_FLAG_PARTIAL_CHAIN`): `openssl req -x509` marks the certificate that it makes for a server as an authority,
/// which no server's certificate may be otherwise (RFC 5280, 4.2.1.9).
#[derive(Debug)]
struct Verifier {
    roots: RootCertStore,
    /// The certificates in `extra_ca_file`.
    own: Vec<CertificateDer<'static>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let named = self.own.contains(end_entity);
        let nothing = RootCertStore::empty();
        // Whatever else the server sent with a certificate that is named doesn't matter.
        let (roots, intermediates) = if named { (&nothing, &[][..]) } else { (&self.roots, intermediates) };
        let chain = verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        );
        match chain {
            Err(error) if named && is_about_issuers(&error) => {}
            chain => chain?,
        }
        verify_server_name(&certificate, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether a certificate was refused for what issued it or for being an authority. The library finds both only after it
/// has found that the certificate is valid now.
fn is_about_issuers(error: &Error) -> bool {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        Error::InvalidCertificate(CertificateError::Other(other)) => is_ca_flag(other),
        _ => false,
    }
}

fn is_ca_flag(OtherError(error): &OtherError) -> bool {
    matches!(error.downcast_ref(), Some(webpki::Error::CaUsedAsEndEntity))
}

/// Whether a certificate may issue others, so that naming it means to trust these. One with basic constraints says so (RFC
/// 5280, 4.2.1.9); of older ones and of those that say nothing, it is taken for granted.
fn may_issue(certificate: &CertificateDer<'_>) -> bool {
    // Its identifier 2.5.29.19, in DER.
    const BASIC_CONSTRAINTS: &[u8] = &[0x06, 0x03, 0x55, 0x1d, 0x13];
    const TRUE: &[u8] = &[0x01, 0x01, 0xff];
    let Some(at) = certificate.windows(BASIC_CONSTRAINTS.len()).position(|part| part == BASIC_CONSTRAINTS)
    else {
        return true;
    };
    let rest = &certificate[at + BASIC_CONSTRAINTS.len()..];
    // Whether the extension is critical, then the lengths of an octet string and of the sequence in it.
    match rest.strip_prefix(TRUE).unwrap_or(rest) {
        [0x04, _, 0x30, _, value @ ..] => value.starts_with(TRUE),
        _ => false,
    }
}

/// A sentence for users about a handshake that failed.
pub(super) fn text(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("TLS failed: {error}; an authority of your own can be named in extra_ca_file")
        }
        Error::InvalidCertificate(CertificateError::Other(other)) if is_ca_flag(other) => {
            "TLS failed: the destination's certificate is marked as an authority (CA:TRUE); it is trusted when it is itself \
             in extra_ca_file"
                .to_owned()
        }
        _ => format!("TLS failed: {error}"),
    }
}

/// The TLS error in an I/O error, which is how connections report theirs, perhaps in another I/O error.
pub(super) fn error_in(error: &io::Error) -> Option<&Error> {
    let inner = error.get_ref()?;
    inner.downcast_ref::<Error>().or_else(|| inner.downcast_ref::<io::Error>().and_then(error_in))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    use super::*;

    #[test]
    fn only_authorities_vouch_for_others() {
        let name = ServerName::try_from("localhost").unwrap();
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        for (is_ca, may_issue) in [
            (IsCa::Ca(BasicConstraints::Unconstrained), true),
            (IsCa::Ca(BasicConstraints::Constrained(0)), true),
            (IsCa::ExplicitNoCa, false),
            (IsCa::NoCa, true),
        ] {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.is_ca = is_ca;
            let key = KeyPair::generate().unwrap();
            let named = params.self_signed(&key).unwrap();
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(named.pem().as_bytes()).unwrap();
            let other = CertificateParams::new(["localhost".to_owned()]).unwrap();
            let issued = other.signed_by(&KeyPair::generate().unwrap(), &Issuer::new(params, key)).unwrap();
            let verifier = verifier(Some(file.path()), algorithms).unwrap();
            let trusts = |certificate: &CertificateDer<'_>, others: &[CertificateDer<'_>]| {
                verifier.verify_server_cert(certificate, others, &name, &[], UnixTime::now()).is_ok()
            };
            assert!(trusts(named.der(), &[]), "itself, {is_ca:?}");
            assert!(trusts(named.der(), &[named.der().clone()]), "itself, twice, {is_ca:?}");
            assert_eq!(trusts(issued.der(), &[]), may_issue, "another, {is_ca:?}");
        }
    }
}
