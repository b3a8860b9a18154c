"""The studio as a browser shows it: by keyboard alone, at three widths, by two people at once."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from compressor.studio.access import Role
from compressor.studio.desk import Desk
from compressor.studio.whatif import WhatIf
from compressor.target import Isa, Target
from workbench.studio import long_picture, served
from workbench.tiny import TinyResNet, make_workload

pytestmark = pytest.mark.browser
AXE = Path(__file__).parent / "vendored" / "axe.min.js"
DESKS: dict[int, Desk] = {}


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio on a socket, with a small network that was looked at; gives access and the address."""
    torch.manual_seed(0)
    desk = Desk(
        make_workload(TinyResNet(32).eval()), "small", Target(isa=Isa.X86_AVX2), tmp_path_factory.mktemp("runs")
    )
    with pytest.MonkeyPatch.context() as patch, served(desk) as (access, address, port):
        patch.setattr(WhatIf, "warm", lambda _: None)
        desk.look().join()
        DESKS[port] = desk
        yield access, address, port
    desk.planning.end()


def _enter(chromium, studio, role=Role.EDITOR, **window):
    access, address, port = studio
    page = chromium.new_context(**window).new_page()
    seen: list[str] = []
    page.on("console", lambda message: seen.append(message.text))
    page.on("pageerror", lambda error: seen.append(str(error)))
    page.on("request", lambda request: seen.append(request.url) if f":{port}/" not in request.url else None)
    page.goto(address.link(port, access.token(role)))
    assert "token" not in page.url
    page.wait_for_selector("#plan", timeout=120_000)
    page.wait_for_selector("#graph")
    page.wait_for_selector("#runs-title")
    return page, seen


def _violations(page):
    """What axe-core finds that is serious or critical: the impact, the rule, and where."""
    page.evaluate(AXE.read_text())
    found = page.evaluate(
        """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
           .map((each) => [each.impact, each.id, each.nodes.map((node) => node.target.join(" ")).slice(0, 4)])"""
    )
    return [each for each in found if each[0] in {"serious", "critical"}]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 390])
def test_everybody_can_use_it(chromium, studio, width, scheme) -> None:
    """Names, contrast, order and roles as axe-core wants them, with all that can be opened open."""
    page, _ = _enter(chromium, studio, viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.locator("[data-width]").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#recipe:has-text('set_structure')")
    page.locator(".box").nth(1).click()
    page.wait_for_selector("#box h3")
    page.fill("#find", "conv")
    closed = page.locator("details:not([open]):not([hidden]) > summary")
    while closed.count():
        closed.first.click()
    found = _violations(page)
    page.click("#undo")
    page.wait_for_selector("#recipe:has-text('Nothing is chosen')")
    assert found == []
    page.context.close()


def test_the_door_and_a_watching_page_can_be_used(chromium, studio) -> None:
    """Those who come without a link, by another page's link, and to watch."""
    _, address, port = studio
    page = chromium.new_context().new_page()
    page.goto(f"http://127.0.0.1:{port}/")
    assert _violations(page) == []
    page.goto(address.link(port, "x" * 43))
    assert _violations(page) == []
    page.context.close()
    page, _ = _enter(chromium, studio, Role.VIEWER)
    assert _violations(page) == []
    page.context.close()


def test_every_control_has_a_name(chromium, studio) -> None:
    """As a screen reader says them: no two buttons of one name that do different things, none without."""
    page, _ = _enter(chromium, studio)
    named = page.evaluate(
        """() => [...document.querySelectorAll("button, input, select, a[href], summary")].map((item) =>
             [(item.getAttribute("aria-label") || [...(item.labels || [])].map((each) => each.innerText).join(" ")
               || item.innerText || "").trim(), item.id])"""
    )
    assert all(name for name, _ in named), named
    names = [name for name, _ in named]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)
    page.context.close()


def test_nothing_moves_for_those_who_do_not_want_it(chromium, studio) -> None:
    """With the system's setting no animation or transition runs, while the page waits and when all of it is there."""
    access, address, port = studio
    page = chromium.new_context(reduced_motion="reduce").new_page()
    page.goto(address.link(port, access.token(Role.VIEWER)))
    moving = "document.getAnimations().length"
    assert page.evaluate(moving) == 0
    page.wait_for_selector("#plan")
    assert page.evaluate(moving) == 0
    css = page.evaluate(
        """() => [...document.styleSheets].flatMap((sheet) => [...sheet.cssRules]).filter((rule) =>
             !(rule.media && rule.media.mediaText.includes("reduced-motion"))
             && /animation|transition|smooth/.test(rule.cssText)).map((rule) => rule.cssText)"""
    )
    assert css == []
    page.context.close()


def test_all_of_it_by_the_tabulator(chromium, studio) -> None:
    """Every control is reached by Tab, in the order in which the page is read, and shows that it is."""
    page, _ = _enter(chromium, studio, viewport={"width": 1300, "height": 900})
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("button:enabled, input:enabled, select:enabled")]
             .filter((item) => item.offsetParent && !item.closest("details:not([open])")).length"""
    )
    reached, tops = 0, []
    for _ in range(wanted + 40):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => { const item = document.activeElement, box = item.getBoundingClientRect();
               return [item.matches("button, input, select"), box.top + scrollY, getComputedStyle(item).outlineStyle,
                       item.matches(".box"), item === document.body] }"""
        )
        if found[4]:
            break
        reached += found[0]
        assert found[2] != "none" or found[3]
        tops.append(found[1])
    assert reached >= wanted
    page.context.close()


def test_five_thousand_operators(chromium, studio) -> None:
    """All of them are drawn as boxes, searched, and folded again."""
    desk = DESKS[studio[2]]
    kept, desk.picture = desk.picture, long_picture(5000)
    page, _ = _enter(chromium, studio)
    try:
        few = page.locator(".box").count()
        page.click("[data-detail=operators]")
        page.wait_for_selector(".box >> nth=4999", state="attached")
        page.fill("#find", "4711")
        page.wait_for_selector(".box.fits")
        assert page.locator(".box.fits").count() == 1
        page.click("[data-detail=blocks]")
        page.wait_for_selector("[data-detail=blocks][aria-pressed=true]")
        assert page.locator(".box").count() == few < 1000
    finally:
        desk.picture = kept
        page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 800, 390])
def test_nothing_sticks_out(chromium, studio, width, scheme) -> None:
    """The page is as wide as its window, asks for nothing elsewhere, and no script or style is refused."""
    page, seen = _enter(chromium, studio, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen == []
    page.context.close()


def test_the_keyboard_is_enough(chromium, studio) -> None:
    """A slider by an arrow key, the recipe that comes of it, undo, and a box of the picture."""
    page, seen = _enter(chromium, studio)
    page.locator("[data-width]").first.focus()
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector("#recipe:has-text('set_structure')")
    page.keyboard.press("Control+z")
    page.wait_for_selector("#recipe:has-text('Nothing is chosen')")
    page.locator(".box").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.wait_for_selector("#box h3")
    assert seen == []
    page.context.close()


def test_two_people_see_one_draft(chromium, studio) -> None:
    """What an editor changes a viewer sees, and cannot change."""
    editor, _ = _enter(chromium, studio)
    viewer, _ = _enter(chromium, studio, Role.VIEWER)
    editor.locator("[data-block]").first.click()
    viewer.wait_for_selector("#recipe:has-text('drop')")
    assert viewer.locator("[data-block]").first.is_disabled()
    editor.click("#undo")
    viewer.wait_for_selector("#recipe:has-text('Nothing is chosen')")
    for page in (editor, viewer):
        page.context.close()
