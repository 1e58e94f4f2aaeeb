use std::path::Path;
use std::time::Duration;

use futures::{Stream, StreamExt};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use sensorium_actors::error::Error;
use sensorium_cluster::membership::{Membership, Registration};
use tonic::transport::server::{Connected, TcpIncoming};

use super::*;
use crate::deal::{Accepted, Seat};
use crate::{Dial, Member, RemoteMember};

/// Writes `ca.pem`, `cert.pem` and `key.pem` of a new authority.
fn issue(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    std::fs::write(folder.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), key.serialize_pem()).unwrap();
}

fn files(folder: &TempDir) -> (PemFile, PemFile, PemFile) {
    let file = |key, name| PemFile { key, path: folder.path().join(name) };
    (file("plane.certificate", "cert.pem"), file("plane.key", "key.pem"), file("plane.ca", "ca.pem"))
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path());
    let other = tempfile::tempdir().unwrap();
    issue(other.path());
    let (certificate, key, ca) = files(&folder);
    worker(certificate.clone(), key.clone(), ca.clone()).unwrap();
    let error = |outcome: Result<ServerTls, BadFiles>| outcome.err().unwrap().to_string();

    let told = error(worker(certificate.clone(), files(&other).1, ca.clone()));
    assert!(told.contains("plane.certificate, plane.key") && told.contains("KeyMismatch"), "{told}");
    let told = error(worker(key.clone(), key.clone(), ca.clone()));
    assert!(told.contains("plane.key") && told.contains("no certificate"), "{told}");
    let told = error(worker(certificate.clone(), certificate.clone(), ca.clone()));
    assert!(told.contains("private key"), "{told}");
    std::fs::write(&ca.path, "nothing").unwrap();
    let told = error(worker(certificate.clone(), key.clone(), ca.clone()));
    assert!(told.contains("plane.ca") && told.contains("ca.pem"), "{told}");
    std::fs::remove_file(&key.path).unwrap();
    assert!(error(worker(certificate, key, ca)).contains("key.pem"));
}

fn accepted(listener: TcpListener) -> impl Stream<Item = std::io::Result<Accepted>> {
    TcpIncoming::from(listener).map(|stream| Ok(Accepted { stream: stream?, seat: Seat::take(&Arc::default()) }))
}

#[tokio::test]
async fn a_silent_client_holds_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path());
    let (certificate, key, ca) = files(&folder);
    let server = worker(certificate.clone(), key.clone(), ca.clone()).unwrap();
    let client = ClientTls::start(certificate, key, ca, "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepted = incoming(accepted(listener), Some(server), "test");

    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let asking = tokio::spawn(async move {
        let connector = tokio_rustls::TlsConnector::from(client.config());
        let stream = TcpStream::connect(address).await.unwrap();
        let own = stream.local_addr().unwrap();
        let mut stream = connector.connect(address.ip().into(), stream).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.flush().await.unwrap();
        (own, stream)
    });
    let mut connection =
        tokio::time::timeout(Duration::from_secs(60), accepted.next()).await.unwrap().unwrap().unwrap();
    let (own, _stream) = asking.await.unwrap();
    assert_eq!(connection.connect_info().remote_addr, Some(own), "the others are not through");
    let mut hello = [0; 5];
    connection.read_exact(&mut hello).await.unwrap();
    assert_eq!(&hello, b"hello");
}

/// What a call to a worker at `address` comes to.
async fn call(address: std::net::SocketAddr, worker_tls: bool, tls: Option<ClientTls>) -> (&'static str, String) {
    let registration =
        Registration { node: "w1".into(), address: address.to_string(), tls: worker_tls, ..Registration::default() };
    let dial = Dial { tls, ..Dial::default() };
    let member = RemoteMember::new(&registration, &dial, Membership::embedded().link()).unwrap();
    match member.drain().await {
        Err(Error::Unavailable { reason, message, .. }) => (reason, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_fails_before_a_connection_was_never_asked() {
    let folder = tempfile::tempdir().unwrap();
    issue(folder.path());
    let (certificate, key, ca) = files(&folder);
    let tls = || ClientTls::start(certificate.clone(), key.clone(), ca.clone(), "").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    for (worker_tls, tls, word) in [(true, None, "speaks TLS"), (false, Some(tls()), "speaks no TLS")] {
        let (reason, message) = call(address, worker_tls, tls).await;
        assert!(reason == "UNREACHABLE" && message.contains(word), "{reason}: {message}");
    }
    // nobody there any more
    drop(listener);
    let (reason, message) = call(address, true, Some(tls())).await;
    assert!(reason == "UNREACHABLE" && message.contains("refused"), "{reason}: {message}");
    // a certificate that somebody else has signed
    let other = tempfile::tempdir().unwrap();
    issue(other.path());
    let (certificate, key, ca) = files(&other);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut accepted = incoming(accepted(listener), Some(worker(certificate, key, ca).unwrap()), "test");
    tokio::spawn(async move { while accepted.next().await.is_some() {} });
    let (reason, message) = call(address, true, Some(tls())).await;
    assert!(reason == "UNREACHABLE" && message.contains("invalid peer certificate"), "{reason}: {message}");
}
