"""The report as a browser shows it."""

from pathlib import Path

import pytest

from compressor.report.comparison import comparison_html
from compressor.report.folds.page import folds_html
from workbench.report_samples import ALL, four_recipes, hostile, rollback, three_folds

pytestmark = pytest.mark.browser

_CUT = """() => [...document.querySelectorAll('body *')]
  .filter(node => !node.closest('.scroll') && !node.closest('pre') && !node.closest('defs'))
  .filter(node => { const box = node.getBoundingClientRect(); return box.width && box.right > innerWidth + 1 })
  .map(node => node.tagName + '.' + node.getAttribute('class'))"""

_OVERLAPS = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(node => [node.textContent, node.getBoundingClientRect()])
  return texts.flatMap(([name, a], i) => texts.slice(i + 1)
    .filter(([, b]) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                    && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3)
    .map(([other]) => name + ' / ' + other))
})"""


_CROSSED = """() => [...document.querySelectorAll('figure svg')].flatMap(svg => {
  const bars = [...svg.querySelectorAll('.plot-whisker')].map(node => node.getBoundingClientRect())
  return [...svg.querySelectorAll('.plot-label')].flatMap(text => { const a = text.getBoundingClientRect()
    return bars.filter(b => Math.min(a.right, b.right) > Math.max(a.left, b.left)
                         && Math.min(a.bottom, b.bottom) > Math.max(a.top, b.top)).map(() => text.textContent) })
})"""


PAGES = {
    **{sample.__name__: lambda sample=sample: sample().to_html() for sample in ALL},
    "comparison": lambda: comparison_html(four_recipes(), "four", busy="busy"),
    "folds": lambda: folds_html(three_folds()),
}


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("needs /usr/bin/chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield opened
        opened.close()


def show(browser, html: str, *, width: int, scheme: str = "light"):
    """The page in a window of `width`, and what it logged, asked for or popped up."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url))
    page.on("dialog", lambda dialog: (seen.append("dialog"), dialog.dismiss()))
    page.set_content(html)
    return page, seen


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1300, 800, 390])
def test_nothing_is_cut_off_and_no_labels_collide(browser, name: str, width: int) -> None:
    """From a telephone to a desk, light and dark, a page is as wide as its window, and no two texts of a chart meet."""
    html = PAGES[name]()
    for scheme in ("light", "dark"):
        page, seen = show(browser, html, width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_CUT) == []
        assert page.evaluate(_OVERLAPS) == []
        assert page.evaluate(_CROSSED) == []
        assert seen == []
        page.close()


def test_the_comparison_says_first_what_to_ship(browser) -> None:
    """The conclusion stands above the picture."""
    page, _ = show(browser, PAGES["comparison"](), width=800)
    assert page.locator(".lede").bounding_box()["y"] < page.locator("figure").first.bounding_box()["y"]
    page.close()


def test_hostile_names_run_nothing(browser) -> None:
    """A report full of markup opens without a dialog, a request or an error."""
    page, seen = show(browser, hostile().to_html(), width=1280)
    page.wait_for_timeout(200)
    assert seen == []
    assert page.locator("script, img, iframe").count() == 0
    assert "<script>alert(1)</script>" in page.inner_text("h1")
    page.close()


def test_dark_and_light_are_both_legible(browser) -> None:
    """Text and background differ by a contrast of at least 7 in both colour schemes."""
    contrast = """() => {
      const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b }
      const style = getComputedStyle(document.body)
      const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x)
      return (a + .05) / (b + .05) }"""
    for scheme in ("light", "dark"):
        page, _ = show(browser, rollback().to_html(), width=1280, scheme=scheme)
        assert page.evaluate(contrast) >= 7
        page.close()
