"""The table of a channel's life, without a socket: what it posts, and who gets what."""

from __future__ import annotations

import pytest

from protocol.client.channel import FULL_BYTES, Channel, Link
from protocol.client.consumers import Subscription, Turn
from protocol.client.errors import AlreadySent, RequestError
from protocol.client.state import Position
from protocol.frames import (
    AnyClientFrame,
    Cancelled,
    ChatMessage,
    Deleted,
    Done,
    FoldedMessage,
    Message,
    Metadata,
    Snapshot,
    Subscribe,
    Subscribed,
    Token,
    Unsubscribe,
    Unsubscribed,
)

AT = Metadata(timestamp=1)


class World:
    """A channel, and everything that it has posted."""

    def __init__(self) -> None:
        self.posted: list[AnyClientFrame] = []
        self.channel = Channel("c", self._post)
        self.channel.connected()

    def _post(self, frame: AnyClientFrame) -> str:
        self.posted.append(frame)
        return str(len(self.posted))

    def send(self, message_id: str = "m1") -> Turn:
        async def cancel(conversation_id: str, turn_id: str | None) -> Cancelled:
            raise NotImplementedError

        turn = Turn(ChatMessage(message="?", conversation_id="c", message_id=message_id), self.channel.drop, cancel)
        self.channel.send(turn)
        return turn

    def subscribe(self, after: int | None = 0) -> Subscription:
        subscription = Subscription("c", self.channel.drop, self.channel.drained)
        self.channel.subscribe(subscription, after, 0)
        return subscription

    def answer(self) -> None:
        """The gateway answers the last frame."""
        ref, last = str(len(self.posted)), self.posted[-1]
        if isinstance(last, Subscribe):
            self.channel.subscribed(
                Subscribed(conversation_id="c", after=last.after or 0, head=0, epoch=last.epoch, ref=ref)
            )
        else:
            self.channel.unsubscribed(Unsubscribed(conversation_id="c", ref=ref))

    def entry(self, entry: Message | Token | Done) -> bool:
        return self.channel.entry(entry, 100)

    def kinds(self) -> list[str]:
        return [type(frame).__name__ for frame in self.posted]


def message(seq: int, message_id: str = "m1", turn: str = "t1", *, duplicate: bool = False) -> Message:
    return Message(
        conversation_id="c",
        turn_id=turn,
        seq=seq,
        metadata=AT,
        content="?",
        message_id=message_id,
        duplicate=duplicate,
    )


def token(seq: int, content: str = "x", turn: str = "t1") -> Token:
    return Token(conversation_id="c", turn_id=turn, seq=seq, metadata=AT, content=content)


def done(seq: int, length: int = 0, turn: str = "t1") -> Done:
    return Done(
        conversation_id="c", turn_id=turn, seq=seq, metadata=AT, finish_reason="stop", usage=None, text_length=length
    )


def paused() -> tuple[World, Subscription]:
    world = World()
    subscription = world.subscribe()
    world.answer()
    world.entry(token(1, "x" * FULL_BYTES, "other"))
    assert world.channel.link is Link.PAUSED
    return world, subscription


async def test_the_life_of_one_turn() -> None:
    world = World()
    turn = world.send()
    assert (world.channel.link, world.channel.over) == (Link.IDLE, False)
    assert not world.entry(token(4, turn="stray"))
    assert world.entry(message(7))
    assert (world.channel.link, turn.turn_id, world.channel.reader.cursor) == (Link.FOLLOWING, "t1", Position(7, 0))
    assert world.entry(done(8))
    assert (world.channel.link, world.kinds()) == (Link.LEAVING, ["ChatMessage", "Unsubscribe"])
    assert not world.entry(token(9))
    world.channel.unsubscribed(Unsubscribed(conversation_id="c", ref="an earlier one"))
    assert world.channel.link is Link.LEAVING
    world.answer()
    assert world.channel.over


async def test_a_paused_channel_comes_back_with_its_cursor_when_there_is_room() -> None:
    world, subscription = paused()
    assert not world.entry(token(2, turn="other"))
    assert world.channel.reader.cursor == Position(1, 0)
    await anext(subscription)
    assert (world.channel.link, world.posted[-1]) == (Link.OPENING, Subscribe(conversation_id="c", after=1))
    world.answer()
    assert world.entry(token(2, turn="other"))


async def test_a_message_sent_while_paused_is_acknowledged_and_read_later() -> None:
    world, subscription = paused()
    turn = world.send()
    # Sending has subscribed the connection anew; there is still no room.
    assert not world.entry(message(5))
    assert (turn.acknowledged.is_set(), turn.turn_id, turn.text) == (True, "t1", "")
    assert (world.channel.link, world.kinds()[-1]) == (Link.PAUSED, "Unsubscribe")
    await anext(subscription)
    world.answer()
    for entry in (token(2, turn="other"), token(3, turn="other"), done(4, 0, "other"), message(5), done(6)):
        assert world.entry(entry)
    assert [getattr(frame, "seq", 0) async for frame in turn] == [5, 6]


