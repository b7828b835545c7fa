"""What all tests share: an environment without the developer's settings, a browser for the page, Valkey servers."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest
from playwright.async_api import Page, async_playwright

from tests.e2e.browser import CHROMIUM_FLAGS
from tests.support.valkey import Valkey, valkey, valkey_cluster

# A loaded machine is no failure; CI repeats exactly what a failing run of it did.
hypothesis.settings.register_profile("convobase", deadline=None, derandomize=os.environ.get("CI") == "true")
hypothesis.settings.load_profile("convobase")

# For settings, proxies and colours of whoever runs the tests.
for _name in list(os.environ):
    if _name.upper().startswith(("CONVOBASE_", "OPENAI_")) and _name != "CONVOBASE_TEST_CHROMIUM":
        del os.environ[_name]

_CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def chromium_path() -> Path:
    """An installed Chromium (`CONVOBASE_TEST_CHROMIUM` names another one). Without one: failed in CI, else skipped."""
    chosen = os.environ.get("CONVOBASE_TEST_CHROMIUM")
    for name in (chosen,) if chosen else _CHROMIUM_NAMES:
        found = shutil.which(name)
        if found:
            return Path(found)
    reason = "no Chromium was found; on Debian or Ubuntu: apt-get install chromium"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
async def page(chromium_path: Path) -> AsyncIterator[Page]:
    """An empty tab of a fresh headless Chromium. A second tab of the same user wants
    a context: `(await browser.new_context()).new_page()` twice."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium_path, args=list(CHROMIUM_FLAGS))
        try:
            yield await browser.new_page()
        finally:
            await browser.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Valkey]:
    """One Valkey for all tests that do nothing to the server itself; each takes a `?prefix=` of its own."""
    with valkey() as server:
        yield server


@pytest.fixture(scope="session")
def redis_cluster() -> Iterator[list[Valkey]]:
    """A cluster of three for all tests that leave it as it is."""
    with valkey_cluster() as servers:
        yield servers
