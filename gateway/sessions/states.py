"""The life of a turn, as a table (SPEC.md section 10).

A turn begins when its `message` is in the log and ends with exactly one `done` or `error`. Between them it is
always in one of these states; an event that has no row for a state is a bug of ours, never of a peer.

    QUEUED -> PREPARING -> REQUESTED -> STREAMING -> COMPLETED
                 ^             |            |
                 +-- WAITING <-+------------+         any open state -> CANCELLED, FAILED or HANDED_OVER

HANDED_OVER ends our part and not the turn: it stays open in the log for the next owner.
"""

from __future__ import annotations

from enum import Enum, auto


class State(Enum):
    QUEUED = auto()
    """In the log, behind another turn."""
    PREPARING = auto()
    """Its context is being put together."""
    REQUESTED = auto()
    """The model was asked; nothing came yet."""
    STREAMING = auto()
    WAITING = auto()
    """Function calls are open."""
    COMPLETED = auto()
    CANCELLED = auto()
    FAILED = auto()
    HANDED_OVER = auto()

    @property
    def over(self) -> bool:
        return self in _OVER


class Event(Enum):
    START = auto()
    PREPARED = auto()
    OUTPUT = auto()
    """Text, or a piece of a call."""
    RETRY = auto()
    """The model call failed before its first output, and is tried again."""
    CALLS = auto()
    """The model wants functions called."""
    ANSWERED = auto()
    """The last open call has its result."""
    REPEAT = auto()
    """Its calls can't be understood: it is asked once more."""
    FINISH = auto()
    CANCEL = auto()
    FAIL = auto()
    HAND_OVER = auto()


_OVER = frozenset({State.COMPLETED, State.CANCELLED, State.FAILED, State.HANDED_OVER})
_ANY_TIME = {Event.CANCEL: State.CANCELLED, Event.FAIL: State.FAILED, Event.HAND_OVER: State.HANDED_OVER}

TRANSITIONS: dict[State, dict[Event, State]] = {
    State.QUEUED: {Event.START: State.PREPARING, **_ANY_TIME},
    State.PREPARING: {Event.PREPARED: State.REQUESTED, **_ANY_TIME},
    State.REQUESTED: {
        Event.OUTPUT: State.STREAMING,
        Event.RETRY: State.REQUESTED,
        Event.FINISH: State.COMPLETED,
        **_ANY_TIME,
    },
    State.STREAMING: {
        Event.OUTPUT: State.STREAMING,
        Event.CALLS: State.WAITING,
        Event.REPEAT: State.PREPARING,
        Event.FINISH: State.COMPLETED,
        **_ANY_TIME,
    },
    State.WAITING: {Event.ANSWERED: State.PREPARING, **_ANY_TIME},
    **{state: {} for state in _OVER},
}


class IllegalTransition(AssertionError):
    """A row is missing in the table, or the engine did something it must not."""


def after(state: State, event: Event) -> State:
    """The state that follows. Raises `IllegalTransition`."""
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(f"{event.name} in state {state.name}") from None
