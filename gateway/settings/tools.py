"""The tools that the gateway runs itself, as `[tools.NAME]` and `[mcp.NAME]` of `convobase.toml` declare them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

import jsonschema_rs
import orjson
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, model_validator

from gateway.settings.tree import Seconds, Slice, ToolLimits, Whole

NAME = re.compile(r"[A-Za-z0-9_\-]{1,64}")
"""OpenAI's rule for the name of a function."""
PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

MAX_RESULT_BYTES = 65_536


class Wrong(ValueError):
    """`key` of a tool is wrong; the text is the rest of the sentence."""

    def __init__(self, key: str, sentence: str) -> None:
        super().__init__(sentence)
        self.key = key


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("not a URL")
    if re.search(r"\s", value) or "{" in parts.netloc:
        raise ValueError("not a URL")
    _ = parts.port  # raises ValueError for what is no port
    return value


def _headers(value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
    for name, text in value.items():
        if not _HEADER_NAME.fullmatch(name) or re.search(r"[\r\n\0]", text.get_secret_value()):
            raise ValueError("not a header")
    return value


def _upper(value: object) -> object:
    return value.upper() if isinstance(value, str) else value


def _key(default: Any, right: str, **constraints: Any) -> Any:
    """`right` goes into the error ("… give {right}"). `...` as the default: it has to be given."""
    return Field(default, json_schema_extra={"right": right}, **constraints)


_A_URL = "a URL that starts with http:// or https://, with no user name in it (use headers)"
_TRUE_OR_FALSE = "true or false"
_TEXTS = "a list of texts"
_NAMED_TEXTS = "a table of texts; env:NAME takes one from the environment"
_NAMES = "true, false or a list of the server's tools"

Url: TypeAlias = Annotated[str, AfterValidator(_url)]
Headers: TypeAlias = Annotated[Mapping[str, SecretStr], AfterValidator(_headers)]
StrictBool: TypeAlias = Annotated[bool, Field(strict=True)]
Names: TypeAlias = StrictBool | tuple[str, ...]


class _Bounds(Slice):
    timeout_s: Seconds = _key(30, "a number of seconds above 0", gt=0)
    """For one call, the wait for a free place not counted."""
    max_result_bytes: Whole = _key(MAX_RESULT_BYTES, "a whole number of at least 256", ge=256)
    """Of a result as JSON; a larger one is a failure of the tool."""


class HttpTool(_Bounds):
    """One HTTP endpoint that the model may call."""

    description: str = _key(..., "a text that tells the model what the tool does", min_length=1)
    url: Url = _key(..., _A_URL)
    """`{name}` in its path or query stands for a parameter."""
    method: Annotated[Literal["GET", "POST", "PUT", "PATCH", "DELETE"], BeforeValidator(_upper)] = _key(
        "GET", "GET, POST, PUT, PATCH or DELETE"
    )
    headers: Headers = _key({}, _NAMED_TEXTS)
    parameters: dict[str, Any] = _key({}, "a table that is a JSON Schema of type object")
    approval: StrictBool = _key(False, _TRUE_OR_FALSE)
    """The user is asked before each call."""
    idempotent: StrictBool = _key(False, _TRUE_OR_FALSE)
    """May be called again after a crash, when nobody knows what became of the first call."""

    @property
    def placeholders(self) -> tuple[str, ...]:
        return tuple(PLACEHOLDER.findall(self.url))

    @model_validator(mode="before")
    @classmethod
    def _decoded(cls, given: Any) -> Any:
        if not isinstance(given, dict) or "parameters_json" not in given:
            return given
        given = dict(given)
        text = given.pop("parameters_json")
        if "parameters" in given:
            raise Wrong("parameters_json", "is given beside `parameters`; give one of them.")
        try:
            given["parameters"] = orjson.loads(text)
        except (orjson.JSONDecodeError, TypeError) as error:
            raise Wrong("parameters_json", f"isn't JSON: {error}.") from None
        return given

    @model_validator(mode="after")
    def _sound(self) -> HttpTool:
        problem = _schema_problem(self.parameters)
        if problem is not None:
            raise Wrong("parameters", f"isn't a JSON Schema for a function: {problem}.")
        properties = self.parameters.get("properties", {})
        for name in self.placeholders:
            if name not in properties:
                raise Wrong("url", f"needs `{name}`, which `parameters` doesn't have among its properties.")
        if re.search(r"[{}]", PLACEHOLDER.sub("", self.url)):
            raise Wrong("url", "has a { or } without its other half.")
        return self


class McpServer(_Bounds):
    """One server of the Model Context Protocol: a command that is run (stdio), or a URL (streamable HTTP)."""

    command: str | None = _key(None, "the command that starts the server", min_length=1)
    args: tuple[str, ...] = _key((), _TEXTS)
    env: Mapping[str, SecretStr] = _key({}, _NAMED_TEXTS)
    """Beside PATH, HOME and the like; nothing else of the gateway's environment is handed on."""
    url: Url | None = _key(None, _A_URL)
    headers: Headers = _key({}, _NAMED_TEXTS)
    allow: tuple[str, ...] | None = _key(None, _TEXTS)
    """Only these of its tools are offered; default: all."""
    deny: tuple[str, ...] = _key((), _TEXTS)
    approval: Names = _key(False, _NAMES)
    idempotent: Names = _key(False, _NAMES)
    prefix: StrictBool = _key(False, _TRUE_OR_FALSE)
    """Offer each tool as `SERVER_tool`; otherwise only one whose name is taken."""
    start_timeout_s: Seconds = _key(30, "a number of seconds above 0", gt=0)

    @model_validator(mode="after")
    def _one_transport(self) -> McpServer:
        if (self.command is None) == (self.url is None):
            raise Wrong("command", "or `url` has to be given, and not both.")
        if self.url is not None and "{" in self.url:
            raise Wrong("url", "can't have a { in it.")
        unfit = ("headers",) if self.command else ("args", "env")
        for key in unfit:
            if getattr(self, key):
                raise Wrong(key, f"has no meaning with `{'command' if self.command else 'url'}`; leave it out.")
        return self

    def offers(self, tool: str) -> bool:
        return (self.allow is None or tool in self.allow) and tool not in self.deny

    def needs_approval(self, tool: str) -> bool:
        return _includes(self.approval, tool)

    def is_idempotent(self, tool: str) -> bool:
        return _includes(self.idempotent, tool)


class Tools(ToolLimits):
    """Everything that is run by the gateway itself."""

    http: Mapping[str, HttpTool] = {}
    mcp: Mapping[str, McpServer] = {}


def _includes(names: Names, name: str) -> bool:
    return names if isinstance(names, bool) else name in names


def _schema_problem(parameters: dict[str, Any]) -> str | None:
    """`gateway.tools.schemas`, which is above this room, checks more: what comes from the operator is only mistaken."""
    if parameters and parameters.get("type") != "object":
        return '`type` has to be "object"'
    try:
        jsonschema_rs.validator_for(parameters, offline=True)
    except jsonschema_rs.ValidationError as error:
        path = ".".join(map(str, error.instance_path))
        reason = error.message.splitlines()[0]
        return f"`{path}`: {reason}" if path else reason
    except (jsonschema_rs.ReferencingError, ValueError) as error:
        return str(error).splitlines()[0]
    return None
