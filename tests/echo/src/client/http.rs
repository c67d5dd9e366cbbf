//! HTTP requests, on a connection each or on one that is kept.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{HOST, HeaderName};
use http::uri::Authority;
use http::{Request, Response, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::{Options, Reply, connect, target};
use crate::BoxError;

/// Answers up to this size are read as JSON; longer ones are only counted.
const LARGEST_ANSWER: usize = 1 << 20;

pub(super) struct Session {
    options: Arc<Options>,
    target: String,
    uri: Uri,
    connection: Option<Connection>,
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

impl Session {
    pub(super) fn new(options: Arc<Options>) -> Result<Self, BoxError> {
        let target = target(&options.url, Some(80))?;
        // On HTTP/2 a Host header is the authority; the connection still goes to the URL's host.
        let host = options.headers.iter().find(|(name, _)| name == HOST);
        let mut parts = options.url.clone().into_parts();
        if let Some((_, host)) = host {
            parts.authority = Some(Authority::from_maybe_shared(Bytes::copy_from_slice(
                host.as_bytes(),
            ))?);
        }
        if parts.path_and_query.is_none() {
            parts.path_and_query = Some("/".parse()?);
        }
        Ok(Self {
            target,
            uri: Uri::from_parts(parts)?,
            connection: None,
            options,
        })
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    pub(super) async fn request(&mut self) -> Result<Reply, BoxError> {
        let kept = self.connection.take().filter(|kept| !kept.is_closed());
        let sent = match kept {
            Some(mut kept) => match kept.send(self.build()?).await {
                // Its server is closing it, and has not seen the request: any client sends it again.
                Err(NotAnswered { unseen: true, .. }) => None,
                sent => Some((kept, sent)),
            },
            None => None,
        };
        let (connection, sent) = match sent {
            Some(sent) => sent,
            None => {
                let mut new = Connection::open(&self.target, self.options.http2).await?;
                let sent = new.send(self.build()?).await;
                (new, sent)
            }
        };
        let response = sent.map_err(|failed| failed.error)?;
        let reply = read(response).await?;
        if self.options.keep_alive {
            self.connection = Some(connection);
        }
        Ok(reply)
    }

    fn build(&self) -> Result<Request<Full<Bytes>>, BoxError> {
        let mut request = Request::new(Full::new(self.options.body.clone()));
        *request.method_mut() = self.options.method.clone();
        let authority = self
            .uri
            .authority()
            .map(Authority::as_str)
            .unwrap_or_default();
        if self.options.http2 {
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.uri.clone();
        } else {
            let path = self
                .uri
                .path_and_query()
                .map(ToString::to_string)
                .unwrap_or_default();
            *request.uri_mut() = path.parse()?;
            request.headers_mut().insert(HOST, authority.parse()?);
        }
        let others = self.options.headers.iter().filter(|(name, _)| name != HOST);
        for (name, value) in others {
            request.headers_mut().append(name, value.clone());
        }
        Ok(request)
    }
}

impl Connection {
    async fn open(target: &str, http2: bool) -> Result<Self, BoxError> {
        let stream = TokioIo::new(connect(target).await?);
        // What goes wrong on a connection shows in its requests: the driver's result is dropped.
        if http2 {
            let (sender, driver) = http2::handshake(TokioExecutor::new(), stream).await?;
            tokio::spawn(driver);
            Ok(Self::Http2(sender))
        } else {
            let (sender, driver) = http1::handshake(stream).await?;
            tokio::spawn(driver);
            Ok(Self::Http1(sender))
        }
    }

    fn is_closed(&self) -> bool {
        match self {
            Self::Http1(sender) => sender.is_closed(),
            Self::Http2(sender) => sender.is_closed(),
        }
    }

    async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NotAnswered> {
        let ready = match self {
            Self::Http1(sender) => sender.ready().await,
            Self::Http2(sender) => sender.ready().await,
        };
        ready.map_err(|error| NotAnswered {
            unseen: true,
            error: error.into(),
        })?;
        let sent = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        sent.map_err(|mut failed| {
            let unsent = failed.take_message().is_some();
            let error = failed.into_error();
            NotAnswered {
                unseen: unsent || is_turned_away(&error),
                error: error.into(),
            }
        })
    }
}

/// A request without an answer.
struct NotAnswered {
    /// The server has not acted on it, for sure.
    unseen: bool,
    error: BoxError,
}

/// RFC 9113, 8.7: a server that goes away in order says which streams it has not processed.
fn is_turned_away(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|it| it.downcast_ref::<h2::Error>());
    cause.is_some_and(|it| it.is_go_away() && it.reason() == Some(h2::Reason::NO_ERROR))
}

async fn read(response: Response<Incoming>) -> Result<Reply, BoxError> {
    let (head, mut body) = response.into_parts();
    let mut bytes = 0;
    let mut start = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Some(data) = frame?.data_ref() {
            bytes += data.len() as u64;
            if start.len() <= LARGEST_ANSWER {
                start.extend_from_slice(data);
            }
        }
    }
    let answer: Option<serde_json::Value> = if start.len() <= LARGEST_ANSWER {
        serde_json::from_slice(&start).ok()
    } else {
        None
    };
    let header = |name: &'static str| {
        let value = head.headers.get(HeaderName::from_static(name));
        value.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    Ok(Reply {
        status: head.status.as_str().to_owned(),
        failed: head.status.is_client_error() || head.status.is_server_error(),
        pod: header("x-echo-pod").unwrap_or_default(),
        version: header("x-echo-version").unwrap_or_default(),
        bytes,
        answer,
    })
}
