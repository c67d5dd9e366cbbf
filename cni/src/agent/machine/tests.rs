#![allow(clippy::unwrap_used)]

use std::collections::HashSet;

use super::{Event::*, Phase::*, *};

const ALL: [Phase; 12] = [
    Out,
    Listening,
    Offering,
    Redirecting,
    Reporting,
    In,
    Releasing,
    Unreporting,
    Acknowledging,
    Draining,
    Removing,
    Gone,
];

/// A state in which `begun` pieces of joining are in force: neither, redirects, or both.
fn state(phase: Phase, wanted: bool, begun: bool) -> State {
    State {
        phase,
        wanted,
        redirected: begun && !matches!(phase, Unreporting | Acknowledging),
        ruled: begun || matches!(phase, Draining | Removing),
        reported: begun,
        deleted: false,
    }
}

/// In the middle of joining again: the rules of the leave are in force.
fn again(phase: Phase, wanted: bool) -> State {
    State {
        ruled: true,
        ..state(phase, wanted, false)
    }
}

/// The phases that a state passes through, given these events.
fn path(mut from: State, events: &[Event]) -> Vec<Phase> {
    let step = |&event: &Event| {
        from = next(from, event);
        from.phase
    };
    events.iter().map(step).collect()
}

#[test]
fn a_report_of_a_sandbox_that_is_gone_is_taken_back_at_rest_and_overwritten_in_the_mesh() {
    let taken_back = path(begin(false, false), &[ReportStale, Done, Done, Done, Done]);
    assert_eq!(
        taken_back,
        [Unreporting, Acknowledging, Draining, Removing, Out]
    );
    for phase in ALL.into_iter().filter(|phase| *phase != Out) {
        let state = state(phase, true, true);
        assert_eq!(next(state, ReportStale), state, "{phase:?}");
    }
}

#[test]
fn joining_and_leaving_go_through_the_documented_order() {
    let joined = path(begin(false, false), &[Wanted(true), Done, Done, Done, Done]);
    assert_eq!(joined, [Listening, Offering, Redirecting, Reporting, In]);
    let left = path(
        state(In, true, true),
        &[Wanted(false), Done, Done, Done, Done, Done],
    );
    assert_eq!(
        left,
        [
            Releasing,
            Unreporting,
            Acknowledging,
            Draining,
            Removing,
            Out
        ]
    );
}

#[test]
fn an_agent_that_starts_takes_up_what_it_finds() {
    for (found, wanted, phase) in [
        (false, false, Out),
        (false, true, Listening),
        (true, true, Listening),
        // It leaves, but in order.
        (true, false, Listening),
    ] {
        assert_eq!(
            begin(found, wanted).phase,
            phase,
            "found {found}, wanted {wanted}"
        );
    }
    let left = path(begin(true, false), &[Done, Done, Done, Done, Done, Done]);
    assert_eq!(
        left,
        [
            Releasing,
            Unreporting,
            Acknowledging,
            Draining,
            Removing,
            Out
        ]
    );
}

