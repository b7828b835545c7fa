"""Reads `[tools.NAME]` and `[mcp.NAME]`, and says in one line what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import SecretStr, ValidationError

from gateway.settings.tools import NAME, HttpTool, McpServer, Wrong
from gateway.settings.tree import Slice
from gateway.settings.wrong import SettingsError, one_of, short

TABLES = ("tools", "mcp")
# `env:NAME`, or after a scheme: `Bearer env:NAME`.
_FROM_ENVIRONMENT = re.compile(r"(?P<before>(?:\S+ )?)env:(?P<variable>[A-Za-z_][A-Za-z0-9_]*)")
_SECRETS = ("headers", "env")

T = TypeVar("T", bound=Slice)


def read_tools(
    toml: Mapping[str, Any], path: Path, environment: Mapping[str, str]
) -> tuple[dict[str, HttpTool], dict[str, McpServer]]:
    """The tools and the servers, by name. Raises `SettingsError`."""
    reader = _Reader(path, environment)
    return reader.all(HttpTool, "tools", toml.get("tools", {})), reader.all(McpServer, "mcp", toml.get("mcp", {}))


class _Reader:
    def __init__(self, path: Path, environment: Mapping[str, str]) -> None:
        self._path, self._environment = path, environment

    def all(self, kind: type[T], table: str, given: object) -> dict[str, T]:
        if not isinstance(given, dict):
            raise self._error((table,), f"has to be a table: write [{table}.NAME] for each.")
        return {name: self._one(kind, (table, name), entry) for name, entry in given.items()}

    def _one(self, kind: type[T], where: tuple[str, str], given: object) -> T:
        if not NAME.fullmatch(where[1]):
            raise self._error(where, "isn't a name for it: give 1 to 64 characters of A-Z a-z 0-9 _ -.")
        if not isinstance(given, dict):
            raise self._error(where, f"has to be a table: write [{'.'.join(where)}].")
        known = [*kind.model_fields, *(["parameters_json"] if issubclass(kind, HttpTool) else [])]
        for key in given:
            if key not in known:
                raise self._error((*where, key), "is not a setting of it" + one_of(key, known))
        given = dict(given)
        for key in _SECRETS:
            if isinstance(given.get(key), dict):
                given[key] = {name: self._secret((*where, key, name), text) for name, text in given[key].items()}
        try:
            return kind.model_validate(given)
        except ValidationError as error:
            # Never chained: pydantic's text would repeat the value.
            raise self._explained(kind, where, given, error) from None

    def _secret(self, where: tuple[str, ...], text: object) -> object:
        found = _FROM_ENVIRONMENT.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            return text
        value = self._environment.get(found["variable"])
        if not value:
            raise self._error(where, f"takes the environment variable {found['variable']}, which isn't set.")
        return SecretStr(found["before"] + value)

    def _explained(
        self, kind: type[T], where: tuple[str, str], given: Mapping[str, Any], error: ValidationError
    ) -> SettingsError:
        first = error.errors(include_url=False)[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, Wrong):
            return self._error((*where, cause.key), str(cause))
        key = str(first["loc"][0])
        right = cast(dict[str, str], kind.model_fields[key].json_schema_extra)["right"]
        if first["type"] == "missing":
            return self._error((*where, key), f"is missing: give {right}.")
        shown = "" if key in _SECRETS or "@" in str(given[key]) else f" is {short(given[key])}, which"
        return SettingsError(f"{self._spelled((*where, key))}{shown} isn't right: give {right}.")

    def _spelled(self, where: tuple[str, ...]) -> str:
        return f"`{'.'.join(where)}` in {self._path}"

    def _error(self, where: tuple[str, ...], sentence: str) -> SettingsError:
        return SettingsError(f"{self._spelled(where)} {sentence}")
