"""Settings: where they come from, what wins, and what the one line says when one is wrong."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import DEFAULT_UPSTREAM_MODEL, Settings, SettingsError, load_settings
from gateway.settings.table import settings_table

README = Path(__file__).parent.parent / "README.md"

# contract.md, "Command line and settings"; INSECURE is the flag of the same name. The contract allows more: `tools`
# came with function calls, MODEL_WINDOW, SYSTEM_PROMPT and CLIENT_SYSTEM with the context.
CONTRACT: dict[str, dict[str, Any]] = {
    "serving": {
        "host": "127.0.0.1",
        "port": 8080,
        "tls_cert": None,
        "tls_key": None,
        "workers": 1,
        "drain_s": 30,
        "handshake_timeout_s": 10,
        "write_deadline_s": 10,
        "heartbeat_s": 20,
        "log_level": "info",
        "log_format": "console",
        "insecure": False,
    },
    "log": {
        "log_url": "sqlite:convobase.db",
        "retention_s": 2592000,
        "max_queued": 16,
        "session_idle_s": 300,
        "batch_chars": 10,
        "batch_ms": 50,
    },
    "model": {
        "model": "demo",
        "summary_model": "demo",
        "embedding_model": None,
        "max_context_tokens": 8000,
        "model_window": 0,
        "max_tools": 16,
        "system_prompt": "",
        "client_system": "allow",
        "first_token_timeout_s": 60,
        "token_timeout_s": 30,
        "function_timeout_s": 300,
        "orphan_grace_s": -1,
        "openai_api_key": None,
        "openai_base_url": None,
    },
    "tools": {"tool_concurrency": 16, "http": {}, "mcp": {}},
    "who": {
        "auth": "none",
        "jwt_secret": None,
        "jwks_url": None,
        "jwt_issuer": None,
        "jwt_audience": None,
        "jwt_leeway_s": 10,
        "auth_timeout_s": 10,
        "allowed_origins": (),
    },
    "limits": {
        "max_frame_bytes": 65536,
        "max_connections": 10000,
        "max_connections_per_user": 50,
        "max_conversations_per_connection": 1000,
        "max_streams": 10000,
        "messages_per_minute": 0,
        "tokens_per_day": 0,
    },
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def the_line(**overrides: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(**overrides)
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith((".", "?"))
    return line


def test_defaults_are_the_contracts() -> None:
    assert {name: value.model_dump() for name, value in load_settings()._asdict().items()} == CONTRACT
    assert load_settings().log.url == "sqlite:convobase.db"


def test_a_tree_for_tests_needs_no_environment() -> None:
    assert Settings().serving == load_settings().serving


def test_it_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load_settings().serving.port = 1


def test_flags_win_over_environment_over_file_over_defaults(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "convobase.toml").write_text("PORT = 1\nbatch_ms = 1\nMAX_QUEUED = 1\n")
    monkeypatch.setenv("CONVOBASE_PORT", "2")
    monkeypatch.setenv("CONVOBASE_BATCH_MS", "2")
    settings = load_settings(port=3, host=None)
    assert (settings.serving.port, settings.log.batch_ms, settings.log.max_queued) == (3, 2, 1)
    assert settings.serving.host == "127.0.0.1"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONVOBASE_PORT", "CONVOBASE_MODEL", "OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "")
    assert load_settings().model.model == "demo"


def test_another_file(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_folder / "convobase.toml").write_text("port = 1")
    other = empty_folder / "other.toml"
    other.write_text("port = 2")
    monkeypatch.setenv("CONVOBASE_CONFIG", str(other))
    assert load_settings().serving.port == 2
    monkeypatch.setenv("CONVOBASE_CONFIG", "missing.toml")
    assert the_line() == "CONVOBASE_CONFIG: there is no file missing.toml."


@pytest.mark.parametrize(
    ("environment", "model", "summary"),
    [
        ({}, "demo", "demo"),
        ({"OPENAI_API_KEY": "k"}, DEFAULT_UPSTREAM_MODEL, DEFAULT_UPSTREAM_MODEL),
        ({"OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}, DEFAULT_UPSTREAM_MODEL, DEFAULT_UPSTREAM_MODEL),
        ({"OPENAI_API_KEY": "k", "CONVOBASE_MODEL": "demo"}, "demo", "demo"),
        ({"CONVOBASE_MODEL": "m", "CONVOBASE_SUMMARY_MODEL": "s"}, "m", "s"),
    ],
)
def test_model(environment: dict[str, str], model: str, summary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    upstream = load_settings().model
    assert (upstream.model, upstream.summary_model) == (model, summary)


def test_upstream_in_the_file(empty_folder: Path) -> None:
    (empty_folder / "convobase.toml").write_text('OPENAI_BASE_URL = "http://h/v1"\nopenai_api_key = "sk-hush"')
    upstream = load_settings().model
    assert upstream.openai_base_url == "http://h/v1"
    assert upstream.openai_api_key is not None
    assert upstream.openai_api_key.get_secret_value() == "sk-hush"
    assert "hush" not in repr(upstream)


def test_origins(empty_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (empty_folder / "convobase.toml").write_text('allowed_origins = ["https://a.example", "http://B.example:81"]')
    assert load_settings().who.allowed_origins == ("https://a.example", "http://b.example:81")
    monkeypatch.setenv("CONVOBASE_ALLOWED_ORIGINS", "https://c.example, https://d.example,")
    assert load_settings().who.allowed_origins == ("https://c.example", "https://d.example")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("PORT", "abc", "CONVOBASE_PORT is 'abc', which isn't right: give a port number from 0 to 65535."),
        ("PORT", "65536", "CONVOBASE_PORT is '65536', which isn't right: give a port number from 0 to 65535."),
        ("DRAIN_S", "nan", "CONVOBASE_DRAIN_S is 'nan', which isn't right: give a number of seconds, at least 0."),
        ("DRAIN_S", "inf", "CONVOBASE_DRAIN_S is 'inf', which isn't right: give a number of seconds, at least 0."),
        ("ORPHAN_GRACE_S", "-2", "CONVOBASE_ORPHAN_GRACE_S is '-2', which isn't right: give -1 or a number of "),
        ("MODEL_WINDOW", "100", "CONVOBASE_MODEL_WINDOW is '100', which isn't right: give 0, or a whole number of at"),
        (
            "SYSTEM_PROMPT",
            "It is {dat}",
            "CONVOBASE_SYSTEM_PROMPT is 'It is {dat}', which isn't right: give a text whose",
        ),
        ("SYSTEM_PROMPT", "{claims.a.b}", "CONVOBASE_SYSTEM_PROMPT is '{claims.a.b}', which isn't right: give a text"),
        ("CLIENT_SYSTEM", "ask", "CONVOBASE_CLIENT_SYSTEM is 'ask', which isn't right: give allow or refuse."),
        ("LOG_FORMAT", "xml", "CONVOBASE_LOG_FORMAT is 'xml', which isn't right: give console or json."),
        (
            "LOG_URL",
            "sqlite:",
            "CONVOBASE_LOG_URL is 'sqlite:', which isn't right: give sqlite:PATH, memory: or redis://HOST.",
        ),
        ("LOG_URL", "mysql://u:hush@h", "CONVOBASE_LOG_URL isn't right: give sqlite:PATH, memory: or redis://HOST."),
        ("ALLOWED_ORIGINS", "https://a.example/", "CONVOBASE_ALLOWED_ORIGINS is 'https://a.example/', which isn't"),
        ("ALLOWED_ORIGINS", "*", "CONVOBASE_ALLOWED_ORIGINS is '*', which isn't right: give origins such as https:"),
        (
            "WORKERS",
            "2",
            "CONVOBASE_WORKERS: several workers need a log that they share; give LOG_URL redis://HOST, or",
        ),
        ("AUTH", "jwt", "CONVOBASE_AUTH: authentication comes with a later version; give none"),
        ("AUTH", "basic", "CONVOBASE_AUTH is 'basic', which isn't right: give none."),
        ("JWT_SECRET", "hush", "CONVOBASE_JWT_SECRET: authentication comes with a later version, so this would have"),
        ("MAX_CONNECTIONS_PER_USER", "5", "CONVOBASE_MAX_CONNECTIONS_PER_USER: limits per user come with a later"),
        ("MESSAGES_PER_MINUTE", "5", "CONVOBASE_MESSAGES_PER_MINUTE: limits per user come with a later version"),
        ("TOKENS_PER_DAY", "5", "CONVOBASE_TOKENS_PER_DAY: limits per user come with a later version"),
        ("HOST", "0.0.0.0", "CONVOBASE_HOST: 0.0.0.0 lets other machines in without authentication; give 127.0.0.1"),
        ("HOST", "::", "CONVOBASE_HOST: :: lets other machines in"),
        ("HOST", "localhost.example", "CONVOBASE_HOST: localhost.example lets other machines in"),
        ("TLS_CERT", "c.pem", "CONVOBASE_TLS_CERT: TLS needs both files; set CONVOBASE_TLS_KEY too."),
        ("TLS_KEY", "k.pem", "CONVOBASE_TLS_KEY: TLS needs both files; set CONVOBASE_TLS_CERT too."),
        ("PROT", "1", "CONVOBASE_PROT is not a setting; did you mean `CONVOBASE_PORT`?"),
        ("OPENAI_API_KEY", "hush", "CONVOBASE_OPENAI_API_KEY is not a setting; did you mean `OPENAI_API_KEY`?"),
        ("XYZZY", "1", "CONVOBASE_XYZZY is not a setting; see the table of settings in README.md."),
    ],
)
def test_a_wrong_variable(name: str, value: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOBASE_" + name, value)
    got = the_line()
    assert got.startswith(line)
    assert "hush" not in got


@pytest.mark.parametrize(
    ("toml", "line"),
    [
        ("PORT = -1", "`port` in convobase.toml is -1, which isn't right: give a port number from 0 to 65535."),
        ("port = true", "`port` in convobase.toml is True, which isn't right: give a port number from 0 to 65535."),
        ("prot = 1", "`prot` in convobase.toml is not a setting; did you mean `port`?"),
        ("[serving]\nport = 1", "`serving` in convobase.toml is not a setting"),
        ("port = 1\nPORT = 2", "`PORT` in convobase.toml is set twice, in upper and in lower case."),
        ("port =", "convobase.toml is not TOML: "),
        ('host = "0.0.0.0"', "`host` in convobase.toml: 0.0.0.0 lets other machines in"),
        (
            'openai_base_url = "example"',
            "`openai_base_url` in convobase.toml is 'example', which isn't right: give a U",
        ),
    ],
)
def test_a_wrong_file(toml: str, line: str, empty_folder: Path) -> None:
    (empty_folder / "convobase.toml").write_text(toml)
    assert the_line().startswith(line)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"port": 70000}, "--port is 70000, which isn't right: give a port number from 0 to 65535."),
        ({"log_level": "loud"}, "--log-level is 'loud', which isn't right: give debug, info, warning or error."),
        (
            {"workers": 2, "log_url": "memory:"},
            "--workers: several workers need a log that they share; give LOG_URL redis://HOST, or 1 with memory:.",
        ),
        ({"hots": "x"}, "--hots is not a setting; did you mean `--host`?"),
    ],
)
def test_a_wrong_flag(flags: dict[str, Any], line: str) -> None:
    assert the_line(**flags) == line


def test_an_unreadable_file(empty_folder: Path) -> None:
    (empty_folder / "convobase.toml").mkdir()
    assert the_line() == "convobase.toml can't be read: Is a directory."


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_nothing(host: str) -> None:
    assert load_settings(host=host).serving.loopback


def test_insecure_is_said_aloud() -> None:
    assert load_settings(host="0.0.0.0", insecure=True).serving.host == "0.0.0.0"


def test_tls_files_are_looked_for(empty_folder: Path) -> None:
    cert = empty_folder / "cert.pem"
    cert.touch()
    assert the_line(tls_cert=cert, tls_key="key.pem").startswith("--tls-key: key.pem is not a file that can be read")
    (empty_folder / "key.pem").touch()
    assert load_settings(tls_cert=cert, tls_key="key.pem").serving.tls_key == Path("key.pem")


def test_the_readme_has_the_table() -> None:
    assert settings_table() in README.read_text("utf-8"), "python -m gateway.settings prints the table for README.md"


def test_the_table_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_module("gateway.settings", run_name="__main__")
    assert capsys.readouterr().out == settings_table() + "\n"
