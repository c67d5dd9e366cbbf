//! The way to the controller's CA: gRPC over TLS, with roots and token of the moment.

use std::{
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{Request, Response, Status, transport::server::Connected};
use weft_api::{
    ca::{
        IstioCertificateRequest, IstioCertificateResponse,
        istio_certificate_service_server::{
            IstioCertificateService, IstioCertificateServiceServer,
        },
    },
    names::CONTROLLER_DNS_NAME,
};
use weft_certs::{
    CertificateAuthority, SpiffeId, Svid, csr,
    serving::ServingCell,
    tls::{controller_server_config, install_crypto_provider},
};
use weft_proxy::{
    controller::Controller,
    identity::{Ca, ca::ControllerCa},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Signs for whoever has the token.
struct FakeController(CertificateAuthority);

#[tonic::async_trait]
impl IstioCertificateService for FakeController {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let token = request.metadata().get("authorization");
        if token.is_none_or(|token| token != "Bearer second") {
            return Err(Status::unauthenticated("that is not the token"));
        }
        let message = request.into_inner();
        let fields = message.metadata.unwrap_or_default().fields;
        let id = match fields
            .get("ImpersonatedIdentity")
            .and_then(|value| value.kind.as_ref())
        {
            Some(prost_types::value::Kind::StringValue(id)) => id,
            other => return Err(Status::invalid_argument(format!("{other:?}"))),
        };
        let id: SpiffeId = id.parse().map_err(|_| Status::invalid_argument("id"))?;
        let signed = self.0.sign(&message.csr, &id, None, SystemTime::now());
        let signed = signed.map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(IstioCertificateResponse {
            cert_chain: signed.chain_pem,
        }))
    }
}

struct Tls(TlsStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, into)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, data)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// A controller with a certificate for `name`; its roots and a token are in `folder`.
async fn start(folder: &Path, name: &str) -> ControllerCa {
    install_crypto_provider();
    let now = SystemTime::now();
    let ca = CertificateAuthority::generate("cluster.local", now, DAY).expect("a CA");
    let roots = ca.trust_bundle().expect("roots").to_pem();
    std::fs::write(folder.join("bundle.pem"), roots).expect("a file");
    let serving = ca.serving_certificate(&[name], now).expect("a certificate");
    let config = controller_server_config(Arc::new(ServingCell::new(serving))).expect("a config");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let acceptor = TlsAcceptor::from(config);
    let incoming = futures::stream::unfold((listener, acceptor), |(listener, acceptor)| async {
        loop {
            let (tcp, _) = listener.accept().await.ok()?;
            if let Ok(stream) = acceptor.accept(tcp).await {
                return Some((Ok::<_, std::io::Error>(Tls(stream)), (listener, acceptor)));
            }
        }
    });
    let service = IstioCertificateServiceServer::new(FakeController(ca));
    tokio::spawn(
        tonic::transport::Server::builder()
            .add_service(service)
            .serve_with_incoming(incoming),
    );
    ControllerCa::new(Controller::new(
        format!("https://{address}").parse().expect("a URI"),
        folder.join("bundle.pem"),
        folder.join("token"),
    ))
}

async fn ask(ca: &ControllerCa) -> Result<Svid, String> {
    let id = SpiffeId::new("cluster.local", "shop", "web").expect("an id");
    let request = csr::Request::generate(&id).expect("a request");
    let chain = ca
        .sign(&id, request.csr_pem)
        .await
        .map_err(|error| error.to_string())?;
    let svid = Svid::from_pem(&chain, &request.key_pem).map_err(|error| error.to_string())?;
    assert_eq!(svid.id(), &id);
    Ok(svid)
}

#[tokio::test]
async fn a_certificate_is_signed_for_the_token_of_the_moment() {
    let folder = tempfile::tempdir().expect("a folder");
    let ca = start(folder.path(), CONTROLLER_DNS_NAME).await;
    let error = ask(&ca).await.expect_err("there is no token");
    assert!(error.contains("token"), "{error}");
    std::fs::write(folder.path().join("token"), "first\n").expect("a file");
    let error = ask(&ca).await.expect_err("the wrong token");
    assert!(error.contains("that is not the token"), "{error}");
    std::fs::write(folder.path().join("token"), "second\n").expect("a file");
    ask(&ca).await.expect("a certificate");
}

#[tokio::test]
async fn a_controller_with_another_name_or_root_gets_no_token() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("token"), "second\n").expect("a file");
    let ca = start(folder.path(), "somebody.else.svc").await;
    ask(&ca).await.expect_err("another name");

    let ca = start(folder.path(), CONTROLLER_DNS_NAME).await;
    let roots = std::fs::read(folder.path().join("bundle.pem")).expect("the roots");
    // Another controller's roots take their place.
    let _other = start(folder.path(), CONTROLLER_DNS_NAME).await;
    ask(&ca).await.expect_err("another root");
    std::fs::write(folder.path().join("bundle.pem"), roots).expect("a file");
    ask(&ca).await.expect("the file is read anew");
}
