//! Listens on the wires between nodes and pods, also as `weft lab capture`. In: namespaces of the
//! fabric or of nodes, and texts to look for. Out: how often each was seen in clear text, and how
//! much was seen at all. Bounded: nothing is kept.

use std::{
    io::Read,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use nix::sys::signal::{SigSet, Signal};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use weft_api::names::PORT_HBONE;

use super::{
    family::IpFamily,
    netns,
    paths::{Paths, State},
    plan::Plan,
};

/// `weft lab capture`: counts packets that hold texts in clear, until Ctrl-C or SIGTERM.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// What to look for, such as a request's path.
    #[arg(required = true)]
    texts: Vec<String>,
}

/// `ETH_P_ALL`, as the kernel wants it.
const ALL_PROTOCOLS: i32 = 0x0003_u16.to_be() as i32;
/// More than the largest segment that leaves a veth uncut.
const FRAME: usize = 1 << 17;
/// Between looks at whether to stop; how long the last frames may take.
const TICK: Duration = Duration::from_millis(50);
/// How long what is left is read on wires that are never quiet.
const REST: Duration = Duration::from_secs(1);
/// What waits in the kernel while this thread has no processor.
const KERNEL_BUFFER: usize = 8 << 20;

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Seen {
    pub(crate) frames: u64,
    /// Frames of HBONE tunnels.
    pub(crate) tunnel: u64,
    /// Frames that hold each text, in the order in which they were given.
    pub(crate) texts: Vec<u64>,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.tunnel += other.tunnel;
        for (sum, more) in self.texts.iter_mut().zip(&other.texts) {
            *sum += more;
        }
    }
}

/// Runs the command: every link of the fabric, and every link of every node, where pods of one
/// node speak to each other. A frame counts on each link that it passes.
pub(crate) fn run(lab: &str, args: &Args) -> anyhow::Result<ExitCode> {
    let Some(state) = State::read(&Paths::of(lab))? else {
        bail!("no lab named {lab} is running: start one with `weft lab up -f PATH`");
    };
    // Of the plan only the namespaces' names are asked for, whatever the family.
    let plan = Plan::new(lab, state.nodes, None, IpFamily::default())?;
    let nodes = plan.nodes.iter().map(|node| node.netns.as_str());
    // Before the threads, so that they inherit it: the signal waits until it is asked for.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let captures = std::iter::once(plan.fabric.netns.as_str())
        .chain(nodes)
        .map(|netns| Capture::start(netns, args.texts.clone()))
        .collect::<anyhow::Result<Vec<_>>>()?;
    eprintln!("listening");
    signals.wait()?;
    let mut sum = Seen {
        texts: vec![0; args.texts.len()],
        ..Seen::default()
    };
    for capture in captures {
        sum.add(&capture.stop()?);
    }
    println!("{}", serde_json::to_string(&sum)?);
    Ok(ExitCode::SUCCESS)
}

/// A capture under way.
pub(crate) struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<std::io::Result<Seen>>,
}

impl Capture {
    /// Starts to listen on every link of the namespace.
    pub(crate) fn start(netns: &str, texts: Vec<String>) -> anyhow::Result<Self> {
        let socket = netns::run(netns, || {
            Socket::new(
                Domain::PACKET,
                Type::RAW,
                Some(Protocol::from(ALL_PROTOCOLS)),
            )
        })?
        .context("a packet socket")?;
        socket.set_read_timeout(Some(TICK))?;
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || listen(socket, &texts, &stopped));
        Ok(Self { stop, thread })
    }

    /// Ends it.
    pub(crate) fn stop(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Release);
        let seen = self
            .thread
            .join()
            .map_err(|_| anyhow!("the capture's thread panicked"))?;
        seen.context("the capture")
    }
}

fn listen(mut socket: Socket, texts: &[String], stop: &AtomicBool) -> std::io::Result<Seen> {
    let mut seen = Seen {
        texts: vec![0; texts.len()],
        ..Seen::default()
    };
    let mut buffer = vec![0; FRAME];
    let mut stopped = None;
    loop {
        // Asked for before reading: what came until then is still read.
        let last = stop.load(Ordering::Acquire);
        if last && stopped.get_or_insert_with(Instant::now).elapsed() > REST {
            return Ok(seen);
        }
        match socket.read(&mut buffer) {
            Ok(length) => look(&buffer[..length], texts, &mut seen),
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                ) =>
            {
                if last {
                    return Ok(seen);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn look(frame: &[u8], texts: &[String], seen: &mut Seen) {
    seen.frames += 1;
    seen.tunnel += u64::from(tcp_ports(frame).is_some_and(|ports| ports.contains(&PORT_HBONE)));
    for (text, count) in texts.iter().zip(&mut seen.texts) {
        let text = text.as_bytes();
        *count += u64::from(frame.windows(text.len()).any(|window| window == text));
    }
}

/// Source and destination port of a TCP segment in IP in Ethernet. (In a lab nothing puts extension
/// headers between IPv6's and TCP's.)
fn tcp_ports(frame: &[u8]) -> Option<[u16; 2]> {
    const ETHERNET: usize = 14;
    const TCP: u8 = 6;
    let ip = frame.get(ETHERNET..)?;
    let (protocol, header) = match frame[12..ETHERNET] {
        [0x08, 0x00] => (*ip.get(9)?, usize::from(ip[0] & 0x0f) * 4),
        [0x86, 0xdd] => (*ip.get(6)?, 40),
        _ => return None,
    };
    if protocol != TCP {
        return None;
    }
    let tcp = ip.get(header..)?;
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    Some([port(0)?, port(2)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4, TCP, payload.
    fn frame(ports: [u16; 2], payload: &str) -> Vec<u8> {
        let mut ip = vec![0; 20];
        (ip[0], ip[9]) = (0x45, 6);
        in_ethernet([0x08, 0x00], &ip, ports, payload)
    }

    /// Ethernet, IPv6, TCP, payload.
    fn frame6(ports: [u16; 2], payload: &str) -> Vec<u8> {
        let mut ip = vec![0; 40];
        (ip[0], ip[6]) = (0x60, 6);
        in_ethernet([0x86, 0xdd], &ip, ports, payload)
    }

    fn in_ethernet(kind: [u8; 2], ip: &[u8], ports: [u16; 2], payload: &str) -> Vec<u8> {
        let mut frame = vec![0; 12];
        frame.extend(kind);
        frame.extend(ip);
        frame.extend(ports[0].to_be_bytes());
        frame.extend(ports[1].to_be_bytes());
        frame.extend([0; 16]);
        frame.extend(payload.as_bytes());
        frame
    }

    #[test]
    fn texts_and_tunnels_are_counted_by_the_frame() {
        let texts = ["marker-a".to_owned(), "marker-b".to_owned()];
        let mut seen = Seen {
            texts: vec![0; 2],
            ..Seen::default()
        };
        look(
            &frame([40000, 80], "x marker-a marker-a"),
            &texts,
            &mut seen,
        );
        look(&frame([40000, 15008], "secret"), &texts, &mut seen);
        look(&frame6([15008, 40000], "secret"), &texts, &mut seen);
        look(&[0; 5], &texts, &mut seen);
        assert_eq!(
            seen,
            Seen {
                frames: 4,
                tunnel: 2,
                texts: vec![1, 0]
            }
        );
    }
}
