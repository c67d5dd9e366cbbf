//! Byte streams: the server names itself in a first line, then gives back what it gets. A lane in;
//! every byte is compared in the order in which it was sent, so both ways are checked.

use std::time::{Duration, Instant};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpStream, tcp::OwnedReadHalf},
    time::timeout,
};
use weft_chaos::record::{Cause, Conn, PATIENCE, now, pattern};
use weft_echo::answer::Banner;

use crate::{Shared, Wrong};

/// What is written at a time: more than one segment.
const PIECE: u64 = 4096;

/// How a stream came to its end.
enum End {
    /// As the client wanted it.
    Wanted,
    /// By the other side, in order.
    Theirs,
}

pub(crate) async fn run(shared: &Shared) {
    while !shared.is_stopping() {
        let life = shared.life();
        let Some((stream, mut conn)) = shared.connect().await else {
            continue;
        };
        let began = now();
        match carry(shared, stream, &mut conn, life).await {
            Ok(End::Wanted) => shared.recorder.completed(&shared.lane.name),
            Ok(End::Theirs) => shared.recorder.ended(&conn),
            Err(wrong) => shared.recorder.failed(&shared.lane, &conn, began, &wrong),
        }
        shared.pause().await;
    }
}

async fn carry(
    shared: &Shared,
    stream: TcpStream,
    conn: &mut Conn,
    life: Duration,
) -> Result<End, Wrong> {
    let until = Instant::now() + life;
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    if !greeted(shared, &mut read, conn).await? {
        return Ok(End::Theirs);
    }
    let (mut sent, mut came) = (0u64, 0u64);
    let mut last = Instant::now();
    let mut buffer = vec![0; 16 << 10];
    let mut tick = Box::pin(shared.pause());
    loop {
        tokio::select! {
            // What has come goes first, so that an end is seen before more is written.
            biased;
            count = read.read(&mut buffer) => {
                match count.map_err(|error| Wrong::io(&error))? {
                    0 => return Ok(End::Theirs),
                    count => came = compare(&buffer[..count], came)?,
                }
                last = Instant::now();
            }
            () = &mut tick => {
                if came < sent && last.elapsed() > PATIENCE {
                    return Err(Wrong::new(Cause::Timeout, format!("{came} of {sent} bytes came, then none for {PATIENCE:?}")));
                }
                if shared.is_stopping() || Instant::now() > until {
                    break;
                }
                let piece: Vec<u8> = (sent..sent + PIECE).map(pattern).collect();
                write.write_all(&piece).await.map_err(|error| Wrong::io(&error))?;
                sent += PIECE;
                shared.recorder.bytes(&shared.lane.name, PIECE);
                tick = Box::pin(shared.pause());
            }
        }
    }
    write.shutdown().await.map_err(|error| Wrong::io(&error))?;
    let rest = async {
        loop {
            match read.read(&mut buffer).await.map_err(|e| Wrong::io(&e))? {
                0 if came == sent => return Ok(End::Wanted),
                // It may have ended by itself just then; the far side decides which it was.
                0 => return Ok(End::Theirs),
                count => came = compare(&buffer[..count], came)?,
            }
        }
    };
    timeout(PATIENCE, rest).await.unwrap_or_else(|_| {
        Err(Wrong::new(
            Cause::Timeout,
            format!("{came} of {sent} bytes came, and no end within {PATIENCE:?}"),
        ))
    })
}

/// Reads the server's first line; false if the stream ended in order instead.
async fn greeted(
    shared: &Shared,
    read: &mut BufReader<OwnedReadHalf>,
    conn: &mut Conn,
) -> Result<bool, Wrong> {
    let mut line = String::new();
    let greeting = timeout(PATIENCE, read.read_line(&mut line)).await;
    let late = || Wrong::new(Cause::Timeout, format!("no first line within {PATIENCE:?}"));
    let count = greeting
        .map_err(|_| late())?
        .map_err(|error| Wrong::io(&error))?;
    if count == 0 {
        return Err(Wrong::new(Cause::Eof, "ended before the first line"));
    }
    let banner: Banner = serde_json::from_str(&line)
        .map_err(|_| Wrong::new(Cause::Body, format!("the first line is {line:?}")))?;
    conn.backend = banner.identity.pod.clone();
    shared.check(&banner.identity.version, &banner.peer.to_string(), conn)?;
    Ok(true)
}

/// Compares with what was sent; the position after it.
fn compare(bytes: &[u8], mut position: u64) -> Result<u64, Wrong> {
    for byte in bytes {
        if *byte != pattern(position) {
            return Err(Wrong::new(
                Cause::Body,
                format!("byte {position} of the stream is wrong"),
            ));
        }
        position += 1;
    }
    Ok(position)
}
