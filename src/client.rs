//! An HTTP client for the commands that call replicas, and for traces: single connections, with or without TLS, with timeouts.

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

/// The longest that connecting may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// One connection, for one request after the other.
pub type Connection = SendRequest<Full<Bytes>>;

/// The address of a replica.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    text: String,
    host: String,
    port: u16,
    is_tls: bool,
    /// The path in front of the service's own paths, without a slash at the end.
    prefix: String,
    authority: HeaderValue,
}

impl Target {
    /// Parses `http://host:port` or `https://…`, with a path if a proxy serves the replica under one.
    ///
    /// # Errors
    /// A text that says what is accepted.
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

    /// Whether connections use TLS.
    pub fn is_tls(&self) -> bool {
        self.is_tls
    }

    /// The full path of a path of the service, such as `/append`.
    fn path(&self, path: &str) -> Uri {
        format!("{}{path}", self.prefix).try_into().expect("a valid path")
    }

    /// The value of the `Host` header.
    pub fn authority(&self) -> HeaderValue {
        self.authority.clone()
    }

    /// A request for a path of the service, for a connection to this address.
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

/// Which server certificates are trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Those signed by the system's certificate authorities.
    System,
    /// Those signed by an authority in this PEM file.
    File(PathBuf),
    /// All of them: for a health check on this host that sends no secret.
    Any,
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host is unknown, or refuses the connection.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// Connecting took too long.
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    Timeout,
    /// The other side does not speak HTTP.
    #[error("{0}")]
    Http(#[from] hyper::Error),
    /// The host name cannot be in a certificate.
    #[error("{0}")]
    Name(#[from] rustls::pki_types::InvalidDnsNameError),
}

/// Makes connections.
#[derive(Clone)]
pub struct Connector(TlsConnector);

impl Connector {
    /// Loads the trusted certificates.
    ///
    /// # Errors
    /// Why they cannot be used.
    pub fn new(trust: &Trust) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| e.to_string())?;
        let mut config = match trust {
            Trust::System => builder.with_root_certificates(system_roots()).with_no_client_auth(),
            Trust::File(path) => builder.with_root_certificates(roots_in(path)?).with_no_client_auth(),
            Trust::Any => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self(Arc::new(config).into()))
    }

    /// Connects, and spawns the task that drives the connection.
    ///
    /// # Errors
    /// If there is no connection; then no request was sent.
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
    // Its error is also that of the pending request.
    tokio::spawn(connection);
    Ok(sender)
}

/// Skips authorities that cannot be parsed.
fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    roots
}

fn roots_in(path: &Path) -> Result<RootCertStore, String> {
    let error = |e: &dyn fmt::Display| format!("cannot use {}: {e}; accepted: certificates in PEM", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| error(&e))? {
        roots.add(certificate.map_err(|e| error(&e))?).map_err(|e| error(&e))?;
    }
    if roots.is_empty() { Err(error(&"no certificate in it")) } else { Ok(roots) }
}

/// Accepts any certificate, if the other side has its key.
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
    fn target_is_parsed_with_host_port_and_path() {
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
