"""What a person does with the studio, from the first look to a file that is taken away, in a browser."""

import json
from pathlib import Path

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")

from compressor.recipe.recipe import Recipe
from workbench.studio import Studio

pytestmark = pytest.mark.browser
_MINUTE = 60_000


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """A studio on the digits for Ada and Ben, as they would start it."""
    opened = Studio("digits", tmp_path_factory.mktemp("runs"), "--person", "ada", "--person", "ben")
    yield opened
    opened.end()


class Page:
    """A window of somebody who came in; `seen` is whatever the browser complained of."""

    def __init__(self, chromium, link, **window):
        self.context = chromium.new_context(accept_downloads=True, **window)
        self.page = self.context.new_page()
        self.seen: list[str] = []
        self.page.on("console", lambda message: self.seen.append(message.text) if message.type == "error" else None)
        self.page.on("pageerror", lambda error: self.seen.append(str(error)))
        self.page.on("dialog", lambda dialog: dialog.accept())
        self.page.goto(link)
        self.wait("#plan", 5 * _MINUTE)

    def wait(self, selector, ms=_MINUTE):
        return self.page.wait_for_selector(selector, timeout=ms)

    def narrow(self, steps=1):
        """The first width that can shrink, so many stops down, by the keyboard; gives its name."""
        slider = self.page.locator("[data-width]").first
        slider.focus()
        for _ in range(steps):
            self.page.keyboard.press("ArrowLeft")
        return slider.get_attribute("data-width")

    def text(self, selector):
        return self.page.locator(selector).first.inner_text()

    def close(self):
        self.context.close()


@pytest.fixture
def ada(chromium, studio):
    page = Page(chromium, studio.link("to edit, ada"))
    yield page
    page.close()


def test_the_network_is_seen_searched_folded_and_told(ada):
    """Where the time goes at once; a search marks boxes; operators unfold; a box says what it costs and leads on."""
    assert "ms a call" in ada.text("#overview h1")
    few = ada.page.locator(".box").count()
    ada.page.click("[data-detail=operators]")
    ada.wait("[data-detail=operators][aria-pressed=true]")
    assert ada.page.locator(".box").count() > few
    ada.page.fill("#find", "conv")
    ada.wait(".box.fits >> nth=3")
    assert "found" in ada.text("#found")
    wide = ada.page.locator("#graph").bounding_box()["width"]
    ada.page.click("[data-zoom='1.25']")
    assert ada.page.locator("#graph").bounding_box()["width"] == pytest.approx(1.25 * wide, rel=0.01)
    ada.page.click("[data-detail=layers]")
    ada.wait("[data-detail=layers][aria-pressed=true]")
    ada.page.locator(".box[data-widths]").first.click()
    ada.page.locator("[data-to-width]").first.click()
    assert ada.page.evaluate("document.activeElement.dataset.width")
    assert ada.seen == []


def test_a_slider_is_moved_and_taken_back(ada):
    """Numbers follow, the recipe says it, the picture marks it; undo, redo, and everything back."""
    before = ada.text("#tiles .value")
    name = ada.narrow()
    ada.wait(f"#recipe:has-text('{name}')")
    ada.wait(".box.narrow, .box.out")
    assert ada.text("#tiles .value") != before
    ada.page.click("#undo")
    ada.wait("#recipe:has-text('Nothing is chosen')")
    ada.page.click("#redo")
    ada.wait(f"#recipe:has-text('{name}')")
    ada.page.locator("[data-block]").first.click()
    ada.wait("#recipe:has-text('drop')")
    ada.wait(".box.out")
    ada.page.click("#whole")
    ada.wait("#recipe:has-text('Nothing is chosen')")
    assert ada.page.locator(".box.out, .box.narrow").count() == 0
    assert ada.seen == []


def test_the_knapsack_chooses_and_the_person_edits(ada):
    """Half of the time: widths and blocks of the least loss become the draft."""
    ada.wait("#choose:enabled", 5 * _MINUTE)
    ada.page.fill("#percent", "60")
    ada.page.click("#choose")
    ada.wait("#recipe:has-text('set_structure')")
    part = int(ada.text("#tiles .detail b").rstrip("%"))
    assert part <= 60
    ada.page.click("#whole")
    ada.wait("#recipe:has-text('Nothing is chosen')")


