"""The playground in a real browser against a real gateway with the demo model."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from aiohttp.test_utils import TestServer
from playwright.async_api import Browser, async_playwright, expect

from tests.e2e.browser import ANSWER_WITHIN_MS, CHROMIUM_FLAGS, Playground, running_gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "Explain quantum computing"
SHORT = "/long 40"
LONG = "/long 120"
# Long enough to still run after everything that a test does meanwhile; such a turn is stopped, not awaited.
ENDLESS = "/long 20000"
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'

# Counts the different texts that were on the screen, once per animation frame.
WATCH_PAINTS = """() => {
  window.paints = new Set();
  const look = () => {
    window.paints.add(document.querySelector(".answer-parts")?.textContent.length ?? 0);
    requestAnimationFrame(look);
  };
  look();
}"""


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_gateway(tmp_path_factory.mktemp("gateway") / "gateway.log") as url:
        yield url


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium_path: Path) -> AsyncIterator[Browser]:
    """One browser for the whole module: to start it takes longer than most of these tests."""
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=chromium_path, args=list(CHROMIUM_FLAGS))
        yield started
        await started.close()


@pytest_asyncio.fixture(loop_scope="module")
async def playground(browser: Browser, base_url: str) -> AsyncIterator[Playground]:
    """The page in the first tab of a new user, who remembers nothing; the console must stay clean."""
    user = await browser.new_context()
    opened = await Playground(await user.new_page(), base_url).open()
    yield opened
    await user.close()
    assert opened.problems == []


async def history(playground: Playground) -> dict[str, Any]:
    url = f"{playground.base_url}/api/conversations/{await playground.conversation_id()}"
    answer = await playground.page.request.get(url)
    return dict(json.loads(await answer.body()))


async def test_an_answer_streams_and_is_proved_whole(playground: Playground) -> None:
    await expect(playground.page.locator("#welcome")).to_be_visible()
    await playground.page.evaluate(WATCH_PAINTS)
    await playground.say(PROMPT)
    turn = await playground.ended()
    assert await playground.page.evaluate("window.paints.size") > 3
    stored = (await history(playground))["messages"]
    assert [message["role"] for message in stored] == ["user", "assistant"]
    await expect(turn.locator(".proof")).to_have_text(f"✓ {len(stored[1]['content']):,} characters")
    await expect(playground.row(await playground.conversation_id())).to_have_attribute("data-state", "idle")
    await expect(playground.page.locator("#stop")).to_be_hidden()


async def test_text_outside_the_basic_plane_is_counted_in_code_points(playground: Playground) -> None:
    await playground.say("/echo Grüße, 世界 👩‍🚀 𝒳!")
    turn = await playground.ended()
    assert "Grüße, 世界 👩‍🚀 𝒳!" in await turn.locator(".answer-parts").inner_text()


async def test_model_text_never_becomes_markup(playground: Playground) -> None:
    await playground.say(f"/echo {HOSTILE} [x](javascript:hit) **b**")
    turn = await playground.ended()
    await expect(turn.locator("img, script, .md a")).to_have_count(0)
    await expect(turn.locator(".md strong")).to_have_text("b")
    assert HOSTILE in await playground.text()
    assert await playground.page.evaluate("window.hit === undefined")


async def test_two_conversations_stream_at_once_on_one_socket(playground: Playground) -> None:
    await playground.say(LONG)
    first = await playground.conversation_id()
    await playground.first_text()
    await playground.new_conversation()
    await playground.say(LONG)
    second = await playground.conversation_id()
    await playground.ended()
    await playground.row(first).locator(".open").click()
    await expect(playground.page.locator(".turn")).to_have_count(1)
    await playground.ended()

    order = [frame["conversation_id"] for frame in playground.received if frame["type"] == "token"]
    assert set(order) == {first, second}
    switches = sum(a != b for a, b in itertools.pairwise(order))
    assert switches > 2, "the two answers came one after the other"
    assert len(playground.sockets) == 1


async def test_an_unseen_answer_is_marked_new_until_it_is_opened(playground: Playground) -> None:
    await playground.say(LONG)
    first = await playground.conversation_id()
    await playground.first_text()
    await playground.new_conversation()
    row = playground.row(first)
    await expect(row).to_have_attribute("data-unread", "true")
    await expect(row).to_have_attribute("data-state", "idle", timeout=ANSWER_WITHIN_MS)
    await row.locator(".open").click()
    await expect(row).to_have_attribute("data-unread", "false")


async def test_stop_ends_the_turn_where_it_is(playground: Playground) -> None:
    await playground.say(ENDLESS)
    await playground.first_text()
    await playground.page.click("#stop")
    turn = await playground.ended("cancelled")
    await expect(turn.locator(".reason")).to_have_text("stopped")
    await expect(playground.page.locator("#stop")).to_be_hidden()


async def test_a_message_that_waits_can_be_withdrawn(playground: Playground) -> None:
    await playground.say(ENDLESS)
    await playground.first_text()
    await playground.say("and then?")
    waiting = playground.page.locator(".turn[data-status=queued]")
    await expect(waiting).to_have_count(1)
    await waiting.get_by_role("button", name="Withdraw").click()
    await playground.ended("cancelled", index=1)
    await expect(playground.turn(0)).to_have_attribute("data-status", "running")
    await playground.page.click("#stop")
    await playground.ended("cancelled", index=0)


async def test_interrupt_ends_the_turn_and_reject_is_refused(playground: Playground) -> None:
    await playground.say(ENDLESS)
    await playground.first_text()
    await playground.page.select_option("#on-busy", "reject")
    await playground.say("not now")
    await expect(playground.page.locator(".turn.pending .bad")).to_contain_text("BUSY")
    await playground.page.get_by_role("button", name="Discard").click()
    await expect(playground.page.locator(".turn.pending")).to_have_count(0)
    await playground.page.select_option("#on-busy", "interrupt")
    await playground.say("/echo now")
    await playground.ended("cancelled", index=0)
    await playground.ended("completed", index=1)


async def test_a_cut_in_mid_stream_resumes_to_the_whole_text(playground: Playground) -> None:
    await playground.say(LONG)
    for number in (2, 3):
        await playground.first_text()
        await playground.page.click("#cut")
        # Not what lies between: the page may be back sooner than anybody looks.
        nth = re.compile(f", connection {number} of this page$")
        await expect(playground.page.locator("#status")).to_have_attribute("title", nth)
        await playground.connected()
    await playground.ended()
    assert len(playground.sockets) == 3
    resumed = [frame for frame in playground.sent if frame["type"] == "subscribe" and frame["after"] > 0]
    assert len(resumed) == 2
    await expect(playground.page.locator("#count-order")).to_have_text("✓")
    assert len([frame for frame in playground.sent if frame["type"] == "chat_message"]) == 1


async def test_a_message_written_without_a_connection_is_sent_when_it_is_back(playground: Playground) -> None:
    await playground.page.context.set_offline(True)
    await expect(playground.page.locator("#status")).to_have_attribute("data-state", "offline")
    await playground.say("/echo later")
    await expect(playground.page.locator(".turn.pending")).to_have_count(1)
    await playground.page.context.set_offline(False)
    turn = await playground.ended()
    await expect(turn.locator(".question-text")).to_have_text("/echo later")
    await expect(playground.page.locator(".turn")).to_have_count(1)


async def test_a_reload_restores_the_history(playground: Playground) -> None:
    await playground.say(SHORT)
    await playground.ended()
    before = await playground.text()
    conversation_id = await playground.conversation_id()
    await playground.page.goto("about:blank")
    await playground.open()
    assert await playground.conversation_id() == conversation_id
    await expect(playground.turn()).to_have_attribute("data-status", "completed")
    assert await playground.text() == before


async def test_a_reload_in_mid_stream_goes_on_with_the_turn(playground: Playground) -> None:
    await playground.say(LONG)
    await playground.first_text()
    await playground.page.reload()
    await playground.connected()
    await playground.ended()
    await expect(playground.page.locator(".turn")).to_have_count(1)
    assert len([frame for frame in playground.sent if frame["type"] == "chat_message"]) == 1


async def test_a_second_tab_sees_the_same_turn_live(playground: Playground) -> None:
    await playground.say(LONG)
    await playground.first_text()
    page = await playground.page.context.new_page()
    other = await Playground(page, playground.base_url).open(await playground.conversation_id())
    await other.first_text()
    await expect(other.turn()).to_have_attribute("data-status", "running")
    await playground.ended()
    await other.ended()
    assert await other.text() == await playground.text()
    # Either tab can go on with it.
    await other.say("/echo from the other tab")
    await playground.ended(index=1)
    assert await playground.text(1) == await other.text(1)
    assert other.problems == []


async def test_a_function_call_is_answered_in_its_card(playground: Playground) -> None:
    await playground.say('/call get_weather {"city":"Oslo"}')
    card = playground.page.locator(".call")
    await expect(card).to_have_attribute("data-state", "open", timeout=ANSWER_WITHIN_MS)
    row = playground.row(await playground.conversation_id())
    await expect(row).to_have_attribute("data-state", "waiting")
    assert json.loads(await card.locator(".call-args").inner_text()) == {"city": "Oslo"}

    await card.locator("textarea").fill("not JSON")
    await card.get_by_role("button", name="Send result").click()
    await expect(card.locator(".problem")).to_contain_text("JSON")
    await card.locator("textarea").fill('{"temperature_c": -3}')
    await card.get_by_role("button", name="Send result").click()
    await expect(card).to_have_attribute("data-state", "answered")
    await playground.ended()
    assert json.loads(await card.locator(".call-outcome pre").inner_text()) == {"temperature_c": -3}
    await expect(row).to_have_attribute("data-state", "idle")


async def test_an_open_call_survives_a_reload(playground: Playground) -> None:
    await playground.say('/call get_weather {"city":"Oslo"}')
    card = playground.page.locator(".call[data-state=open]")
    await expect(card).to_have_count(1, timeout=ANSWER_WITHIN_MS)
    await playground.page.reload()
    await playground.connected()
    await expect(card).to_have_count(1)
    await card.get_by_role("button", name="Send as error").click()
    await expect(playground.page.locator(".call")).to_have_attribute("data-state", "error")
    await playground.ended()


PAY_TOOL = """
[tools.pay_invoice]
description = "Pays an invoice."
url = "{url}pay"
approval = true
"""


@pytest_asyncio.fixture(loop_scope="module")
async def shop(browser: Browser, tmp_path: Path) -> AsyncIterator[tuple[Playground, list[str]]]:
    """The page of a gateway with a tool that needs approval, and the paths that the tool was called with."""
    called: list[str] = []

    async def pay(request: web.Request) -> web.Response:
        called.append(request.path)
        return web.json_response({"paid": True})

    app = web.Application()
    app.router.add_get("/pay", pay)
    async with TestServer(app) as server:
        config = tmp_path / "convobase.toml"
        config.write_text(PAY_TOOL.format(url=server.make_url("/")))
        with running_gateway(tmp_path / "gateway.log", config) as url:
            user = await browser.new_context()
            opened = await Playground(await user.new_page(), url).open()
            yield opened, called
            await user.close()
            assert opened.problems == []


async def test_a_call_of_the_gateways_own_is_approved_or_declined(shop: tuple[Playground, list[str]]) -> None:
    playground, called = shop
    card = playground.page.locator(".call").last
    await playground.say("/call pay_invoice {}")
    await expect(card.locator(".call-state")).to_have_text("wants your approval", timeout=ANSWER_WITHIN_MS)
    await expect(card.locator("textarea")).to_have_count(0)
    await playground.page.reload()
    await playground.connected()
    assert called == []
    await card.get_by_role("button", name="Approve").click()
    await expect(card).to_have_attribute("data-state", "answered")
    await playground.ended()
    await expect(playground.page.locator(".call")).to_have_count(1)
    await expect(card.get_by_role("button")).to_have_count(0)
    assert json.loads(await card.locator(".call-outcome pre").inner_text()) == {"paid": True}

    await playground.say("/call pay_invoice {}")
    await card.get_by_role("button", name="Decline").click(timeout=ANSWER_WITHIN_MS)
    await expect(card).to_have_attribute("data-state", "error")
    await playground.ended()
    await expect(card.locator(".call-outcome pre")).to_contain_text("declined")
    assert called == ["/pay"]


async def test_a_failed_turn_says_why_and_can_be_asked_again(playground: Playground) -> None:
    await playground.say("/fail rate_limited")
    turn = await playground.ended("failed")
    await expect(turn.locator(".failure strong")).to_have_text("UPSTREAM_RATE_LIMITED")
    await expect(playground.row(await playground.conversation_id())).to_have_attribute("data-state", "failed")
    await turn.get_by_role("button", name="Ask again").click()
    await playground.ended("failed", index=1)


async def test_the_second_reader_over_sse_has_the_same_text(playground: Playground) -> None:
    await playground.say(SHORT)
    await playground.ended()
    await playground.page.click("#toggle-reader")
    await playground.say("/echo the next turn")
    await playground.ended(index=1)
    same = playground.page.locator("[data-verdict=same]")
    await expect(same).to_have_count(2, timeout=ANSWER_WITHIN_MS)
    assert "the next turn" in await same.nth(1).locator("pre").inner_text()


async def test_the_wire_shows_the_frames(playground: Playground) -> None:
    await playground.page.click("#toggle-wire")
    await playground.say("/echo hello")
    await playground.ended()
    frames = playground.page.locator(".frames li")
    await expect(frames.filter(has_text="chat_message")).to_have_count(1)
    done = playground.page.locator(".frames li[data-type=done]")
    await done.locator("summary").click()
    assert json.loads(await done.locator("pre").inner_text())["finish_reason"] == "stop"


async def test_deleting_asks_once_and_reaches_the_other_tab(playground: Playground) -> None:
    await playground.say("/echo gone soon")
    await playground.ended()
    conversation_id = await playground.conversation_id()
    other = await Playground(await playground.page.context.new_page(), playground.base_url).open(conversation_id)
    await expect(other.turn()).to_have_attribute("data-status", "completed")
    row = playground.row(conversation_id)
    await row.hover()
    await row.get_by_role("button", name="Delete").click()
    await row.get_by_role("button", name="Delete").click()
    await expect(row).to_have_count(0)
    await expect(other.row(conversation_id)).to_have_count(0)
    gone = await playground.page.request.get(f"{playground.base_url}/api/conversations/{conversation_id}")
    assert gone.status == 404


async def test_it_works_by_keyboard_at_phone_width(playground: Playground) -> None:
    page = playground.page
    await page.set_viewport_size({"width": 390, "height": 780})
    await expect(page.locator("#sidebar")).not_to_be_visible()
    await playground.say("/echo small")
    await playground.ended()
    await page.press("#message", "Alt+n")
    await expect(page.locator("#welcome")).to_be_visible()
    await page.keyboard.press("Alt+ArrowDown")
    await expect(page.locator(".turn")).to_have_count(1)
    await page.click("#open-sidebar")
    await expect(page.locator("#sidebar")).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(page.locator("#sidebar")).not_to_be_visible()
    assert await page.evaluate("document.documentElement.scrollWidth <= innerWidth")


# ---------------------------------------------------------------- the page's pure modules, in the browser

FOLD = """async (frames) => {
  const { Conversation } = await import("/playground/conversation.js");
  const fold = new Conversation("c");
  const outcomes = frames.map((frame) => frame.messages ? fold.load(frame) ?? "loaded" : fold.apply(frame));
  const turns = fold.turns.map(({ id, status, text, proof }) => [id, status, text, proof?.actual ?? null]);
  const calls = fold.turns.flatMap((turn) => turn.parts).filter((part) => part.kind === "call").length;
  return { outcomes, turns, calls, cursor: [fold.seq, fold.epoch], state: fold.state };
}"""


def message(seq: int, turn: str, **more: Any) -> dict[str, Any]:
    return {"type": "message", "seq": seq, "turn_id": turn, "content": "?", "message_id": f"m{seq}", **more}


def token(seq: int, turn: str, content: str, **more: Any) -> dict[str, Any]:
    return {"type": "token", "seq": seq, "turn_id": turn, "content": content, **more}


def done(seq: int, turn: str, text_length: int, reason: str = "stop") -> dict[str, Any]:
    return {"type": "done", "seq": seq, "turn_id": turn, "finish_reason": reason, "text_length": text_length}


def restart(seq: int, turn: str, keep_seq: int) -> dict[str, Any]:
    return {"type": "restart", "seq": seq, "turn_id": turn, "attempt": 2, "keep_seq": keep_seq, "epoch": 1700000000}


def call(seq: int, turn: str, runs: str = "client") -> dict[str, Any]:
    more = {"call_id": "k", "name": "f", "args": {}, "runs": runs, "round": 1}
    return {"type": "function_call", "seq": seq, "turn_id": turn, **more}


def result(seq: int, turn: str) -> dict[str, Any]:
    return {"type": "function_result", "seq": seq, "turn_id": turn, "call_id": "k", "name": "f", "result": None}


def folded(seq: int, text: str) -> dict[str, Any]:
    """What `GET /api/conversations/{id}` says in the middle of the first turn."""
    shared = {"turn_id": "t", "status": "running", "timestamp": 0}
    question = {"role": "user", "content": "?", "message_id": "m1", **shared}
    running = {"turn_id": "t", "status": "running", "message_id": "m1", "seq": 1}
    messages = [question, {"role": "assistant", "content": text, **shared}]
    return {"seq": seq, "epoch": 0, "messages": messages, "turn": running}


FOLDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "code points, merged frames": (
        [message(1, "t"), token(2, "t", "👩‍🚀"), token(5, "t", "é𝒳x", first_seq=3), done(6, "t", 6)],
        {"turns": [["t", "completed", "👩‍🚀é𝒳x", 6]], "cursor": [6, 0], "state": "idle"},
    ),
    "a gap and a repetition change nothing": (
        [message(1, "t"), token(3, "t", "lost"), token(2, "t", "a"), token(2, "t", "a"), token(3, "t", "b")],
        {"outcomes": ["applied", "gap", "applied", "gap", "applied"], "turns": [["t", "running", "ab", None]]},
    ),
    "a duplicate stands outside the order": (
        [message(1, "t"), token(2, "t", "a"), message(1, "t", duplicate=True), token(3, "t", "b")],
        {"outcomes": ["applied", "applied", "duplicate", "applied"], "turns": [["t", "running", "ab", None]]},
    ),
    "restart drops the text of the lost generation": (
        [message(1, "t"), token(3, "t", "ab", first_seq=2), restart(4, "t", 1), token(5, "t", "new"), done(6, "t", 3)],
        {"turns": [["t", "completed", "new", 3]], "cursor": [6, 0]},
    ),
    "restart keeps the rounds before it": (
        [
            message(1, "t"), token(2, "t", "kept "), call(3, "t"), result(4, "t"), token(6, "t", "lost", first_seq=5),
            restart(7, "t", 4), token(8, "t", "new"), done(9, "t", 8),
        ],
        {"turns": [["t", "completed", "kept new", 8]]},
    ),
    "restart behind a folded text": (
        [folded(4, "abc"), restart(5, "t", 1), token(6, "t", "new")],
        {"outcomes": ["loaded", "applied", "applied"], "turns": [["t", "running", "new", None]], "cursor": [6, 0]},
    ),
    "restart into a folded text asks for it again": (
        [folded(4, "abc"), restart(5, "t", 3)],
        {"outcomes": ["loaded", "stale"], "cursor": [5, 1700000000]},
    ),
    "a running turn goes on from its folded text": (
        [folded(4, "abc"), token(5, "t", "d"), done(6, "t", 4)],
        {"turns": [["t", "completed", "abcd", 4]]},
    ),
    "a missing character is noticed": (
        [message(1, "t"), token(2, "t", "ab"), done(3, "t", 3)],
        {"turns": [["t", "completed", "ab", 2]]},
    ),
    "an interrupting message goes first": (
        [
            message(1, "a"), message(2, "b"), message(3, "c", interrupt=True), done(4, "a", 0, "cancelled"),
            token(5, "c", "now"),
        ],
        {"turns": [["a", "cancelled", "", 0], ["c", "running", "now", None], ["b", "queued", "", None]]},
    ),
    "an open call waits": (
        [message(1, "t"), call(2, "t")],
        {"turns": [["t", "function_call", "", None]], "state": "waiting"},
    ),
    "the gateway's own call doesn't wait for people": (
        [message(1, "t"), call(2, "t", "gateway")],
        {"turns": [["t", "running", "", None]], "state": "streaming"},
    ),
    "an approved call is the same call": (
        [message(1, "t"), call(2, "t", "approval"), call(3, "t", "gateway"), result(4, "t"), done(5, "t", 0)],
        {"turns": [["t", "completed", "", 0]], "calls": 1, "state": "idle"},
    ),
    "an approval waits": (
        [message(1, "t"), call(2, "t", "approval")],
        {"turns": [["t", "function_call", "", None]], "state": "waiting"},
    ),
}  # fmt: skip


async def test_fold(playground: Playground) -> None:
    for case, (frames, expected) in FOLDS.items():
        found = await playground.page.evaluate(FOLD, frames)
        assert {key: found[key] for key in expected} == expected, case


MARKDOWN_GROWS = """async (text) => {
  const { MarkdownView } = await import("/playground/markdown.js");
  const growing = new MarkdownView();
  for (let end = 0; end <= text.length; end += 1) growing.update(text.slice(0, end));
  const whole = new MarkdownView();
  whole.update(text);
  return [growing.element.innerHTML, whole.element.innerHTML];
}"""

MARKDOWN = (
    "One *soft* and **strong** `code` line\nand **_both_**.\n\n## Head\n- a\n- b\n  - nested\n\n  more of b\n\n- c\n"
    "1. first\n2. second\n\n---\n> quoted\n> > twice\n\n| x | y |\n|---|---|\n| 1 | 2 |\n\n"
    "```python\nif a < b:\n    print('```')\n```\nafter\n\n~~~\nopen to the end <b>&amp;\n"
)


async def test_growing_markdown_ends_as_the_whole(playground: Playground) -> None:
    growing, whole = await playground.page.evaluate(MARKDOWN_GROWS, MARKDOWN)
    assert growing == whole
    for tag in ("em", "strong", "code", "h4", "ul", "ol", "hr", "blockquote", "table", "pre"):
        assert f"<{tag}" in whole
    assert "open to the end &lt;b&gt;&amp;amp;" in whole