#[test]
fn single_steps_are_as_tabled() {
    let cases = [
        // A label that changes while something is on its way.
        (state(Offering, true, false), Wanted(false), Removing),
        (state(Offering, true, true), Wanted(false), Releasing),
        (state(Listening, true, false), Wanted(false), Listening),
        (state(Listening, false, false), Done, Removing),
        (state(Listening, false, true), Done, Releasing),
        (state(Redirecting, true, false), Wanted(false), Redirecting),
        (state(Redirecting, false, false), Done, Releasing),
        (state(Redirecting, false, true), Done, Releasing),
        (state(Redirecting, false, false), Failed, Removing),
        (state(Reporting, true, true), Wanted(false), Releasing),
        (state(Unreporting, false, true), Wanted(true), Listening),
        (state(Acknowledging, false, true), Wanted(true), Listening),
        (state(Releasing, false, true), Wanted(true), Releasing),
        (state(Releasing, true, true), Done, Listening),
        (state(Releasing, false, true), Done, Unreporting),
        // It was redirected, and given up before it was reported.
        (again(Releasing, false), Done, Draining),
        (state(Draining, false, false), Wanted(true), Listening),
        // It joins again while connections are open, and then does not: they are drained.
        (again(Listening, false), Done, Draining),
        (again(Offering, true), Wanted(false), Draining),
        (again(Redirecting, false), Failed, Draining),
        (again(Redirecting, true), Done, Reporting),
        (state(Removing, true, false), Done, Listening),
        // Somebody took the annotation away: it is written again, but not while leaving.
        (state(In, true, true), ReportLost, Reporting),
        (state(Unreporting, false, true), ReportLost, Unreporting),
        (state(Draining, false, false), ReportLost, Draining),
        (state(Out, false, false), ReportLost, Out),
        // What fails is tried again.
        (state(Listening, true, false), Failed, Listening),
        (state(Offering, true, false), Failed, Offering),
        (state(Redirecting, true, false), Failed, Redirecting),
        (state(Reporting, true, true), Failed, Reporting),
        (state(Unreporting, false, true), Failed, Unreporting),
        (state(Releasing, false, true), Failed, Releasing),
        (state(Removing, false, false), Failed, Removing),
        // Nothing changes.
        (state(In, true, true), Wanted(true), In),
        (state(Out, false, false), Wanted(false), Out),
    ];
    for (from, event, expected) in cases {
        assert_eq!(next(from, event).phase, expected, "{from:?} {event:?}");
    }
}

#[test]
fn a_deleted_sandbox_is_removed_from_any_phase_and_never_comes_back() {
    for phase in ALL {
        let mut at = next(state(phase, true, true), Deleted);
        at = next(at, Wanted(true));
        if !at.phase.is_interruptible() && at.phase != Removing {
            at = next(at, Done);
        }
        if phase != Gone {
            assert_eq!(at.phase, Removing, "{phase:?}");
        }
        for event in [Failed, Done] {
            assert_eq!(next(at, event).phase, Gone, "{phase:?}");
        }
    }
}

fn reachable() -> HashSet<State> {
    let mut seen = HashSet::new();
    let mut todo: Vec<_> = [(false, false), (false, true), (true, false), (true, true)]
        .map(|(f, w)| begin(f, w))
        .into();
    while let Some(at) = todo.pop() {
        if seen.insert(at) {
            todo.extend([Wanted(true), Wanted(false), Deleted, Done, Failed].map(|e| next(at, e)));
        }
    }
    seen
}

#[test]
fn rules_are_removed_only_after_the_report_was_taken_back_and_connections_drained() {
    for from in reachable() {
        for event in [Wanted(true), Wanted(false), Done, Failed] {
            let to = next(from, event);
            if to.phase == Removing && from.phase != Removing && !to.deleted {
                assert!(!from.redirected, "{from:?} {event:?}");
                assert!(!from.ruled || from.phase == Draining, "{from:?} {event:?}");
            }
            if to.phase == Removing && from.phase != Removing && !to.deleted {
                assert!(!from.reported, "{from:?} {event:?}");
            }
            if to.phase == Draining && from.phase != Draining {
                assert!(!to.reported && !to.redirected, "{from:?} {event:?}");
            }
            if to.phase == Unreporting && from.phase != Unreporting {
                assert!(!to.redirected, "{from:?} {event:?}");
            }
            if to.phase == Redirecting && from.phase != Redirecting {
                assert_eq!(from.phase, Offering);
            }
            if to.phase == Reporting && from.phase != Reporting {
                assert_eq!(from.phase, Redirecting);
            }
        }
    }
}

#[test]
fn every_state_comes_to_rest_where_it_is_wanted_when_all_work_succeeds() {
    for from in reachable() {
        let mut at = from;
        for _ in 0..20 {
            if !matches!(at.phase, Out | In | Gone) {
                at = next(at, Done);
            }
        }
        let expected = match (at.deleted, at.wanted) {
            (true, _) => Gone,
            (false, true) => In,
            (false, false) => Out,
        };
        assert_eq!(at.phase, expected, "from {from:?}");
    }
}
