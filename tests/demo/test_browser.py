"""The demo as a visitor meets it: the real app, in a real browser."""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from erasure import Edit
from tests.conftest import chromium
from tests.demo.running import ROOT, App

pytestmark = pytest.mark.browser

SHOTS = Path(os.environ.get("ERASURE_SCREENSHOTS", ROOT / "build" / "screenshots"))
PARTS = ("Erase", "Compare", "Sequence", "Attention", "Measure", "Export")
LONG = 300_000
"""Milliseconds that anything may take: how long says more of the machine than of the app."""
expect.set_options(timeout=LONG)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    options = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=chromium(), args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def profile(browser: Browser) -> Iterator[BrowserContext]:
    """A profile that keeps Gradio's scripts, compiled, from one visitor to the next."""
    context = browser.new_context(accept_downloads=True)
    yield context
    context.close()


@pytest.fixture
def visit(browser: Browser, profile: BrowserContext, running: App, request) -> Iterator:
    """Open the page as a new visitor, at a width, in light or dark; whatever is asked of others fails the test."""
    pages: list[Page] = []
    elsewhere, faults = [], []

    def open_page(width: int = 1440, *, dark: bool = False) -> Page:
        # Two visitors at once need a profile each.
        page = (browser.new_context(accept_downloads=True) if pages else profile).new_page()
        pages.append(page)
        nothing = {"origin": running.address.rstrip("/"), "storageTypes": "cookies,local_storage"}
        page.context.new_cdp_session(page).send("Storage.clearDataForOrigin", nothing)
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if dark else "light")
        page.set_default_timeout(LONG)
        inside = (running.address, "data:", "blob:")
        page.on("request", lambda asked: None if asked.url.startswith(inside) else elsewhere.append(asked.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        arrive(page, running.address)
        return page

    yield open_page
    for number, page in enumerate(pages):
        shoot(page, f"{request.node.name}-{number}")
        page.close()
        if page.context is not profile:
            page.context.close()
    assert not elsewhere
    assert not faults


def arrive(page: Page, address: str | None = None) -> None:
    page.goto(address) if address else page.reload()
    page.wait_for_selector("#erase-go")
    # The page has asked who this is once the browser keeps the answer.
    page.wait_for_function("localStorage.getItem('erasure-session') !== null")


def shoot(page: Page, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"{re.sub(r'[^a-z0-9-]+', '_', name)}.png", full_page=True)


def part(page: Page, name: str) -> None:
    """Go to a part of the page, and wait until it is drawn; a narrow page has some in a menu."""
    tab = page.get_by_role("tab", name=name, exact=True).locator("visible=true")
    if tab.count():
        tab.first.click()
    else:
        page.locator("#parts .overflow-menu button").first.click()
        page.locator("#parts .overflow-dropdown button", has_text=name).click()
    settle(page)


def settle(page: Page) -> None:
    """Wait until the page has not changed for a third of a second, or for three where a job keeps changing it.

    Gradio makes a part's pieces when it is first looked at. What is typed in that moment, as no visitor could, is lost.
    """
    page.evaluate(
        """() => new Promise(done => {
            const quiet = () => { watch.disconnect(); done(); };
            let timer = setTimeout(quiet, 333);
            const watch = new MutationObserver(() => { clearTimeout(timer); timer = setTimeout(quiet, 333); });
            watch.observe(document.body, {subtree: true, childList: true, attributes: true, characterData: true});
            setTimeout(quiet, 3000);
        })"""
    )


def press(page: Page, job: str) -> None:
    """Press a job's button and wait until it is done, and its results are shown."""
    # A job that is refused at once shows its Cancel for a moment, which a look from outside misses.
    page.evaluate(
        """selector => {
            window.began = false;
            const shown = () => { if (document.querySelector(selector)?.offsetParent) window.began = true; };
            new MutationObserver(shown).observe(document.body, {subtree: true, childList: true, attributes: true});
        }""",
        f"#{job}-cancel",
    )
    page.click(f"#{job}-go")
    page.wait_for_function("window.began")
    page.wait_for_selector(f"#{job}-cancel", state="hidden")
    settle(page)


def erase(page: Page, *concepts: str) -> None:
    """Choose concepts in the place of those that are chosen, and erase them; show a prompt."""
    choose(page, "concepts", *concepts)
    show(page, "a cat on the beach")
    press(page, "erase")


def show(page: Page, prompt: str) -> None:
    """Have a removal shown by a prompt alone: half of the pictures that the page begins with."""
    page.fill("#look textarea", prompt)


def choose(page: Page, field: str, *names: str) -> None:
    clear = page.locator(f"#{field} .remove-all")
    if clear.count() and clear.is_visible():
        clear.click()
    for name in names:
        page.fill(f"#{field} input", name)
        page.press(f"#{field} input", "Enter")
    page.press(f"#{field} input", "Escape")
    page.wait_for_timeout(300)


def choose_method(page: Page, name: str) -> None:
    """Search a method in the list and choose it."""
    page.fill("#method input", f"{name}:")
    page.get_by_role("option", name=re.compile(f"^{name}:")).click()
    settle(page)


def wrong(page: Page, job: str) -> str:
    """Return the line under a job's button that says what is wrong."""
    return page.locator(f"#{job}-bar .note.bad").inner_text()


def readings(page: Page, prompt: str, name: str) -> list[tuple[float, float]]:
    """Return how likely a concept is in each picture of a prompt, now and before."""
    section = page.locator("#before-after section", has=page.get_by_text(f"“{prompt}”"))
    texts = section.locator(".seen", has_text=name).all_inner_texts()
    return [tuple(map(float, re.findall(r"\d\.\d+", text))) for text in texts]  # type: ignore[misc]


def pictures(page: Page, prompt: str) -> list[str]:
    section = page.locator("#before-after section", has=page.get_by_text(f"“{prompt}”"))
    return [image.get_attribute("src") or "" for image in section.locator("img").all()]


def removed(page: Page) -> list[str]:
    return page.locator("#state span:nth-of-type(2) b").all_inner_texts()


def test_a_new_visitor_sees_an_example_and_one_click_erases_it(running: App, visit) -> None:
    page = visit()
    status, waiting = running.first
    assert (status, "loading PyTorch" in waiting) == (503, True)
    assert page.title() == "erasure"
    before = pictures(page, "a cat on the beach")
    assert len(before) == 4
    assert "Nothing is removed yet" in page.inner_text("#state")
    press(page, "erase")
    assert removed(page) == ["cat"]
    after = pictures(page, "a cat on the beach")
    assert after[0::2] == before
    assert all(one != other for one, other in zip(after[0::2], after[1::2], strict=True))
    gone, stays = readings(page, "a cat on the beach", "cat"), readings(page, "a dog on the beach", "dog")
    assert len(gone) == 4
    assert all(was > 0.5 for _, was in gone)
    assert sum(now > 0.5 for now, was in stays) >= 3


def test_a_reloaded_page_has_its_ledger_and_its_pictures(visit) -> None:
    page = visit()
    erase(page, "cat")
    shown = pictures(page, "a cat on the beach")
    arrive(page)
    expect(page.locator("#state")).to_contain_text("Removed now")
    assert removed(page) == ["cat"]
    assert pictures(page, "a cat on the beach") == shown
    part(page, "Compare")
    expect(page.locator("#slider img").first).to_be_visible()


def test_two_visitors_do_not_see_each_others_removals(visit) -> None:
    one, other = visit(), visit()
    show(one, "a cat on the beach")
    one.click("#erase-go")
    erase(other, "gun")
    one.wait_for_selector("#erase-cancel", state="hidden")
    expect(one.locator("#state")).to_contain_text("cat")
    assert removed(one) == ["cat"]
    assert removed(other) == ["gun"]


def test_compare_slides_and_shows_where_the_pair_that_is_chosen_differs(visit) -> None:
    page = visit()
    erase(page, "cat")
    part(page, "Compare")
    page.fill("#compare-prompts textarea", "a cat on the beach\na dog on the beach")
    page.fill("#seeds input, #seeds textarea", "0,1")
    press(page, "compare")
    assert page.locator("#grid .pair").count() == 4
    slides = page.locator("#slider img").evaluate_all("images => images.map(image => image.src)")
    assert len(set(slides)) == 2
    # The handle moves to its place when the pictures have come.
    loaded = "[...document.querySelectorAll('#slider img')].every(image => image.complete && image.naturalWidth > 0)"
    page.wait_for_function(loaded)
    settle(page)
    handle = page.get_by_test_id("slider")
    start = handle.bounding_box()
    assert start is not None
    page.mouse.move(start["x"] + start["width"] / 2, start["y"] + start["height"] / 2)
    page.mouse.down()
    page.mouse.move(start["x"] - 80, start["y"] + start["height"] / 2, steps=5)
    page.mouse.up()
    moved = handle.bounding_box()
    assert moved is not None
    assert moved["x"] < start["x"] - 40
    handle.focus()
    page.keyboard.press("ArrowRight")
    expect(handle).not_to_have_attribute("aria-valuenow", "0")
    by_key = handle.bounding_box()
    assert by_key is not None
    assert moved["x"] + 5 < by_key["x"] < start["x"]
    page.keyboard.press("Home")
    expect(handle).to_have_attribute("aria-valuenow", "0")
    page.keyboard.press("End")
    expect(handle).to_have_attribute("aria-valuenow", "100")
    shown = page.locator("#difference img").get_attribute("src")
    page.click("#pair input")
    page.get_by_role("option", name="a dog on the beach, seed 1").click()
    expect(page.locator("#compare-what")).to_contain_text("a dog on the beach")
    expect(page.locator("#difference img")).not_to_have_attribute("src", shown or "")


def test_prompts_and_hints_follow_what_is_removed_but_not_over_what_is_typed(visit) -> None:
    page = visit()
    part(page, "Export")
    expect(page.locator("#export-hint")).to_contain_text("Nothing is removed")
    part(page, "Erase")
    choose(page, "concepts", "castle")
    expect(page.locator("#look textarea")).to_have_value("a castle on the beach\na house on the beach")
    page.fill("#look textarea", "a castle in the snow")
    choose(page, "concepts", "gun", "castle")
    press(page, "erase")
    assert page.input_value("#look textarea") == "a castle in the snow"
    for name, hint in (("Export", "#export-hint"), ("Measure", "#measured")):
        part(page, name)
        expect(page.locator(hint)).to_contain_text(f"press {name}", ignore_case=True)
    part(page, "Attention")
    expect(page.locator("#words").locator("input, textarea")).to_have_value("castle, house")
    page.locator("#words").locator("input, textarea").fill("my own")
    part(page, "Compare")
    prompts = page.locator("#compare-prompts textarea")
    start = "a castle on the beach\na gun on the beach"
    expect(prompts).to_have_value(re.compile(f"^{start}"))
    part(page, "Sequence")
    page.click("#undo-go")
    part(page, "Compare")
    expect(prompts).to_have_value("a gun on the beach\na knife on the beach")
    part(page, "Attention")
    expect(page.locator("#words").locator("input, textarea")).to_have_value("my own")
    part(page, "Erase")
    expect(page.locator("#erase-basis")).to_contain_text("gun, castle removed. The ledger has changed since.")


def test_any_removal_is_taken_back_and_the_rest_stays(visit) -> None:
    page = visit()
    part(page, "Sequence")
    expect(page.locator("#ledger")).to_contain_text("Nothing is removed yet")
    expect(page.locator("#undo-go")).to_be_disabled()
    choose(page, "add", "cat", "gun")
    press(page, "add")
    assert page.locator("#ledger tbody tr").count() == 2
    page.click("#back input")
    page.get_by_role("option", name="001 cat").click()
    page.click("#undo-go")
    expect(page.locator("#ledger tr.undone")).to_contain_text("cat")
    assert removed(page) == ["gun"]
    press(page, "verify")
    expect(page.locator("#verify-bar")).to_contain_text("Verified")


def test_cancel_ends_a_fit_and_leaves_nothing_half_done(visit) -> None:
    page = visit()
    show(page, "a cat on the beach")
    choose_method(page, "esd")
    page.click("#erase-go")
    expect(page.locator("#erase-bar")).to_contain_text(re.compile(r"\d+ of 150.* left"))
    page.click("#erase-cancel")
    expect(page.locator("#erase-bar")).to_contain_text("Cancelled")
    assert "Nothing is removed yet" in page.inner_text("#state")
    choose_method(page, "uce")
    press(page, "erase")
    assert removed(page) == ["cat"]


def test_settings_are_those_of_the_method_with_what_the_visitor_typed(visit) -> None:
    page = visit()
    show(page, "a cat on the beach")
    choose_method(page, "esd")
    steps = page.get_by_label("steps", exact=True)
    expect(steps).to_have_value("150")
    steps.fill("-1")
    press(page, "erase")
    assert wrong(page, "erase").startswith("settings.steps: expected a number from 0 to ")
    choose_method(page, "uce")
    expect(page.locator("#settings").get_by_label("reg", exact=True)).to_have_value("0.5")
    expect(steps).to_have_count(0)
    choose_method(page, "esd")
    expect(steps).to_have_value("-1")
    choose_method(page, "uce")
    press(page, "erase")
    assert removed(page) == ["cat"]


def test_what_is_wrong_is_one_line_under_its_button_and_the_app_goes_on(visit) -> None:
    page = visit()
    erase(page, "<img src=x onerror=alert(1)>")
    assert wrong(page, "erase").startswith("Unknown concept of the tiny world '<img src=x onerror=alert(1)>'.")
    erase(page)
    assert wrong(page, "erase") == "concepts: expected at least one, got none. Choose or type a concept."
    choose(page, "concepts", "cat")
    page.fill("#look textarea", "x" * 5000)
    press(page, "erase")
    assert wrong(page, "erase") == "prompt: expected at most 1,000 characters, got 5,000. Shorten it."
    assert "Nothing is removed yet" in page.inner_text("#state")
    odd = "<b>a cat</b> ${alert(1)} {{value}} 🐈‍⬛"
    page.fill("#look textarea", f"{odd}\n{'a cat and a dog ' * 40}")
    press(page, "erase")
    assert removed(page) == ["cat"]
    assert page.locator("#before-after h4").first.inner_text() == f"“{odd}”"
    expect(page.locator("#before-after")).to_contain_text("The model reads only the beginning of")
    part(page, "Attention")
    page.fill("#attention-seed input", "-5")
    press(page, "attention")
    assert wrong(page, "attention").startswith("seed: expected a number from 0 to 9,007,199,254,740,992, got -5")
    page.fill("#attention-seed input", "0")
    page.fill("#words input, #words textarea", "unicorn")
    press(page, "attention")
    assert wrong(page, "attention").startswith("phrase: expected words of the prompt")


def test_a_folder_that_cannot_be_written_is_a_line(running: App, visit) -> None:
    page = visit()
    there = set(running.folder.glob("erasure-app-*/*/ledger"))
    erase(page, "cat")
    (mine,) = set(running.folder.glob("erasure-app-*/*/ledger")) - there
    edits = mine / "edits"
    shutil.rmtree(edits)
    edits.write_text("in the way")
    erase(page, "gun")
    assert re.search(r"expected .*, got ", wrong(page, "erase"))
    edits.unlink()
    assert page.locator("#erase-go").is_enabled()


def test_attention_is_drawn_for_each_word_and_step(visit) -> None:
    page = visit()
    part(page, "Attention")
    press(page, "attention")
    for picture in ("#plain img", "#guided img", "#sheet img"):
        expect(page.locator(picture)).to_be_visible()
    shown = page.locator("#plain img").get_attribute("src")
    page.locator("#word label").nth(1).click()
    expect(page.locator("#plain img")).not_to_have_attribute("src", shown or "")


def test_a_measure_is_shown_and_downloaded(visit) -> None:
    page = visit()
    erase(page, "cat")
    part(page, "Measure")
    page.fill("#images input[type=number]", "20")
    page.press("#images input[type=number]", "Tab")
    page.click("#measure-go")
    part(page, "Compare")  # it goes on meanwhile
    part(page, "Measure")
    page.wait_for_selector("#report-file", state="visible")
    expect(page.locator("#measured")).to_contain_text("efficacy")
    inside = page.frame_locator("#report iframe")
    expect(inside.locator("h1")).to_contain_text("cat")
    with page.expect_download() as download:
        page.click("#report-file")
    assert "</html>" in download.value.path().read_text(encoding="utf-8")


def test_an_export_is_an_edit_that_loads(visit) -> None:
    page = visit()
    part(page, "Export")
    press(page, "export")
    assert wrong(page, "export") == "export: expected a standing removal, got none. Erase a concept first."
    part(page, "Erase")
    erase(page, "cat")
    part(page, "Export")
    press(page, "export")
    with page.expect_download() as download:
        page.click("#export-file")
    assert download.value.suggested_filename == "edit.safetensors"
    assert Edit.load(download.value.path()).metadata.concepts[0].target == "cat"
    page.get_by_text("Model card", exact=True).click()
    expect(page.locator("#card")).to_contain_text("What was removed")
    page.get_by_text("To the Hugging Face Hub").click()
    press(page, "push")
    assert wrong(page, "push").startswith("token: expected one of the Hub with write access")
    assert page.locator("#token input").get_attribute("type") == "password"


@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_part_fits_its_width(visit, width: int, dark: bool) -> None:
    page = visit(width, dark=dark)
    if not dark:
        press(page, "erase")
    for name in PARTS:
        part(page, name)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        shoot(page, f"{name.lower()}-{width}-{'dark' if dark else 'light'}")


def test_erase_is_reached_and_pressed_by_the_keyboard(visit) -> None:
    page = visit()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "erase-go":
            break
    assert page.evaluate("document.activeElement.id") == "erase-go"
    page.keyboard.press("Enter")
    expect(page.locator("#state")).to_contain_text("Removed now")
