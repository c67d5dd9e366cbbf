//! The gRPC echo service: calls in, replies that say what was seen, streams and failures out.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use tonic::{Code, Request, Response, Status, Streaming};

use crate::answer::Identity;
use crate::proto::echo_server::Echo;
use crate::proto::{EchoReply, EchoRequest, Header};

/// The service. It has no state: what it tells of comes with each request, as [`Seen`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct EchoService;

/// What of the HTTP request a reply tells; put into its extensions before tonic takes it.
#[derive(Debug, Clone)]
pub(crate) struct Seen(pub(crate) Arc<EchoReply>);

impl Seen {
    /// Takes note of a request's path, authority and metadata.
    pub(crate) fn new<B>(request: &http::Request<B>, peer: String, identity: &Identity) -> Self {
        let headers = request.headers().iter().map(|(name, value)| Header {
            name: name.to_string(),
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
        });
        Self(Arc::new(EchoReply {
            pod: identity.pod.clone(),
            namespace: identity.namespace.clone(),
            version: identity.version.clone(),
            peer,
            authority: request
                .uri()
                .authority()
                .map(ToString::to_string)
                .unwrap_or_default(),
            path: request.uri().path().to_owned(),
            headers: headers.collect(),
            ..EchoReply::default()
        }))
    }

    fn of<T>(request: &Request<T>) -> Self {
        let seen = request.extensions().get::<Self>().cloned();
        seen.unwrap_or_else(|| Self(Arc::new(EchoReply::default())))
    }

    fn reply(&self, message: String, index: u32) -> EchoReply {
        EchoReply {
            message,
            index,
            ..self.0.as_ref().clone()
        }
    }
}

impl EchoRequest {
    /// The failure that is asked for, if the dice say so.
    fn failure(&self) -> Result<(), Status> {
        let code = i32::try_from(self.fail_code).unwrap_or(2);
        if code == 0 || (self.fail_rate > 0.0 && rand::random::<f64>() >= self.fail_rate) {
            return Ok(());
        }
        Err(Status::new(Code::from_i32(code), self.fail_message.clone()))
    }

    async fn delay(&self) {
        tokio::time::sleep(Duration::from_millis(self.delay_ms.into())).await;
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<EchoReply, Status>> + Send>>;

#[tonic::async_trait]
impl Echo for EchoService {
    async fn unary(&self, request: Request<EchoRequest>) -> Result<Response<EchoReply>, Status> {
        let seen = Seen::of(&request);
        let asked = request.into_inner();
        asked.delay().await;
        asked.failure()?;
        Ok(Response::new(seen.reply(asked.message, 0)))
    }

    type ServerStreamStream = Replies;

    async fn server_stream(
        &self,
        request: Request<EchoRequest>,
    ) -> Result<Response<Replies>, Status> {
        let seen = Seen::of(&request);
        let asked = request.into_inner();
        asked.delay().await;
        let end = asked.failure().err().map(Err);
        let interval = Duration::from_millis(asked.interval_ms.into());
        let replies = stream::iter(0..asked.count).then(move |index| {
            let reply = seen.reply(asked.message.clone(), index);
            async move {
                if index > 0 {
                    tokio::time::sleep(interval).await;
                }
                Ok(reply)
            }
        });
        Ok(Response::new(Box::pin(replies.chain(stream::iter(end)))))
    }

    async fn client_stream(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<EchoReply>, Status> {
        let seen = Seen::of(&request);
        let mut requests = request.into_inner();
        let mut received = 0;
        let mut message = String::new();
        while let Some(asked) = requests.message().await? {
            received += 1;
            asked.delay().await;
            asked.failure()?;
            message = asked.message;
        }
        Ok(Response::new(EchoReply {
            received,
            ..seen.reply(message, 0)
        }))
    }

    type BidiStreamStream = Replies;

    async fn bidi_stream(
        &self,
        request: Request<Streaming<EchoRequest>>,
    ) -> Result<Response<Replies>, Status> {
        let seen = Seen::of(&request);
        let replies = request
            .into_inner()
            .enumerate()
            .then(move |(index, asked)| {
                let seen = seen.clone();
                async move {
                    let asked = asked?;
                    asked.delay().await;
                    asked.failure()?;
                    Ok(seen.reply(asked.message, u32::try_from(index).unwrap_or(u32::MAX)))
                }
            });
        Ok(Response::new(Box::pin(replies)))
    }
}
