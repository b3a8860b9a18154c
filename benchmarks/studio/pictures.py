"""The pictures of docs/studio.md: a studio of the digits, used in headless Chromium as the text tells.

    python -m benchmarks.studio.pictures [--out docs/studio] [--chromium /usr/bin/chromium]

Colours are reduced to a palette, which a page of few of them does not show and which makes each file a few dozen KiB.
"""

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from workbench import ROOT
from workbench.studio import Studio

OUT = ROOT / "docs" / "studio"
_COLOURS = 96
_WIDE, _PHONE = {"width": 1180, "height": 800}, {"width": 390, "height": 800}
_MINUTE = 60_000


def keep(page: Page, path: Path, *selectors: str, margin: int = 10) -> None:
    """The part of the page that holds all of `selectors`, as a small PNG at `path`."""
    boxes = [page.locator(selector).first.bounding_box() for selector in selectors]
    found = [box for box in boxes if box is not None]
    window = page.viewport_size or _WIDE
    top = max(0, min(box["y"] for box in found) + page.evaluate("scrollY") - margin)
    bottom = max(box["y"] + box["height"] for box in found) + page.evaluate("scrollY") + margin
    clip = {"x": 0, "y": top, "width": window["width"], "height": bottom - top}
    raw = page.screenshot(full_page=True, clip=clip)
    image = Image.open(io.BytesIO(raw)).convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB")


def walk(page: Page, out: Path) -> None:
    """The walk-through of the docs: look, choose, narrow, run."""
    page.wait_for_selector("#plan", timeout=5 * _MINUTE)
    page.wait_for_selector("#choose:enabled", timeout=5 * _MINUTE)
    page.locator(".box[data-widths]").first.click()
    page.wait_for_selector("#box h3")
    keep(page, out / "picture.png", ".top", "#picture")
    page.fill("#percent", "50")
    page.click("#choose")
    page.wait_for_selector("#recipe:has-text('set_structure')")
    page.wait_for_selector("#tiles:has-text(', measured')", timeout=5 * _MINUTE)
    page.wait_for_selector("#tiles:not(:has-text('being measured'))", timeout=5 * _MINUTE)
    keep(page, out / "whatif.png", "#planning")
    page.fill("#draft-name", "half the time, 8 bits")
    page.click("#save")
    page.wait_for_selector("#drafts tr[aria-current]:has-text('half the time')")
    page.select_option("#form", "int8")
    page.wait_for_selector("#recipe:has-text('quantize')")
    keep(page, out / "drafts.png", "#drafts")
    page.click("#run")
    page.wait_for_selector("#runs .curves svg", timeout=5 * _MINUTE)
    keep(page, out / "run.png", "#runs")
    page.wait_for_selector("#runs .chip:text-is('done')", timeout=10 * _MINUTE)
    keep(page, out / "result.png", "#runs")


def main() -> None:
    """Starts a studio, walks through it, and leaves the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        studio = Studio("digits", Path(folder))
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport=_WIDE)
            page.goto(studio.link())
            walk(page, options.out)
            phone = browser.new_page(viewport=_PHONE, color_scheme="dark")
            phone.goto(studio.link("to watch"))
            phone.wait_for_selector("#plan", timeout=_MINUTE)
            keep(phone, options.out / "phone.png", ".top", "#picture")
        finally:
            browser.close()
            studio.end()


if __name__ == "__main__":
    main()
