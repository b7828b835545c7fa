"""The table of a turn's life, whole."""

from __future__ import annotations

import pytest

from gateway.sessions.states import TRANSITIONS, Event, IllegalTransition, State, after

OPEN = [state for state in State if not state.over]
ENDS = {State.COMPLETED, State.CANCELLED, State.FAILED, State.HANDED_OVER}
ALLOWED = {
    (State.QUEUED, Event.START): State.PREPARING,
    (State.PREPARING, Event.PREPARED): State.REQUESTED,
    (State.REQUESTED, Event.OUTPUT): State.STREAMING,
    (State.REQUESTED, Event.RETRY): State.REQUESTED,
    (State.REQUESTED, Event.FINISH): State.COMPLETED,
    (State.STREAMING, Event.OUTPUT): State.STREAMING,
    (State.STREAMING, Event.CALLS): State.WAITING,
    (State.STREAMING, Event.REPEAT): State.PREPARING,
    (State.STREAMING, Event.FINISH): State.COMPLETED,
    (State.WAITING, Event.ANSWERED): State.PREPARING,
    **{(state, Event.CANCEL): State.CANCELLED for state in OPEN},
    **{(state, Event.FAIL): State.FAILED for state in OPEN},
    **{(state, Event.HAND_OVER): State.HANDED_OVER for state in OPEN},
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_every_cell(state: State, event: Event) -> None:
    if (state, event) in ALLOWED:
        assert after(state, event) is ALLOWED[state, event]
    else:
        with pytest.raises(IllegalTransition, match=f"{event.name} in state {state.name}"):
            after(state, event)


def test_the_ends_are_ends_and_every_state_has_a_row() -> None:
    assert {state for state in State if state.over} == ENDS
    assert set(TRANSITIONS) == set(State)
