"""The studio's page on a screen: milliseconds to its first paint, and seconds from a click to thousands of operators.

    python -m benchmarks.studio.drawing [--operators 5000] [--tries 5] [--chromium /usr/bin/chromium]

Headless Chromium on this machine, the server in this process. First paint is the browser's own first-contentful-paint
of a window that knows nothing yet but its cookie. Every try of the operators has a picture of its own, of which nothing
is laid out or rendered yet.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.stored import RESULTS
from compressor.machine import environment
from compressor.storage import write_json
from compressor.studio.access import Role
from compressor.studio.desk import Desk
from compressor.studio.serving import keep_memory
from compressor.target import Target
from compressor.workloads import load
from workbench.studio import long_picture, served

RESULT = RESULTS / "studio_drawing.json"
GOAL_SECONDS = 2.0
_MINUTE = 60_000


def drawn_in(page: Page, count: int) -> float:
    """Seconds from the click that unfolds `count` operators to the frame that shows them."""
    page.click("[data-detail=blocks]")
    page.wait_for_selector("[data-detail=blocks][aria-pressed=true]", timeout=_MINUTE)
    begun = time.perf_counter()
    page.click("[data-detail=operators]")
    page.wait_for_selector(f".box >> nth={count - 1}", state="attached", timeout=_MINUTE)
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    return time.perf_counter() - begun


def painted_in(page: Page, address: str) -> float:
    """Milliseconds from the navigation to the first paint that shows anything."""
    page.goto(address)
    # The page's own policy forbids what Playwright's waiting evaluates.
    asked = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"
    while not (found := page.evaluate(asked)):
        page.wait_for_timeout(10)
    return float(found[0])


def measured(count: int, tries: int, chromium: str) -> tuple[list[float], list[float]]:
    """(milliseconds to the first paint, seconds to the operators), of each try."""
    painted, found = [], []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        desk = Desk(load("digits"), "digits", Target(), Path(folder))
        keep_memory()
        with served(desk) as (access, address, port):
            desk.picture = long_picture(count)
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            page.goto(address.link(port, access.token(Role.VIEWER)))
            for _ in range(tries):
                window = browser.new_context(storage_state=page.context.storage_state()).new_page()
                painted.append(painted_in(window, page.url))
                window.context.close()
            desk.events.publish("pictured", {"timed": True})
            page.wait_for_selector("#graph", timeout=_MINUTE)
            for _ in range(tries):
                desk.picture = long_picture(count)
                found.append(drawn_in(page, count))
            browser.close()
    return painted, found


def main() -> None:
    """Draws, and stores the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operators", type=int, default=5000)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--result", type=Path, default=RESULT)
    options = parser.parse_args()
    painted, seconds = measured(options.operators, options.tries, options.chromium)
    row: dict[str, Any] = {
        "operators": options.operators,
        "seconds": seconds,
        "median_seconds": statistics.median(seconds),
        "most_seconds": max(seconds),
        "goal_seconds": GOAL_SECONDS,
        "first_paint_ms": painted,
        "most_first_paint_ms": max(painted),
        "environment": environment(Target()),
    }
    write_json(options.result, row)
    print(f"first paint within {statistics.median(painted):.0f} ms in the median, {max(painted):.0f} ms at most")
    print(
        f"{options.operators} operators on the screen within {row['median_seconds']:.2f} s in the median of "
        f"{len(seconds)}, {row['most_seconds']:.2f} s at most"
    )


if __name__ == "__main__":
    main()