async def test_a_cut_while_paused_changes_nothing_until_there_is_room() -> None:
    world, subscription = paused()
    world.channel.disconnected()
    world.channel.connected()
    assert (world.channel.link, world.kinds()) == (Link.PAUSED, ["Subscribe", "Unsubscribe"])
    world.channel.disconnected()
    await anext(subscription)
    assert world.channel.link is Link.IDLE
    world.channel.connected()
    assert world.posted[-1] == Subscribe(conversation_id="c", after=1)


async def test_giving_up_the_full_subscription_lets_a_turn_go_on() -> None:
    world, subscription = paused()
    world.send()
    world.entry(message(5))
    subscription.close()
    assert (world.channel.link, world.posted[-1]) == (Link.OPENING, Subscribe(conversation_id="c", after=1))


async def test_without_a_connection_leaving_is_forgetting() -> None:
    world = World()
    world.channel.disconnected()
    turn = world.send()
    turn.close()
    assert world.channel.over
    assert [frame async for frame in turn] == []


async def test_a_subscription_to_the_head_that_was_not_answered_is_asked_for_again() -> None:
    world = World()
    subscription = world.subscribe(None)
    world.channel.disconnected()
    world.channel.connected()
    assert world.posted == [Subscribe(conversation_id="c")] * 2
    world.channel.subscribed(Subscribed(conversation_id="c", after=9, head=9, epoch=4, ref="2"))
    assert (subscription.ready.is_set(), world.channel.reader.cursor) == (True, Position(9, 4))


async def test_a_subscription_joins_a_turn_where_it_is() -> None:
    world = World()
    world.send()
    world.entry(message(3))
    subscription = world.subscribe(None)
    assert (subscription.ready.is_set(), world.kinds()) == (True, ["ChatMessage"])
    world.entry(done(4))
    assert isinstance(await anext(subscription), Done)
    again = world.subscribe(None)
    assert again.ready.is_set()
    assert subscription.inbox.ended.is_set()


async def test_deletion_ends_what_was_heard_and_keeps_what_is_on_its_way() -> None:
    world = World()
    heard = world.send("m1")
    world.entry(message(1))
    subscription = world.subscribe(None)
    under_way = world.send("m2")
    world.channel.deleted(Deleted(conversation_id="c"), 50)
    assert [type(frame) async for frame in heard] == [Message, Deleted]
    assert [type(frame) async for frame in subscription] == [Deleted]
    assert (heard.finish_reason, await heard.wait()) == ("cancelled", "")
    assert world.entry(message(1, "m2", "t2"))
    assert world.entry(done(2, 0, "t2"))
    assert await under_way.wait() == ""


async def test_a_snapshot_acknowledges_a_message_that_it_knows() -> None:
    world = World()
    subscription = world.subscribe(0)
    world.answer()
    turn = world.send()
    line = FoldedMessage(role="user", content="?", turn_id="t5", status="queued", timestamp=1, message_id="m1")
    world.channel.snapshot(Snapshot(conversation_id="c", seq=8, epoch=2, messages=[line], turn=None), 100)
    assert (turn.turn_id, turn.text, world.kinds()) == ("t5", "", ["Subscribe", "ChatMessage"])
    assert isinstance(await anext(subscription), Snapshot)


async def test_a_copy_joins_a_turn_that_is_open_and_tells_of_one_that_is_over() -> None:
    world = World()
    subscription = world.subscribe(0)
    world.answer()
    for entry in (message(1), token(2, "so far")):
        world.entry(entry)
    turn = world.send("m1")
    world.entry(message(1, duplicate=True))
    assert (turn.turn_id, turn.text) == ("t1", "so far")
    world.entry(done(3, 6))
    assert await turn.wait() == "so far"
    late = world.send("m1")
    world.entry(message(1, duplicate=True))
    assert late.acknowledged.is_set()
    with pytest.raises(AlreadySent):
        await late.wait()
    assert not subscription.inbox.ended.is_set()


@pytest.mark.parametrize("retryable", [True, False])
async def test_a_refused_resumption_is_worth_another_try_if_the_gateway_says_so(retryable: bool) -> None:
    world = World()
    turn = world.send()
    world.entry(message(1))
    world.channel.disconnected()
    world.channel.connected()
    again = world.channel.refused(str(len(world.posted)), RequestError("OVERLOADED", "Later.", retryable))
    assert again is retryable
    if retryable:
        world.channel.retry()
        assert world.posted[-1] == Subscribe(conversation_id="c", after=1)
    else:
        with pytest.raises(RequestError):
            await turn.wait()
        assert world.posted[-1] == Unsubscribe(conversation_id="c")
