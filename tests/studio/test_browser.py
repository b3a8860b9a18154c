"""The studio as a browser shows it: by keyboard alone, at three widths, by two people at once."""

import threading
from pathlib import Path

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

import uvicorn

from compressor.studio import serving
from compressor.studio.access import Access, Role
from compressor.studio.app import studio_app
from compressor.studio.desk import Desk
from compressor.studio.whatif import WhatIf
from compressor.target import Isa, Target
from workbench.tiny import TinyResNet, make_workload

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("needs /usr/bin/chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio on a socket, with a small network that was looked at; gives access and the address."""
    torch.manual_seed(0)
    desk = Desk(
        make_workload(TinyResNet(32).eval()), "small", Target(isa=Isa.X86_AVX2), tmp_path_factory.mktemp("runs")
    )
    with pytest.MonkeyPatch.context() as patch:
        servers = []
        make = uvicorn.Server
        patch.setattr(uvicorn, "Server", lambda config: servers.append(make(config)) or servers[-1])
        patch.setattr(WhatIf, "warm", lambda _: None)
        address, access = serving.Address(port=0), Access()
        opened = serving.listening_socket(address)
        port = opened.getsockname()[1]
        app = studio_app(desk, access, hosts=address.hosts(port))
        thread = threading.Thread(target=serving.serve, args=(app, address, opened))
        thread.start()
        desk.look().join()
        yield access, address, port
        servers[0].should_exit = True
        thread.join(10)


def _enter(browser, studio, role=Role.EDITOR, **window):
    access, address, port = studio
    page = browser.new_context(**window).new_page()
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


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1300, 800, 390])
def test_nothing_sticks_out(browser, studio, width, scheme) -> None:
    """The page is as wide as its window, asks for nothing elsewhere, and no script or style is refused."""
    page, seen = _enter(browser, studio, viewport={"width": width, "height": 900}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert seen == []
    page.context.close()


def test_the_keyboard_is_enough(browser, studio) -> None:
    """A slider by an arrow key, the recipe that comes of it, undo, and a box of the picture."""
    page, seen = _enter(browser, studio)
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


def test_two_people_see_one_draft(browser, studio) -> None:
    """What an editor changes a viewer sees, and cannot change."""
    editor, _ = _enter(browser, studio)
    viewer, _ = _enter(browser, studio, Role.VIEWER)
    editor.locator("[data-block]").first.click()
    viewer.wait_for_selector("#recipe:has-text('drop')")
    assert viewer.locator("[data-block]").first.is_disabled()
    editor.click("#undo")
    viewer.wait_for_selector("#recipe:has-text('Nothing is chosen')")
    for page in (editor, viewer):
        page.context.close()
