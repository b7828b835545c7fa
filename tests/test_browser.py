"""The browser that the page's tests stand on."""

from __future__ import annotations

from playwright.async_api import Page


async def test_page_runs_scripts(page: Page) -> None:
    await page.set_content("<p id=p></p><script>document.getElementById('p').textContent = `${6 * 7} …`</script>")
    assert await page.locator("#p").text_content() == "42 …"
