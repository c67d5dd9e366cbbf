//! gRPC in every shape against the echo: unary, streams from either side, and both at once, where
//! each message waits for the answer to the one before.

use anyhow::{Context as _, Result, ensure};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use weft_echo::proto::{EchoRequest, echo_client::EchoClient};
use weft_lab_tests::GrpcReport;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// HOST:PORT.
    #[arg(long)]
    to: String,
    /// Messages of each stream.
    #[arg(long, default_value_t = 10)]
    messages: u32,
}

pub(crate) async fn run(args: Args) -> Result<GrpcReport> {
    let mut client = EchoClient::connect(format!("http://{}", args.to)).await?;
    let mut report = GrpcReport::default();
    let request = |message: String| EchoRequest {
        message,
        ..EchoRequest::default()
    };

    let unary = client.unary(request("one".into())).await?.into_inner();
    ensure!(
        unary.message == "one",
        "unary came back as {:?}",
        unary.message
    );
    report.version = unary.version;

    let many = EchoRequest {
        count: args.messages,
        ..request("many".into())
    };
    let mut replies = client.server_stream(many).await?.into_inner();
    while replies.message().await?.is_some() {
        report.from_server += 1;
    }

    let requests: Vec<_> = (0..args.messages).map(|n| request(n.to_string())).collect();
    let sum = client
        .client_stream(tokio_stream::iter(requests))
        .await?
        .into_inner();
    report.from_client = sum.received;

    let (send, receive) = mpsc::channel(1);
    send.send(request("0".into())).await?;
    let mut replies = client
        .bidi_stream(ReceiverStream::new(receive))
        .await?
        .into_inner();
    for n in 0..args.messages {
        let reply = replies.message().await?.context("the stream ended early")?;
        ensure!(
            reply.message == n.to_string(),
            "{n} came back as {:?}",
            reply.message
        );
        report.both_ways += 1;
        if n + 1 < args.messages {
            send.send(request((n + 1).to_string())).await?;
        }
    }
    drop(send);
    ensure!(
        replies.message().await?.is_none(),
        "more replies than requests"
    );

    let failing = EchoRequest {
        fail_code: 9,
        fail_message: "on demand".into(),
        ..request("x".into())
    };
    if let Err(status) = client.unary(failing).await {
        report.failure = format!("{:?}: {}", status.code(), status.message());
    }
    Ok(report)
}
