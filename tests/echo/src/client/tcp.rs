//! TCP: sends the body, ends its direction, reads to the end, and compares what came back.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{Options, Reply, connect, target};
use crate::BoxError;
use crate::answer::Banner;

pub(super) struct Session {
    options: Arc<Options>,
    target: String,
}

impl Session {
    pub(super) fn new(options: Arc<Options>) -> Result<Self, BoxError> {
        Ok(Self {
            target: target(&options.url, None)?,
            options,
        })
    }

    pub(super) async fn request(&mut self) -> Result<Reply, BoxError> {
        let stream = connect(&self.target).await?;
        let (mut reader, mut writer) = stream.into_split();
        let body = &self.options.body;
        let send = async {
            writer.write_all(body).await?;
            writer.shutdown().await
        };
        let mut received = Vec::new();
        // Both at once: an echo of more than the buffers hold would block either alone.
        let (sent, read) = tokio::join!(send, reader.read_to_end(&mut received));
        sent?;
        read?;
        let line = received
            .split_inclusive(|byte| *byte == b'\n')
            .next()
            .unwrap_or_default();
        let banner: Option<Banner> = serde_json::from_slice(line).ok();
        let echoed = if banner.is_some() {
            &received[line.len()..]
        } else {
            &received[..]
        };
        if echoed != body {
            let (came, sent) = (echoed.len(), body.len());
            return Err(format!("the echo differs: {came} bytes came back of {sent}").into());
        }
        let identity = banner
            .as_ref()
            .map(|banner| banner.identity.clone())
            .unwrap_or_default();
        Ok(Reply {
            status: "tcp ok".to_owned(),
            failed: false,
            pod: identity.pod,
            version: identity.version,
            bytes: received.len() as u64,
            answer: banner.and_then(|banner| serde_json::to_value(banner).ok()),
        })
    }
}
