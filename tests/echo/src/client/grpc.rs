//! Unary gRPC calls. The URL's query asks for behaviour: `?fail_code=14&fail_rate=0.5&delay_ms=20`.

use std::str::FromStr;
use std::sync::Arc;

use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::{Options, Reply, target};
use crate::BoxError;
use crate::behaviour::query_parameter;
use crate::proto::EchoRequest;
use crate::proto::echo_client::EchoClient;

pub(super) struct Session {
    options: Arc<Options>,
    endpoint: Endpoint,
    message: EchoRequest,
    client: Option<EchoClient<Channel>>,
}

impl Session {
    pub(super) fn new(options: Arc<Options>) -> Result<Self, BoxError> {
        let target = target(&options.url, None)?;
        let endpoint = Endpoint::from_shared(format!("http://{target}"))?
            .connect_timeout(options.timeout)
            .tcp_nodelay(true);
        let query = options.url.query().unwrap_or_default();
        let message = EchoRequest {
            message: String::from_utf8_lossy(&options.body).into_owned(),
            fail_code: parameter(query, "fail_code")?,
            fail_rate: parameter(query, "fail_rate")?,
            delay_ms: parameter(query, "delay_ms")?,
            ..EchoRequest::default()
        };
        Ok(Self {
            options,
            endpoint,
            message,
            client: None,
        })
    }

    pub(super) fn disconnect(&mut self) {
        self.client = None;
    }

    fn build(&self) -> Result<Request<EchoRequest>, BoxError> {
        let mut request = Request::new(self.message.clone());
        for (name, value) in &self.options.headers {
            let name = AsciiMetadataKey::from_bytes(name.as_str().as_bytes())?;
            let value = AsciiMetadataValue::try_from(value.as_bytes())?;
            request.metadata_mut().append(name, value);
        }
        Ok(request)
    }

    pub(super) async fn request(&mut self) -> Result<Reply, BoxError> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => EchoClient::new(self.endpoint.connect().await?),
        };
        let mut answer = client.unary(self.build()?).await;
        if answer.as_ref().is_err_and(is_unsent) {
            // gRPC's clients do so by themselves; this one's library does not.
            answer = client.unary(self.build()?).await;
        }
        let reply = match answer {
            Ok(response) => {
                let reply = response.into_inner();
                Reply {
                    status: name(Code::Ok),
                    bytes: reply.message.len() as u64,
                    answer: Some(serde_json::json!({
                        "message": reply.message, "peer": reply.peer, "authority": reply.authority,
                        "path": reply.path, "namespace": reply.namespace,
                        "headers": reply.headers.iter().map(|h| (&h.name, &h.value)).collect::<Vec<_>>(),
                    })),
                    pod: reply.pod,
                    version: reply.version,
                    ..Reply::default()
                }
            }
            // Made on this side, of what broke the call: nobody answered.
            Err(status) if causes(&status).next().is_some() => {
                return Err(std::iter::once(status.to_string())
                    .chain(causes(&status).map(ToString::to_string))
                    .collect::<Vec<_>>()
                    .join(": ")
                    .into());
            }
            Err(status) => Reply {
                status: name(status.code()),
                failed: true,
                answer: Some(serde_json::json!({ "message": status.message() })),
                ..Reply::default()
            },
        };
        if self.options.keep_alive {
            self.client = Some(client);
        }
        Ok(reply)
    }
}

/// Whether a call met a connection that was just being closed, and never left.
fn is_unsent(status: &Status) -> bool {
    causes(status)
        .filter_map(|cause| cause.downcast_ref::<hyper::Error>())
        .any(hyper::Error::is_canceled)
}

/// What the library has met; none in a status that the server sent.
fn causes(status: &Status) -> impl Iterator<Item = &(dyn std::error::Error + 'static)> {
    std::iter::successors(std::error::Error::source(status), |cause| cause.source())
}

fn name(code: Code) -> String {
    format!("grpc {} {code:?}", code as i32)
}

fn parameter<T: FromStr + Default>(query: &str, name: &str) -> Result<T, BoxError> {
    match query_parameter(query, name) {
        None => Ok(T::default()),
        Some(text) => text
            .parse()
            .map_err(|_| format!("{name}={text:?} is not understood").into()),
    }
}
