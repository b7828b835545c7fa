"""Imports run downwards only: a room knows the rooms below it, never one above, and there are no cycles."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Rooms on one level may import each other as long as that makes no cycle.
LEVELS = (
    {"protocol"},
    {"gateway.errors", "gateway.settings", "gateway.telemetry"},
    {"gateway.context", "gateway.logs", "gateway.models", "gateway.tools"},
    {"gateway.sessions"},
    {"gateway.edge"},
    {"gateway.app", "gateway.orders", "gateway.terminal", "gateway.terminal_page"},
    {"gateway.server", "gateway.supervisor", "gateway.worker"},
    {"gateway.cli", "gateway.__main__"},
)
LEVEL_OF = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}

# `protocol` is pure: no I/O, no clock, no logging. Its client is the exception.
IMPURE = {"asyncio", "logging", "os", "pathlib", "random", "select", "socket", "ssl", "subprocess", "threading", "time"}
IMPURE |= {"aiohttp", "anyio", "httpx", "httpx2", "structlog", "websockets"}

Sources = Mapping[str, str]
"""Module name to source text; a package is named by its folder."""


def read_sources(root: Path) -> Sources:
    files = [path for package in ("gateway", "protocol") for path in sorted((root / package).rglob("*.py"))]
    return {module_name(path.relative_to(root)): path.read_text("utf-8") for path in files if "js" not in path.parts}


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(module: str, sources: Sources) -> Iterator[str]:
    """Everything that `module` names in an import, wherever it stands: modules of ours as deep as it is told,
    others by the name that is written."""
    is_package = any(name.startswith(module + ".") for name in sources)
    for node in ast.walk(ast.parse(sources[module])):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package and node.level == 1 else -node.level + is_package]
                base = ".".join([*package, base]).rstrip(".")
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                yield deeper if deeper in sources else base


def room_of(module: str) -> str | None:
    """The room of a module of ours; None for somebody else's, and for the empty package `gateway` itself."""
    parts = module.split(".")
    if parts[0] == "protocol":
        return "protocol"
    return ".".join(parts[:2]) if parts[0] == "gateway" and len(parts) > 1 else None


def violations(sources: Sources) -> list[str]:
    """What is wrong, in words; empty when all is well."""
    modules: dict[str, set[str]] = {}
    rooms: dict[str, set[str]] = {}
    wrong: list[str] = []
    for module in sources:
        here = room_of(module)
        if here is not None and here not in LEVEL_OF:
            wrong.append(f"{module}: {here} has no level; give it one in this test")
            continue
        for name in imports(module, sources):
            there = room_of(name)
            if there is None or here is None:
                continue
            if LEVEL_OF.get(there, -1) > LEVEL_OF[here]:
                wrong.append(f"{module} imports {name}, which is above it")
            if there != here:
                rooms.setdefault(here, set()).add(there)
            if name in sources and name != module:
                modules.setdefault(module, set()).add(name)
    wrong += [f"a cycle: {' -> '.join(cycle)}" for graph in (rooms, modules) for cycle in cycle_in(graph)]
    return wrong


def cycle_in(graph: Mapping[str, Iterable[str]]) -> list[list[str]]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [error.args[1]]
    return []


def impurities(sources: Sources) -> list[str]:
    return [
        f"{module} imports {name}"
        for module in sources
        if room_of(module) == "protocol" and not module.startswith("protocol.client")
        for name in imports(module, sources)
        if name.split(".")[0] in IMPURE
    ]


def test_imports_run_downwards() -> None:
    sources = read_sources(ROOT)
    assert "gateway.settings.tree" in sources
    assert "protocol.frames" in sources
    assert violations(sources) == []


def test_protocol_is_pure() -> None:
    assert impurities(read_sources(ROOT)) == []


@pytest.mark.parametrize(
    ("planted", "found"),
    [
        ({"protocol.frames": "import gateway.logs.log"}, "protocol.frames imports gateway.logs.log, which is above it"),
        ({"gateway.logs.memory": "from gateway.sessions import pool"}, "above it"),
        ({"gateway.logs.memory": "def f():\n    from gateway import edge"}, "above it"),
        ({"gateway.logs.memory": "from ..edge import pump"}, "above it"),
        ({"gateway.logs": "from ..edge import pump"}, "above it"),
        ({"gateway.logs.log": "from . import memory", "gateway.logs.memory": "from .log import Log"}, "a cycle"),
        ({"gateway.logs.log": "import gateway.models", "gateway.models.m": "import gateway.logs.log"}, "a cycle"),
        ({"gateway.attic": ""}, "gateway.attic has no level"),
    ],
)
def test_a_planted_violation_is_found(planted: dict[str, str], found: str) -> None:
    clean = {
        "gateway": "",
        "gateway.edge": "",
        "gateway.edge.pump": "from gateway.logs.log import Log\nfrom protocol import frames",
        "gateway.logs": "",
        "gateway.logs.log": "import protocol.frames",
        "gateway.logs.memory": "from gateway.logs.log import Log\nfrom .log import Key\nimport asyncio",
        "gateway.models": "",
        "gateway.sessions": "",
        "protocol": "",
        "protocol.frames": "import msgspec",
    }
    assert violations(clean) == []
    assert any(found in line for line in violations(clean | planted))


def test_a_planted_impurity_is_found() -> None:
    sources = {"protocol.sse": "from time import time", "protocol.client.channel": "import asyncio"}
    assert impurities(sources) == ["protocol.sse imports time"]
