//! A self-signed certificate for `localhost`, made anew for each server.

use std::{fs, path::Path, sync::Arc};

use anyhow::Result;
use rcgen::{CertifiedKey, KeyPair};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

/// An acceptor that offers these protocols by ALPN.
pub(crate) fn acceptor(alpn: &[&str]) -> TlsAcceptor {
    let certified = certificate();
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("key and certificate belong together");
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsAcceptor::from(Arc::new(config))
}

/// Writes `cert.pem` and `key.pem`, for servers that read files.
pub(crate) fn write_pem(directory: &Path) -> Result<()> {
    let certified = certificate();
    fs::write(directory.join("cert.pem"), certified.cert.pem())?;
    fs::write(directory.join("key.pem"), certified.signing_key.serialize_pem())?;
    Ok(())
}

fn certificate() -> CertifiedKey<KeyPair> {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    rcgen::generate_simple_self_signed(names).expect("a certificate for fixed names")
}
