//! Plain TCP: bytes in, the same bytes out; the end of one direction ends the other after the rest.

use std::net::SocketAddr;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::answer::{Banner, Identity};

/// Echoes until the other side has ended its direction and everything is sent back.
pub(crate) async fn echo(mut reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin) {
    let copied = tokio::io::copy(&mut reader, &mut writer).await;
    let ended = writer.shutdown().await;
    if let Err(error) = copied.and(ended) {
        tracing::debug!("echo ended early: {error}");
    }
}

/// Sends a line of JSON (a [`Banner`]) before reading anything, then echoes.
pub(crate) async fn speak_first(
    identity: &Identity,
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
) -> std::io::Result<()> {
    let banner = Banner {
        identity: identity.clone(),
        peer,
        local,
    };
    let (reader, mut writer) = stream.into_split();
    writer
        .write_all(format!("{}\n", serde_json::to_string(&banner)?).as_bytes())
        .await?;
    echo(reader, writer).await;
    Ok(())
}
