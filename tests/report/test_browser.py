"""The report as a browser shows it."""

from dataclasses import replace

import pytest

from compressor.estimate import Estimate
from compressor.report.comparison import ComparisonRow, comparison_html
from compressor.report.explorer import Mark
from compressor.report.folds.page import folds_html
from workbench.report_samples import ALL, hostile, rollback
from workbench.several_samples import four_recipes, three_folds

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


def show(chromium, html: str, *, width: int, scheme: str = "light"):
    """The page in a window of `width`, and what it logged, asked for or popped up."""
    page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url))
    page.on("dialog", lambda dialog: (seen.append("dialog"), dialog.dismiss()))
    page.set_content(html)
    return page, seen


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1300, 800, 390])
def test_nothing_is_cut_off_and_no_labels_collide(chromium, name: str, width: int) -> None:
    """From a telephone to a desk, light and dark, a page is as wide as its window, and no two texts of a chart meet."""
    html = PAGES[name]()
    for scheme in ("light", "dark"):
        page, seen = show(chromium, html, width=width, scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate(_CUT) == []
        assert page.evaluate(_OVERLAPS) == []
        assert page.evaluate(_CROSSED) == []
        assert seen == []
        page.close()


def test_the_comparison_says_first_what_to_ship(chromium) -> None:
    """The conclusion stands above the picture."""
    page, _ = show(chromium, PAGES["comparison"](), width=800)
    assert page.locator(".lede").bounding_box()["y"] < page.locator("figure").first.bounding_box()["y"]
    page.close()


_NAMES = """() => Object.fromEntries([...document.querySelectorAll('figure .plot-label')]
  .filter(node => node.getBoundingClientRect().width)
  .map(node => [node.textContent, node.getBoundingClientRect().y]))"""


@pytest.mark.parametrize("width", [1300, 800])
def test_names_of_points_side_by_side_stand_as_the_points_do(chromium, width: int) -> None:
    """prune_distill_int8 lies a little above drop_blocks_distill_int8: so do their names."""
    page, _ = show(chromium, PAGES["comparison"](), width=width)
    names = page.evaluate(_NAMES)
    assert names["prune_distill_int8"] < names["drop_blocks_distill_int8"]
    page.close()


def explored(count: int, *, name: str = "recipe") -> list[ComparisonRow]:
    """The reference and `count` files, each slower and better than the one before it, of two kinds."""
    first = replace(four_recipes()[0], packed_bytes=1000)
    rows = [first]
    for number in range(count):
        ms, score = 0.2 + 3 * number / count, 0.7 + 0.19 * number / count
        rows.append(
            replace(
                four_recipes()[1],
                name=f"{name}_{number}",
                latency_ms=Estimate(ms, 0.99 * ms, 1.01 * ms),
                score=Estimate(score, score - 0.01, score + 0.01),
                size_bytes=1000 * (1 + number % 7),
                packed_bytes=None if number == 1 else 500 + number,
                pareto=number < 3,
                stages=("prune_channels", "distill") if number % 2 else ("quantize",),
                recipe=f"name: {name}_{number}\nstages: [quantize]",
                course=(Mark(stage="quantize", latency_ms=ms, size_bytes=1000, kept=True),),
            )
        )
    return rows


def test_the_comparison_is_explored(chromium) -> None:
    """Filters, the axis, sorting, a click and the keyboard: picture, table and what is known of the chosen file."""
    page, seen = show(chromium, comparison_html(explored(6), "six"), width=1280)
    assert page.locator("#explorer").is_visible()
    assert not page.locator(".still").first.is_visible()
    assert page.locator("#plot circle").count() == 7
    page.locator("#stages button", has_text="quantize").click()
    assert page.locator("#plot circle").count() == 4  # the reference stays
    assert page.locator("#table tbody tr:visible").count() == 4
    assert page.inner_text("#count") == "4 of 7 rows"
    page.locator("#stages button", has_text="quantize").click()
    page.fill("#find", "_5")
    assert page.locator("#table tbody tr:visible").count() == 2
    page.fill("#find", "")
    page.check("#front")
    assert page.locator("#plot circle").count() == 4
    page.uncheck("#front")
    # The second file is too large to be packed, so it has no place on that axis.
    page.select_option("#axis", "packed")
    assert page.locator("#plot circle").count() == 6
    page.select_option("#axis", "ms")
    page.locator("#table th button", has_text="latency").click()
    names = page.locator("#table tbody td.stage").all_inner_texts()
    assert [text.removeprefix("★ ") for text in names][:2] == ["recipe_0", "recipe_1"]
    page.locator("#table th button", has_text="latency").click()
    assert page.locator("#table th[aria-sort=descending]").count() == 1
    page.focus("#plot")
    page.keyboard.press("Home")
    assert page.inner_text("#chosen h3") == "recipe_0"
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#chosen h3") == "recipe_1"
    assert "name: recipe_1" in page.inner_text("#chosen pre")
    assert page.locator("#chosen a").get_attribute("href") == "./int8/report.html"
    assert page.locator("#chosen .fall li").count() == 1
    before = page.locator("#plot .plot-tick").all_inner_texts()
    page.keyboard.press("+")
    assert page.locator("#plot .plot-tick").all_inner_texts() != before
    page.keyboard.press("0")
    assert page.locator("#plot .plot-tick").all_inner_texts() == before
    box = page.locator("#plot circle").nth(3).bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.inner_text("#chosen h3") == "recipe_2"
    assert seen == []
    page.close()


def test_five_hundred_runs_open_at_once(chromium) -> None:
    """A page of 500 rows draws its picture with names on the front, and nothing sticks out of a telephone."""
    html = comparison_html(explored(500), "many")
    page, seen = show(chromium, html, width=390, scheme="dark")
    assert page.locator("#plot circle").count() == 501
    assert page.locator("#table tbody tr").count() == 501
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.evaluate(_CUT) == []
    assert page.evaluate(_OVERLAPS) == []
    assert seen == []
    page.close()


def test_hostile_names_end_no_script(chromium) -> None:
    """Names and recipes full of markup are shown as they are, and run nothing; no other script may run."""
    rows = explored(3, name="</script><script>alert(1)</script>")
    page, seen = show(chromium, comparison_html(rows, "<img src=x onerror=alert(1)>"), width=1280)
    page.focus("#plot")
    page.keyboard.press("Home")
    assert "</script><script>alert(1)</script>_0" in page.inner_text("#chosen")
    assert page.locator("script").count() == 2
    added = "const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s)"
    page.evaluate(f"() => {{ {added} }}")
    assert page.evaluate("window.ran") is None
    assert not any("dialog" in text for text in seen)
    page.close()


def test_hostile_names_run_nothing(chromium) -> None:
    """A report full of markup opens without a dialog, a request or an error."""
    page, seen = show(chromium, hostile().to_html(), width=1280)
    page.wait_for_timeout(200)
    assert seen == []
    assert page.locator("script, img, iframe").count() == 0
    assert "<script>alert(1)</script>" in page.inner_text("h1")
    page.close()


def test_dark_and_light_are_both_legible(chromium) -> None:
    """Text and background differ by a contrast of at least 7 in both colour schemes."""
    contrast = """() => {
      const light = text => { const [r, g, b] = text.match(/[0-9.]+/g).map(Number).map(v => v / 255)
        .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b }
      const style = getComputedStyle(document.body)
      const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x)
      return (a + .05) / (b + .05) }"""
    for scheme in ("light", "dark"):
        page, _ = show(chromium, rollback().to_html(), width=1280, scheme=scheme)
        assert page.evaluate(contrast) >= 7
        page.close()
