"""`[tools.NAME]` and `[mcp.NAME]`: what they mean, and what the one line says when one is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from gateway.settings import SettingsError, Tools, load_settings

README = Path(__file__).parent.parent / "README.md"

WEATHER = """
[tools.weather]
description = "The weather in a city"
url = "https://api.example.com/v1/{city}?units=metric"
"""
CITY = """
[tools.weather.parameters]
type = "object"
required = ["city"]
[tools.weather.parameters.properties.city]
type = "string"
"""


@pytest.fixture(autouse=True)
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    return (tmp_path / "convobase.toml").write_text


def the_line() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert caught.value.__cause__ is None
    line = str(caught.value)
    assert "\n" not in line
    assert line.endswith((".", "?"))
    return line


def test_none() -> None:
    assert load_settings().tools == Tools()


def test_concurrency(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    write("tool_concurrency = 3\n" + WEATHER + CITY)
    assert load_settings().tools.tool_concurrency == 3
    monkeypatch.setenv("CONVOBASE_TOOL_CONCURRENCY", "4")
    assert load_settings().tools.tool_concurrency == 4
    assert load_settings(tool_concurrency=5).tools.tool_concurrency == 5


def test_an_endpoint(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_KEY", "hush")
    more = 'method = "post"\ntimeout_s = 5\napproval = true\nidempotent = true\nmax_result_bytes = 1000\n'
    more += '[tools.weather.headers]\nAuthorization = "Bearer env:WEATHER_KEY"\n'
    more += 'X-Key = "env:WEATHER_KEY"\nX-Plain = "env is x"\n'
    write(WEATHER + more + CITY)
    tools = load_settings().tools
    tool = tools.http["weather"]
    assert (tool.method, tool.timeout_s, tool.approval, tool.idempotent, tool.max_result_bytes) == (
        "POST",
        5,
        True,
        True,
        1000,
    )
    assert {name: value.get_secret_value() for name, value in tool.headers.items()} == {
        "Authorization": "Bearer hush",
        "X-Key": "hush",
        "X-Plain": "env is x",
    }
    assert tool.placeholders == ("city",)
    assert tool.parameters["required"] == ["city"]
    assert "hush" not in repr(tools)
    with pytest.raises(ValidationError, match="frozen"):
        tool.method = "GET"


def test_an_endpoint_with_its_defaults(write: Any) -> None:
    write('[TOOLS.now]\ndescription = "d"\nurl = "http://127.0.0.1:9"')
    tool = load_settings().tools.http["now"]
    assert (tool.method, tool.timeout_s, tool.approval, tool.idempotent) == ("GET", 30, False, False)
    assert (tool.max_result_bytes, tool.parameters, dict(tool.headers)) == (65_536, {}, {})


def test_parameters_as_json(write: Any) -> None:
    write(WEATHER + """parameters_json = '{"type": "object", "properties": {"city": {}}}'""")
    assert load_settings().tools.http["weather"].parameters == {"type": "object", "properties": {"city": {}}}


def test_servers(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "hush")
    write(
        """
