"""Reads the settings once: flags over environment over `convobase.toml` over defaults.

This is the only place of the gateway that reads the environment.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import SecretStr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.settings.read_tools import TABLES, read_tools
from gateway.settings.rules import broken_rule
from gateway.settings.tools import HttpTool, McpServer, Tools
from gateway.settings.tree import (
    DEFAULT_UPSTREAM_MODEL,
    Limits,
    LogAndSessions,
    Serving,
    Slice,
    ToolLimits,
    Upstream,
    Who,
)
from gateway.settings.whole import Settings
from gateway.settings.wrong import SettingsError, did_you_mean, short

PREFIX = "CONVOBASE_"
CONFIG_VARIABLE = "CONVOBASE_CONFIG"
DEFAULT_FILE = "convobase.toml"
_OPENAI = ("openai_api_key", "openai_base_url")

S = TypeVar("S", bound=Slice)


class _Flat(Serving, LogAndSessions, Upstream, ToolLimits, Who, Limits, BaseSettings):
    """All settings side by side, which is how people write them."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # pydantic-settings names the arguments
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003  # the same
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        given = cast(InitSettingsSource, init_settings).init_kwargs
        from_file = InitSettingsSource(settings_cls, given.get("toml", {}))
        flags = InitSettingsSource(settings_cls, given.get("flags", {}))
        return flags, env_settings, from_file


def load_settings(**overrides: Any) -> Settings:
    """The frozen tree. `overrides` are the flags that were given, by setting name; None: not given.

    Raises `SettingsError`.
    """
    flags = {name: value for name, value in overrides.items() if value is not None}
    path, toml = _read_file()
    tables = {name: toml.pop(name) for name in TABLES if name in toml}
    where = _Where(flags, toml, path)
    _refuse_unknown(where, flags, toml)
    try:
        flat = _Flat(flags=flags, toml=toml)  # type: ignore[call-arg]  # picked up by settings_customise_sources
    except ValidationError as error:
        # Never chained: pydantic's text would repeat the value.
        raise where.wrong(str(error.errors(include_url=False)[0]["loc"][0])) from None
    settings = _tree(flat, *read_tools(tables, path, os.environ))
    broken = broken_rule(settings)
    if broken is not None:
        name, sentence = broken
        raise SettingsError(f"{where.spelled(name)}: {sentence}")
    return settings


class _Where:
    """Knows where each setting was written, so that an error can name it as its user did."""

    def __init__(self, flags: Mapping[str, object], toml: Mapping[str, object], path: Path) -> None:
        self._flags, self._toml, self._path = flags, toml, path

    def _source(self, name: str) -> tuple[str, object]:
        variable = name.upper() if name in _OPENAI else PREFIX + name.upper()
        if name in self._flags:
            return "--" + name.replace("_", "-"), self._flags[name]
        for key, value in os.environ.items():
            if key.upper() == variable and value:
                return key, value
        if name in self._toml:
            return f"`{name}` in {self._path}", self._toml[name]
        return variable, None

    def spelled(self, name: str) -> str:
        return self._source(name)[0]

    def wrong(self, name: str) -> SettingsError:
        name = name.lower()
        field = _Flat.model_fields[name]
        spelled, value = self._source(name)
        shown = "" if _secret(name, value) else f" is {short(value)}, which"
        extra = cast(dict[str, str], field.json_schema_extra)
        return SettingsError(f"{spelled}{shown} isn't right: give {extra['right']}.")

    def unknown_key(self, key: str, known: Mapping[str, str]) -> SettingsError:
        return SettingsError(f"`{key}` in {self._path} is not a setting{did_you_mean(key, known)}")


def _secret(name: str, value: object) -> bool:
    # A URL with an `@` may carry a password.
    return isinstance(value, SecretStr) or name in ("jwt_secret", "openai_api_key") or "@" in str(value)


def _read_file() -> tuple[Path, dict[str, Any]]:
    chosen = os.environ.get(CONFIG_VARIABLE)
    path = Path(chosen or DEFAULT_FILE)
    try:
        with path.open("rb") as file:
            read = tomllib.load(file)
    except FileNotFoundError:
        if chosen:
            raise SettingsError(f"{CONFIG_VARIABLE}: there is no file {chosen}.") from None
        return path, {}
    except OSError as error:
        raise SettingsError(f"{path} can't be read: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not TOML: {str(error).splitlines()[0]}.") from None
    toml: dict[str, Any] = {}
    for key, value in read.items():
        if key.lower() in toml:
            raise SettingsError(f"`{key}` in {path} is set twice, in upper and in lower case.")
        toml[key.lower()] = value
    return path, toml


def _refuse_unknown(where: _Where, flags: Mapping[str, object], toml: Mapping[str, object]) -> None:
    known = {name: name for name in _Flat.model_fields}
    for name in flags:
        if name not in known:
            hint = did_you_mean(name, {key: "--" + key.replace("_", "-") for key in known})
            raise SettingsError(f"--{name.replace('_', '-')} is not a setting{hint}")
    for key in toml:
        if key not in known:
            raise where.unknown_key(key, known)
    # Compared without the prefix that they share.
    variables = {name.upper(): name.upper() if name in _OPENAI else PREFIX + name.upper() for name in known}
    variables["CONFIG"] = CONFIG_VARIABLE
    for variable in os.environ:
        if variable.upper().startswith(PREFIX) and variable.upper() not in variables.values():
            hint = did_you_mean(variable.upper().removeprefix(PREFIX), variables)
            raise SettingsError(f"{variable} is not a setting{hint}")


def _tree(flat: _Flat, http: dict[str, HttpTool], mcp: dict[str, McpServer]) -> Settings:
    has_upstream = flat.openai_api_key is not None or flat.openai_base_url is not None
    model = flat.model
    if has_upstream and "model" not in flat.model_fields_set:
        model = DEFAULT_UPSTREAM_MODEL
    return Settings(
        serving=_slice(Serving, flat),
        log=_slice(LogAndSessions, flat),
        model=_slice(Upstream, flat, model=model, summary_model=flat.summary_model or model),
        tools=Tools.model_construct(tool_concurrency=flat.tool_concurrency, http=http, mcp=mcp),
        who=_slice(Who, flat),
        limits=_slice(Limits, flat),
    )


def _slice(kind: type[S], flat: _Flat, **changed: object) -> S:
    # Everything was validated when `flat` was made.
    return kind.model_construct(**{name: getattr(flat, name) for name in kind.model_fields} | changed)
