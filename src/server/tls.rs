//! TLS on the server's own socket: certificate and key from files, read again on a signal.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio_rustls::TlsAcceptor;

use crate::config::Config;

/// Why HTTPS cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A certificate without its key, or a key without its certificate.
    #[error("ROWLOCK_TLS_CERT (--tls-cert) and ROWLOCK_TLS_KEY (--tls-key) go together: set both or none")]
    HalfACertificate,
    /// A file cannot be read.
    #[error("{variable}: cannot read {path}: {source}; accepted: a file in PEM")]
    File {
        /// The setting's variable.
        variable: &'static str,
        /// The file.
        path: String,
        /// The cause.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not match, or are not supported.
    #[error("ROWLOCK_TLS_CERT and ROWLOCK_TLS_KEY cannot be used: {0}")]
    Unfit(#[from] rustls::Error),
}

/// Certificate and key, as last read.
pub(super) struct Tls {
    cert: PathBuf,
    key: PathBuf,
    config: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    /// `None` if HTTPS is not configured.
    pub(super) fn load(config: &Config) -> Result<Option<Self>, TlsError> {
        match (&config.tls_cert, &config.tls_key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => {
                let server = RwLock::new(read(cert, key)?);
                Ok(Some(Self { cert: cert.clone(), key: key.clone(), config: server }))
            }
            _ => Err(TlsError::HalfACertificate),
        }
    }

    /// Reads the files again, for new connections. After an error the old ones stay in use.
    pub(super) fn reload(&self) -> Result<(), TlsError> {
        let config = read(&self.cert, &self.key)?;
        *self.config.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        Arc::clone(&self.config.read().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

fn read(cert: &Path, key: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let file = |variable, path: &Path| {
        let path = path.display().to_string();
        move |source| TlsError::File { variable, path, source }
    };
    let certs: Result<Vec<_>, _> = CertificateDer::pem_file_iter(cert).and_then(Iterator::collect);
    let certs = certs.map_err(file("ROWLOCK_TLS_CERT", cert))?;
    let key = PrivateKeyDer::from_pem_file(key).map_err(file("ROWLOCK_TLS_KEY", key))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = builder.with_no_client_auth().with_single_cert(certs, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