def test_drafts_are_saved_opened_renamed_and_deleted(ada):
    """Each by name, side by side with its numbers; the one that is open stands in the address."""
    ada.narrow()
    ada.wait("#recipe:has-text('set_structure')")
    ada.page.fill("#draft-name", "narrower")
    ada.page.click("#save")
    ada.wait("#drafts tr[aria-current]:has-text('narrower')")
    ada.page.fill("#draft-name", "narrow")
    ada.page.keyboard.press("Enter")
    ada.wait("#drafts tr[aria-current] b:text-is('narrow')")
    address = ada.page.url
    ada.page.reload()
    ada.wait("#plan")
    ada.wait("#drafts tr[aria-current] b:text-is('narrow')")
    assert ada.page.url == address
    ada.page.locator("#drafts [data-open]").first.click()
    ada.wait("#drafts tr[aria-current]:has-text('Draft 1')")
    ada.page.click("#undo")
    ada.wait("#recipe:has-text('Nothing is chosen')")
    ada.page.click("#drafts [data-open]:has-text('narrow')")
    ada.wait("#recipe:has-text('set_structure')")
    ada.page.click("#delete")
    ada.wait("#drafts tr[aria-current]:has-text('Draft 1')")
    ada.page.wait_for_selector("#drafts:has-text('narrow')", state="detached")
    assert ada.seen == []


def test_two_windows_of_one_draft(chromium, studio, ada):
    """The other sees an edit; of two at once the later one is told, sees what is there, and edits on."""
    other = Page(chromium, studio.link("to edit, ada"))
    ada.narrow()
    other.wait("#recipe:has-text('set_structure')")
    # Both have seen the same version; the other's stream is cut, so that it does not learn of the next.
    other.page.evaluate("silence()")
    ada.page.click("#undo")
    ada.wait("#recipe:has-text('Nothing is chosen')")
    other.page.locator("[data-block]").first.click()
    other.wait("#message:has-text('somebody else has edited')")
    other.wait("#recipe:has-text('Nothing is chosen')")
    other.page.locator("[data-block]").first.click()
    ada.wait("#recipe:has-text('drop')")
    ada.page.click("#undo")
    ada.wait("#recipe:has-text('Nothing is chosen')")
    # The refused edit is told by the browser as an answer of 409, and nothing else.
    assert all("409" in words for words in other.seen)
    other.close()


def test_people_with_their_own_drafts(chromium, studio, ada):
    """Ben sees Ada's draft in the table, opens it, cannot change it, and copies it."""
    ben = Page(chromium, studio.link("to edit, ben"))
    name = ada.narrow()
    ada.wait(f"#recipe:has-text('{name}')")
    assert "Nothing is chosen" in ben.text("#recipe")
    ben.page.click("#drafts [data-open]:has-text('ada')")
    ben.wait(f"#recipe:has-text('{name}')")
    assert ben.page.locator("[data-block]").first.is_disabled()
    ben.page.fill("#draft-name", "after Ada")
    ben.page.click("#save")
    ben.wait("#drafts tr[aria-current]:has-text('after Ada')")
    assert not ben.page.locator("[data-block]").first.is_disabled()
    ben.page.click("#delete")
    ada.page.click("#undo")
    ada.wait("#recipe:has-text('Nothing is chosen')")
    assert ben.seen == []
    ben.close()


def test_who_watches_changes_nothing(chromium, studio):
    """Every control is off, and a request that the page did not make is refused by the server."""
    page = Page(chromium, studio.link("to watch"))
    on = "#planning input:enabled, #planning select:enabled, #planning button:enabled, #run:enabled, [data-do]:enabled"
    assert page.page.locator(on).count() == 0
    status = page.page.evaluate(
        """async () => (await fetch("edit", { method: "POST", headers: { "x-csrf-token": document.body.dataset.csrf },
           body: JSON.stringify({ draft: "ada.1", version: 0, choice: {} }) })).status"""
    )
    assert status == 403
    page.close()


