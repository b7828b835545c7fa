"""The command line: what it makes, and what it says of what can't be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.load.options import parse, percent, seconds

URL = ["--url", "ws://127.0.0.1:8080"]


@pytest.mark.parametrize(("text", "value"), [("30", 30), ("500ms", 0.5), ("2.5m", 150), ("1h", 3600), (".5s", 0.5)])
def test_times(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("50", 0.5), ("50%", 0.5), ("0", 0), ("100%", 1), ("0.1", 0.001)])
def test_percentages(text: str, value: float) -> None:
    assert percent(text) == pytest.approx(value)


def test_a_run_is_bounded_by_default() -> None:
    options = parse(URL)
    assert (options.plan.connections, options.plan.duration_s, options.plan.drain_s) == (50, 30, 30)
    assert (options.limits.max_error_rate, options.limits.max_gaps, options.limits.min_connected) == (0.01, 0, 0.99)
    assert options.limits.max_p99_ms is None


def test_the_fields_of_a_message() -> None:
    plan = parse([*URL, "--model", "small", "--prompt", "a", "--prompt", "b"]).plan
    assert (plan.fields, plan.prompts) == ({"model": "small"}, ["a", "b"])


def test_tokens_from_the_environment_and_from_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    assert parse([*URL, "--token", "env:MY_TOKEN"]).plan.tokens == ["secret"]
    file = tmp_path / "tokens"
    file.write_text("one\n\ntwo\n")
    assert parse([*URL, "--token-file", str(file)]).plan.tokens == ["one", "two"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--url"),
        (["--url", "ftp://x"], "isn't the address of a gateway"),
        ([*URL, "--duration", "soon"], "isn't a time like 30, 500ms, 5m or 1h"),
        ([*URL, "--duration", "0"], "--duration has to be more than 0"),
        ([*URL, "--storm-percent", "120"], "isn't a percentage from 0 to 100"),
        ([*URL, "--connections", "0"], "isn't a whole number of at least 1"),
        ([*URL, "--connections", "many"], "isn't a whole number of at least 1"),
        ([*URL, "--rate", "5", "--in-flight", "3"], "either --rate"),
        ([*URL, "--processes", "3", "--connections", "2"], "more --processes than --connections"),
        ([*URL, "--token", "env:NOT_THERE"], "the environment has no NOT_THERE"),
        ([*URL, "--prompts", "/no/such/file"], "/no/such/file"),
        ([*URL, "--transport", "sse", "--token-frame"], "--token-frame is for WebSockets"),
        ([*URL, "--dur", "5"], "unrecognized arguments"),
    ],
)
def test_what_cant_be_right(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
