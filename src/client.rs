//! HTTP to replicas, for the commands that ask them: a connection at a time, plain or by TLS, and every wait bounded.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Uri,
    client::conn::http1::{SendRequest, handshake},
    header::{self, HeaderValue},
    rt::{Read, Write},
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;

/// The longest that a connection may take, its TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection, which takes a request after the other.
pub type Connection = SendRequest<Full<Bytes>>;

/// Where a replica is.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    text: String,
    host: String,
    port: u16,
    is_tls: bool,
    /// What stands before the paths of the service, without a slash at the end.
    prefix: String,
    authority: HeaderValue,
}

impl Target {
    /// Reads `http://host:port` or `https://…`, with a path in front of the service's own if it stands behind a proxy.
    ///
    /// # Errors
    /// What is accepted.
    pub fn parse(text: &str) -> Result<Self, String> {
        let accepted = || "an address such as http://127.0.0.1:8080 or https://rows.example.com/path".to_owned();
        let uri: Uri = text.parse().map_err(|_| accepted())?;
        let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else { return Err(accepted()) };
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(accepted()),
        };
        if authority.as_str().contains('@') || uri.query().is_some() {
            return Err(accepted());
        }
        Ok(Self {
            text: text.trim_end_matches('/').to_owned(),
            host: authority.host().trim_start_matches('[').trim_end_matches(']').to_owned(),
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            is_tls,
            prefix: uri.path().trim_end_matches('/').to_owned(),
            authority: HeaderValue::try_from(authority.as_str()).map_err(|_| accepted())?,
        })
    }

    /// Whether it is reached by TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The full path of one of the service's own, such as `/append`.
    fn path(&self, path: &str) -> Uri {
        format!("{}{path}", self.prefix).try_into().expect("a path behind a path")
    }

    /// For the header `Host`.
    pub fn authority(&self) -> HeaderValue {
        self.authority.clone()
    }

    /// A request for one of the service's own paths, to be sent on a connection to here.
    pub fn request(&self, method: Method, path: &str, body: Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body));
        (*request.method_mut(), *request.uri_mut()) = (method, self.path(path));
        request.headers_mut().insert(header::HOST, self.authority());
        request
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whose certificates are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those that the system's authorities signed.
    System,
    /// Those that an authority in this file signed, in PEM.
    File(PathBuf),
    /// Anybody's: for a probe of this very host that tells no secret.
    Anybody,
}

/// Why no connection could be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The address leads nowhere, or nobody listens there.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// It took too long.
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    Timeout,
    /// What listens there does not speak HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// A name that no certificate can have.
    #[error("{0}")]
    Name(#[from] rustls::pki_types::InvalidDnsNameError),
}

/// How connections are made.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    /// Reads the certificates that `https` needs.
    ///
    /// # Errors
    /// What keeps them from being used.
    pub fn new(trust: &Trust) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| e.to_string())?;
        let mut config = match trust {
            Trust::System => builder.with_root_certificates(system_roots()).with_no_client_auth(),
            Trust::File(path) => builder.with_root_certificates(roots_in(path)?).with_no_client_auth(),
            Trust::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config).into()))
    }

    /// Makes a connection, which a task of its own serves from then on.
    ///
    /// # Errors
    /// Why there is none; nothing was sent then.
    pub async fn connect(&self, target: &Target) -> Result<Connection, ConnectError> {
        timeout(CONNECT_TIMEOUT, self.try_connect(target)).await.map_err(|_| ConnectError::Timeout)?
    }

    async fn try_connect(&self, target: &Target) -> Result<Connection, ConnectError> {
        let stream = TcpStream::connect((target.host.as_str(), target.port)).await?;
        stream.set_nodelay(true)?;
        if !target.is_tls {
            return serve(stream).await;
        }
        let name = ServerName::try_from(target.host.clone())?;
        serve(self.0.connect(name, stream).await?).await
    }
}

async fn serve<S>(stream: S) -> Result<Connection, ConnectError>
where
    TokioIo<S>: Read + Write + Send + Unpin + 'static,
{
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // How it ends is told to who waits for an answer.
    tokio::spawn(connection);
    Ok(sender)
}

/// An authority that can't be read is left out: the others may do.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn roots_in(path: &Path) -> Result<RootCertStore, String> {
    let wrong = |e: &dyn fmt::Display| format!("cannot use {}: {e}; accepted: certificates in PEM", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| wrong(&e))? {
        roots.add(certificate.map_err(|e| wrong(&e))?).map_err(|e| wrong(&e))?;
    }
    if roots.is_empty() { Err(wrong(&"no certificate in it")) } else { Ok(roots) }
}

/// Asks only that the other side has the key of the certificate that it shows.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_to_its_last_part() {
        let target = Target::parse("https://[::1]:8443/rows/").expect("an address");
        assert_eq!((target.host.as_str(), target.port, target.is_tls), ("::1", 8443, true));
        assert_eq!(
            (target.path("/append").to_string(), target.to_string()),
            ("/rows/append".into(), "https://[::1]:8443/rows".into())
        );
        assert_eq!(Target::parse("http://a").expect("an address").port, 80);
        for wrong in ["", "a", "a:80", "/append", "ftp://a", "http://", "http://u:p@a", "http://a/?x=1", "redis://a"] {
            assert!(Target::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
