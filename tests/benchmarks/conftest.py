"""The native tools need Linux and a C compiler. Without them: failed in CI, else skipped with what would help."""

from __future__ import annotations

import os

import pytest

from benchmarks.native import TOOLS, NoNativeToolsError, build


@pytest.fixture(scope="session")
def native() -> None:
    try:
        for tool in TOOLS:
            build(tool)
    except NoNativeToolsError as problem:
        if os.environ.get("CI") == "true":
            pytest.fail(str(problem))
        pytest.skip(str(problem))