def test_whoever_leaves_is_out(chromium, studio):
    """The page is the door again, also by the address and the way back."""
    page = Page(chromium, studio.link("to watch"))
    page.page.click("#leave")
    page.page.wait_for_selector("text=Open the link that stands in the terminal")
    page.page.goto(page.page.url)
    assert page.page.locator("#plan").count() == 0
    page.close()


def test_a_run_is_begun_paused_gone_on_with_and_taken_away(chromium, studio, ada):
    """With its loss as it trains; what is taken away is the recipe that was seen, and a file."""
    ada.page.fill("#epochs", "40")
    ada.page.locator("#epochs").blur()
    ada.narrow(2)
    ada.wait("#recipe:has-text('epochs: 40')")
    recipe = ada.text("#recipe")
    ada.page.click("#run")
    ada.wait("#runs .run:has-text('going on')", 2 * _MINUTE)
    ada.wait("#runs .curves svg", 5 * _MINUTE)
    ada.page.click("[data-do=pause]")
    ada.wait("#runs .chip:text-is('paused')", 2 * _MINUTE)
    ada.page.click("[data-do=resume]")
    ada.wait("#runs .chip:text-is('done')", 10 * _MINUTE)
    with ada.page.expect_download() as got:
        ada.page.click("#runs a:has-text('recipe.yaml')")
    text = Path(got.value.path()).read_text()
    assert Recipe.loads(text).stages == Recipe.loads(recipe).stages
    with ada.page.expect_download() as got:
        ada.page.click("#runs a:has-text('report.json')")
    assert json.loads(Path(got.value.path()).read_text())["steps"]
    assert ada.page.locator("#runs figure svg").count() >= 2
    assert ada.page.locator("#runs figure svg .plot-front").count() >= 1
    assert ada.seen == []


def test_a_run_is_cancelled(ada):
    """Paused, then discarded: nothing is left of it."""
    ada.narrow(2)
    ada.wait("#recipe:has-text('set_structure')")
    ada.page.click("#run")
    ada.wait("#runs .run:has-text('going on') [data-do=pause]", 2 * _MINUTE)
    name = ada.page.locator("[data-do=pause]").first.get_attribute("data-run")
    ada.page.click("[data-do=pause]")
    ada.wait(f"[data-run={name}][data-do=discard]", 2 * _MINUTE)
    ada.page.click(f"[data-run={name}][data-do=discard]")
    ada.page.wait_for_selector(f"#{name}", state="detached")
    ada.page.click("#whole")


def test_the_studio_is_killed_in_the_middle_of_an_edit_and_of_a_run(chromium, tmp_path):
    """The page says so; begun again, the draft is as it was with its steps, and the run goes on where it was."""
    studio = Studio("digits", tmp_path / "runs")
    try:
        page = Page(chromium, studio.link())
        page.page.fill("#epochs", "60")
        page.page.locator("#epochs").blur()
        name = page.narrow(2)
        page.wait("#recipe:has-text('epochs: 60')")
        page.wait(f"#recipe:has-text('{name}')")
        page.page.click("#run")
        page.wait("#runs .curves svg", 5 * _MINUTE)
        # A slider on its way when the power fails.
        page.page.locator("[data-width]").nth(1).focus()
        page.page.keyboard.press("ArrowLeft")
        studio.kill()
        page.wait("#message.bad:has-text('does not answer')", 2 * _MINUTE)
        studio.begin()
        page.wait("#message.bad:has-text('started again')", 2 * _MINUTE)
        page.page.goto(studio.link())
        page.wait("#plan", 5 * _MINUTE)
        page.wait(f"#recipe:has-text('{name}')")
        assert "epochs: 60" in page.text("#recipe")
        page.wait("#runs .chip:text-is('paused')")
        page.page.click("[data-do=resume]")
        page.wait("#runs .chip:text-is('done')", 10 * _MINUTE)
        page.page.click("#undo")
        page.page.click("#undo")
        page.wait("#recipe:has-text('Nothing is chosen'), #recipe:not(:has-text('drop'))")
        page.close()
    finally:
        studio.end()
