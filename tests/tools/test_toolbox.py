"""What a toolbox says of its tools, and that nothing but `ToolFailed` comes out of it."""

from __future__ import annotations

from typing import Any

import pytest

from gateway.settings import HttpTool, SettingsError, Tools
from gateway.tools import toolbox as module
from gateway.tools.failure import ToolFailed
from gateway.tools.toolbox import Toolbox, make_toolbox


def tool(**given: Any) -> HttpTool:
    return HttpTool.model_validate({"description": "What it does", "url": "http://127.0.0.1:9/"} | given)


def test_what_is_declared() -> None:
    parameters = {"type": "object", "properties": {"q": {"type": "string"}}}
    box = make_toolbox(
        Tools(http={"ask": tool(approval=True), "do": tool(idempotent=True, parameters=parameters), "plain": tool()})
    )
    assert [
        (spec.function.name, box.runs(spec.function.name), box.idempotent(spec.function.name)) for spec in box.specs
    ] == [
        ("ask", "approval", False),
        ("do", "gateway", True),
        ("plain", "gateway", False),
    ]
    assert box.specs[1].function.parameters == parameters
    assert box.specs[1].function.description == "What it does"
    assert (box.runs("theirs"), box.idempotent("theirs")) == ("client", False)


def test_no_tools_at_all() -> None:
    assert list(make_toolbox(Tools()).specs) == []


@pytest.mark.parametrize("name", ["theirs", "x" * 5000])
async def test_a_tool_that_is_not_ours(name: str) -> None:
    box = Toolbox(Tools())
    await box.open()
    with pytest.raises(ToolFailed, match=r"^there is no tool `"):
        await box.run(name, {}, call_id="c")
    await box.close()


async def test_closed() -> None:
    box = Toolbox(Tools(http={"t": tool()}))
    with pytest.raises(ToolFailed, match=r"^there is no tool `t` here$"):
        await box.run("t", {}, call_id="c")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (ValueError("secret"), "the tool failed; the gateway's log says why"),
        (ExceptionGroup("g", [OSError("secret")]), "the tool failed; the gateway's log says why"),
        (TimeoutError(), "the tool took longer than 30 s"),
        ({1, 2}, "the tool answered with something that can't be written as JSON"),
        (2**70, "the tool answered with something that can't be written as JSON"),
        ("\ud800", "the tool answered with something that can't be written as JSON"),
        ("x" * 65_535, "the result has 65537 bytes of JSON, more than the 65536 that it may have"),
    ],
)
async def test_everything_that_goes_wrong_is_tool_failed(
    given: Any, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def endpoint(*_: Any) -> Any:
        if isinstance(given, Exception):
            raise given
        return given

    monkeypatch.setattr(module, "call_endpoint", endpoint)
    box = Toolbox(Tools(http={"t": tool()}))
    await box.open()
    with pytest.raises(ToolFailed) as failed:
        await box.run("t", {}, call_id="c")
    await box.close()
    assert str(failed.value) == message
    assert failed.value.__cause__ is None
    capsys.readouterr()


async def test_the_largest_result(monkeypatch: pytest.MonkeyPatch) -> None:
    async def endpoint(*_: Any) -> Any:
        return "x" * 65_534

    monkeypatch.setattr(module, "call_endpoint", endpoint)
    box = Toolbox(Tools(http={"t": tool()}))
    await box.open()
    assert len(await box.run("t", {}, call_id="c")) == 65_534
    await box.close()


def test_parameters_that_would_take_forever_stop_the_start() -> None:
    step = {"properties": {"a": {"$ref": "#"}}}
    with pytest.raises(SettingsError, match=r"^`tools\.t\.parameters` can't be used: would check the same value too"):
        make_toolbox(Tools(http={"t": tool(parameters={"type": "object", "allOf": [step, step]})}))
