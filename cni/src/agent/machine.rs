//! How one sandbox joins and leaves the mesh: a pure state machine.
//!
//! Each phase but the resting ones is one piece of work; the worker does it and tells `Done` or
//! `Failed`. The order of the phases is the order of docs/architecture.md, "Joining and leaving":
//! nothing is redirected before a proxy accepts, nothing is reported before it is redirected, and
//! nothing is taken away before it is no longer reported.
//!
//! New connections are let straight before the report is taken back: what other proxies then dial in
//! plaintext must reach the application itself. Through this pod's proxy it would be cut when the
//! drain ends, and proxies keep such connections for later requests.

/// What the sandbox is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Phase {
    /// At rest, outside the mesh.
    Out,
    /// Making the listening sockets.
    Listening,
    /// Waiting until a proxy has acknowledged the pod.
    Offering,
    /// Putting the redirects into force.
    Redirecting,
    /// Writing the annotation. The pod is captured already.
    Reporting,
    /// At rest, in the mesh.
    In,
    /// Letting new connections go straight; tunnels still come.
    Releasing,
    /// Removing the annotation.
    Unreporting,
    /// Waiting until the controller has seen that no proxy tunnels to the pod any more.
    Acknowledging,
    /// Waiting for open connections to end.
    Draining,
    /// Removing rules and sockets.
    Removing,
    /// At an end: the sandbox is gone.
    Gone,
}

impl Phase {
    /// Whether the work may be dropped half-way. Work inside the pod's namespace may not: a thread
    /// that was left behind would race with what comes next.
    pub(super) fn is_interruptible(self) -> bool {
        !matches!(
            self,
            Phase::Listening | Phase::Redirecting | Phase::Releasing | Phase::Removing
        )
    }

    /// For status and logs.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Phase::Out => "out",
            Phase::Listening => "joining: making listening sockets",
            Phase::Offering => "joining: waiting for a proxy to accept",
            Phase::Redirecting => "joining: setting redirects",
            Phase::Reporting => "joining: reporting",
            Phase::In => "in",
            Phase::Unreporting => "leaving: taking the report back",
            Phase::Acknowledging => "leaving: waiting for other proxies",
            Phase::Releasing => "leaving: releasing new connections",
            Phase::Draining => "leaving: draining",
            Phase::Removing => "leaving: removing rules",
            Phase::Gone => "gone",
        }
    }
}

/// A sandbox's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct State {
    /// What it is at.
    pub(super) phase: Phase,
    /// Whether it should be in the mesh.
    pub(super) wanted: bool,
    /// Whether new connections are redirected.
    pub(super) redirected: bool,
    /// Whether rules are there, of one kind or the other: connections may be open through them.
    pub(super) ruled: bool,
    /// Whether proxies may still take the pod for captured.
    pub(super) reported: bool,
    /// Whether the sandbox is going.
    pub(super) deleted: bool,
}

/// What happens to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// Whether it should be in the mesh, as labels say now.
    Wanted(bool),
    /// The API no longer says that the sandbox is captured, though it is: somebody took the
    /// annotation away, and proxies elsewhere would dial the pod in plaintext.
    ReportLost,
    /// The API says that another sandbox of the pod is captured, and there is none: it went with the
    /// node's power. Proxies elsewhere would tunnel to the pod in vain.
    ReportStale,
    /// The runtime removes the sandbox, or its namespace has vanished.
    Deleted,
    /// The phase's work is done.
    Done,
    /// The phase's work failed; it is tried again if the phase stays the same.
    Failed,
}

/// Where a sandbox begins: `found` says that rules or a report of an earlier agent are there.
pub(super) fn begin(found: bool, wanted: bool) -> State {
    // What leaves the mesh needs its sockets to the end: a proxy is let in only with them on offer,
    // and would let go of the pod otherwise, with all that it has open.
    let phase = if wanted || found {
        Phase::Listening
    } else {
        Phase::Out
    };
    State {
        phase,
        wanted,
        redirected: found,
        ruled: found,
        reported: found,
        deleted: false,
    }
}

/// What follows.
pub(super) fn next(mut state: State, event: Event) -> State {
    if state.phase == Phase::Gone {
        return state;
    }
    match event {
        Event::Wanted(wanted) => {
            state.wanted = wanted;
            if state.phase.is_interruptible() && !state.deleted {
                state.phase = after_change(state);
            }
        }
        Event::ReportLost => {
            if state.phase == Phase::In {
                state.phase = Phase::Reporting;
            }
        }
        Event::ReportStale => {
            if state.phase == Phase::Out {
                (state.phase, state.reported) = (Phase::Unreporting, true);
            }
        }
        Event::Deleted => {
            state.deleted = true;
            if state.phase.is_interruptible() {
                state.phase = Phase::Removing;
            }
        }
        Event::Done => {
            match state.phase {
                Phase::Redirecting => (state.redirected, state.ruled) = (true, true),
                Phase::Releasing => state.redirected = false,
                Phase::Acknowledging => state.reported = false,
                Phase::Removing => {
                    (state.redirected, state.ruled, state.reported) = (false, false, false);
                }
                _ => {}
            }
            state.phase = after_done(state);
        }
        Event::Failed => state.phase = after_failure(state),
    }
    // An attempt that fails, or is dropped half-way, may have written the report all the same.
    state.reported |= state.phase == Phase::Reporting;
    state
}

fn after_change(state: State) -> Phase {
    match (state.phase, state.wanted) {
        (Phase::Out, true) => Phase::Listening,
        (Phase::Offering, false) => give_up(state),
        (Phase::Reporting | Phase::In, false) => Phase::Releasing,
        // No proxy drains the pod yet. The sockets may be missing if the agent has just begun: to
        // make and offer them again costs nothing.
        (Phase::Unreporting | Phase::Acknowledging, true) => Phase::Listening,
        // The rules are there still: it joins again at once, and what is open goes on.
        (Phase::Draining, true) => Phase::Listening,
        (phase, _) => phase,
    }
}

fn after_done(state: State) -> Phase {
    if state.phase == Phase::Removing {
        return match (state.deleted, state.wanted) {
            (true, _) => Phase::Gone,
            (false, true) => Phase::Listening,
            (false, false) => Phase::Out,
        };
    }
    if state.deleted {
        return Phase::Removing;
    }
    match state.phase {
        Phase::Listening if state.wanted => Phase::Offering,
        Phase::Listening => give_up(state),
        Phase::Offering => Phase::Redirecting,
        Phase::Redirecting if state.wanted => Phase::Reporting,
        Phase::Redirecting => give_up(state),
        Phase::Reporting => Phase::In,
        Phase::Releasing if state.wanted => Phase::Listening,
        Phase::Releasing if state.reported => Phase::Unreporting,
        Phase::Releasing => Phase::Draining,
        Phase::Unreporting => Phase::Acknowledging,
        Phase::Acknowledging => Phase::Draining,
        Phase::Draining => Phase::Removing,
        phase => phase,
    }
}

fn after_failure(state: State) -> Phase {
    match state.phase {
        // Its namespace is gone, or will be: nothing more can be done.
        Phase::Removing if state.deleted => Phase::Gone,
        _ if state.deleted => Phase::Removing,
        Phase::Listening | Phase::Offering | Phase::Redirecting if !state.wanted => give_up(state),
        phase => phase,
    }
}

/// A join that is no longer wanted.
fn give_up(state: State) -> Phase {
    if state.redirected {
        Phase::Releasing
    } else if state.reported {
        Phase::Unreporting
    } else if state.ruled {
        Phase::Draining
    } else {
        Phase::Removing
    }
}

#[cfg(test)]
mod tests;