[mcp.time]
command = "mcp-server-time"
args = ["--local-timezone", "UTC"]
env = { KEY = "env:TOKEN" }
allow = ["a", "b"]
deny = ["b"]
approval = ["a"]
idempotent = true
[mcp.far]
url = "https://mcp.example.com/mcp"
headers = { Authorization = "Bearer env:TOKEN" }
approval = true
"""
    )
    tools = load_settings().tools
    time, far = tools.mcp["time"], tools.mcp["far"]
    assert (time.command, time.args, time.env["KEY"].get_secret_value()) == (
        "mcp-server-time",
        ("--local-timezone", "UTC"),
        "hush",
    )
    assert [time.offers(tool) for tool in "abc"] == [True, False, False]
    assert [time.needs_approval(tool) for tool in "ac"] == [True, False]
    assert time.is_idempotent("c")
    assert (far.url, far.offers("x"), far.needs_approval("x"), far.is_idempotent("x")) == (
        "https://mcp.example.com/mcp",
        True,
        True,
        False,
    )
    assert "hush" not in repr(tools)


@pytest.mark.parametrize(
    ("toml", "where", "rest"),
    [
        ("tools = 5", "tools", "has to be a table: write [tools.NAME] for each."),
        ("[[mcp]]", "mcp", "has to be a table: write [mcp.NAME] for each."),
        ("[tools]\nweather = 1", "tools.weather", "has to be a table: write [tools.weather]."),
        ('[tools."a b"]', "tools.a b", "isn't a name for it: give 1 to 64 characters of A-Z a-z 0-9 _ -."),
        (f"[mcp.{'x' * 65}]", f"mcp.{'x' * 65}", "isn't a name for it: give 1 to 64"),
        ("[tools.t]\nurl = 'http://h'", "tools.t.description", "is missing: give a text that tells"),
        ("[tools.t]\ndescription = 'd'", "tools.t.url", "is missing: give a URL that starts with http:// or"),
        (WEATHER + "metod = 'GET'" + CITY, "tools.weather.metod", "is not a setting of it; did you mean `method`?"),
        ("[mcp.t]\nxyz = 1", "mcp.t.xyz", "is not a setting of it; there are timeout_s, max_result_bytes, command"),
        (WEATHER + "method = 'HEAD'" + CITY, "tools.weather.method", "is 'HEAD', which isn't right: give GET, POST"),
        (
            WEATHER + "timeout_s = 0" + CITY,
            "tools.weather.timeout_s",
            "is 0, which isn't right: give a number of seconds",
        ),
        (
            WEATHER + "approval = 'yes'" + CITY,
            "tools.weather.approval",
            "is 'yes', which isn't right: give true or false.",
        ),
        (WEATHER + "headers = { A = 5 }" + CITY, "tools.weather.headers", "isn't right: give a table of texts; env"),
        (WEATHER + 'headers = { "A b" = "hush" }' + CITY, "tools.weather.headers", "isn't right: give a table"),
        (WEATHER + 'headers = { A = "hush\\r\\nB: 1" }' + CITY, "tools.weather.headers", "isn't right: give a"),
        (
            WEATHER + 'headers = { A = "Bearer env:NOT_SET" }' + CITY,
            "tools.weather.headers.A",
            "takes the environment variable NOT_SET, which isn't set.",
        ),
        (WEATHER, "tools.weather.url", "needs `city`, which `parameters` doesn't have among its properties."),
        ("[tools.t]\ndescription='d'\nurl='http://h/{a'", "tools.t.url", "has a { or } without its other half."),
        ("[tools.t]\ndescription='d'\nurl='http://{a}/'", "tools.t.url", "is 'http://{a}/', which isn't right: give"),
        ("[tools.t]\ndescription='d'\nurl='ftp://h/'", "tools.t.url", "is 'ftp://h/', which isn't right: give a URL"),
        ("[tools.t]\ndescription='d'\nurl='http://h:x/'", "tools.t.url", "is 'http://h:x/', which isn't right: give"),
        ("[tools.t]\ndescription='d'\nurl='http://u:hush@h/'", "tools.t.url", "isn't right: give a URL that starts"),
        (
            WEATHER + "parameters = { type = 'object', properties = { city = { type = 'strin' } } }",
            "tools.weather.parameters",
            "isn't a JSON Schema for a function: `properties.city.type`: ",
        ),
        (
            WEATHER + "parameters = { properties = { city = {} } }",
            "tools.weather.parameters",
            'isn\'t a JSON Schema for a function: `type` has to be "object".',
        ),
        (
            WEATHER + "parameters = { '$schema' = 'http://127.0.0.1:9/', type = 'object' }",
            "tools.weather.parameters",
            "isn't a JSON Schema for a function: Unknown meta-schema: ",
        ),
        (WEATHER + "parameters_json = '{'", "tools.weather.parameters_json", "isn't JSON: "),
        (
            WEATHER + "parameters_json = '{}'" + CITY,
            "tools.weather.parameters_json",
            "is given beside `parameters`; give one of them.",
        ),
        ("[mcp.t]\ntimeout_s = 1", "mcp.t.command", "or `url` has to be given, and not both."),
        ("[mcp.t]\ncommand = 'a'\nurl = 'http://h'", "mcp.t.command", "or `url` has to be given, and not"),
        ("[mcp.t]\ncommand = 'a'\nheaders = { a = 'b' }", "mcp.t.headers", "has no meaning with `command`; leave"),
        ("[mcp.t]\nurl = 'http://h'\nargs = ['b']", "mcp.t.args", "has no meaning with `url`; leave it out."),
        ("[mcp.t]\ncommand = ''", "mcp.t.command", "is '', which isn't right: give the command that starts the"),
        ("[mcp.t]\ncommand = 'a'\nargs = 'b'", "mcp.t.args", "is 'b', which isn't right: give a list of texts."),
        ("[mcp.t]\ncommand = 'a'\napproval = 'b'", "mcp.t.approval", "is 'b', which isn't right: give true,"),
        ("tool_concurrency = 0", "tool_concurrency", "is 0, which isn't right: give a whole number of at least 1."),
    ],
)
def test_a_wrong_file(toml: str, where: str, rest: str, write: Any) -> None:
    write(toml)
    got = the_line()
    assert got.startswith(f"`{where}` in convobase.toml {rest}")
    assert "hush" not in got


def test_the_readmes_examples(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEATHER_KEY", "hush")
    write("\n".join(re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)))
    tools = load_settings().tools
    assert (list(tools.http), list(tools.mcp)) == (["get_weather"], ["time", "files"])


def test_tables_are_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVOBASE_TOOLS", "x")
    assert the_line().startswith("CONVOBASE_TOOLS is not a setting")
