"""The service's page in a real Chromium, the system's own: how to open it, how soon it answers. Tests use it too."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from network.errors import InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

__all__ = ["TIMES", "chromium", "find_chromium", "times_of"]

NAMES = ("chromium", "chromium-browser", "google-chrome")
TIMES = ("listed_ms", "interactive_ms", "blocked_ms", "found_ms")
STEADY_MS = 50
"""What a browser calls a long task: beyond it a key press would wait."""

OBSERVE = "window.tasks = []; new PerformanceObserver(list => tasks.push(...list.getEntries())).observe"
OBSERVE = f"{OBSERVE}({{type: 'longtask', buffered: true}})"
MARKS = "performance.getEntriesByType('mark').map(mark => [mark.name.replace('narrowgauge-', ''), mark.startTime])"
FIND = """async ([words, left]) => {
    const [field, count] = [document.getElementById('find'), document.getElementById('devices-count')];
    const started = performance.now();
    field.value = words;
    field.dispatchEvent(new Event('input'));
    while (!count.textContent.startsWith(left)) await new Promise(requestAnimationFrame);
    return performance.now() - started;
}"""


def find_chromium() -> str | None:
    """The browser that is installed, if any."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. Raises InputError, saying what to install."""
    path = find_chromium()
    if path is None:
        raise InputError("no Chromium is installed; apt-get install chromium, or make chromium")
    from playwright.sync_api import sync_playwright

    # Chromium's own sandbox cannot be had by root.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def times_of(page: Page, url: str, words: str, left: str) -> dict[str, float]:
    """Milliseconds of a cold visit, by the page's own marks.

    `listed_ms`: until the first devices were there; `interactive_ms`: until every control answered; `blocked_ms`: what
    tasks took beyond 50 ms each until then, when a key would have waited; `found_ms`: from typing `words` into the
    search field until the list says how many are `left`.
    """
    page.add_init_script(OBSERVE)
    page.goto(url)
    marks: dict[str, float] = {}
    while "interactive" not in marks:
        page.wait_for_timeout(20)
        marks = dict(page.evaluate(MARKS))
    tasks = page.evaluate("tasks.map(task => [task.startTime, task.duration])")
    blocked = sum(max(0.0, took - STEADY_MS) for start, took in tasks if start < marks["interactive"])
    found = page.evaluate(FIND, [words, left])
    return dict(zip(TIMES, (marks["devices"], marks["interactive"], blocked, found), strict=True))
