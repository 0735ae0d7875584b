"""The page in a real browser: Chromium without a window, driven by playwright.

Run by test_browser.py, in a process of its own; `pytest tests/reporting/in_browser.py` runs it too.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

import snnergy
from avdata.shards.reader import read_index, read_quarantine

SYSTEMS = ("chromium-headless-shell", "chromium", "google-chrome")
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
PATIENCE = 300_000
"""Milliseconds: a busy machine is no failure, and one that hangs is ended by who runs this."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        # The system's browser (`make test` installs it); else the one of `playwright install chromium`.
        system = next(filter(None, map(shutil.which, SYSTEMS)), None)
        # Its sandbox is refused to root, and to anybody where a container allows no namespaces; what it shows
        # is ours.
        launched = play.chromium.launch(executable_path=system, args=["--no-sandbox"], timeout=PATIENCE)
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Browser, shown_page: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(PATIENCE)
    opened = context.new_page()
    opened.goto(shown_page.as_uri())
    yield opened
    context.close()


def shown(page: Page, rows: str) -> list[str]:
    return page.eval_on_selector_all(
        f"{rows} > :not([hidden])", "held => held.map(one => one.dataset.text.split(' ')[0])"
    )


def test_the_page_loads_without_an_error_and_asks_for_nothing(browser: Browser, shown_page: Path) -> None:
    said: list[str] = []
    asked: list[str] = []
    context = browser.new_context()
    context.set_default_timeout(PATIENCE)
    page = context.new_page()

    def hear(message: ConsoleMessage) -> None:
        said.append(message.text)

    page.on("console", hear)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(shown_page.as_uri())
    page.wait_for_load_state("networkidle")
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [shown_page.as_uri()]
    context.close()


def test_every_picture_is_a_picture(page: Page) -> None:
    widths = page.eval_on_selector_all("img", "held => held.map(one => one.naturalWidth)")
    assert len(widths) > 50
    assert min(widths) > 0


def test_the_gallery_filters_by_flag_label_split_and_key(page: Page, shown_set: Path) -> None:
    rows = {row["key"]: row for row in read_index(shown_set).to_pylist()}
    everything = shown(page, "#cards")
    flag = next(flag for row in rows.values() for flag in row["flags"])
    page.select_option("#gallery [name=flags]", flag)
    assert shown(page, "#cards") == [key for key in everything if flag in rows[key]["flags"]]
    page.select_option("#gallery [name=flags]", "")
    page.select_option("#gallery [name=label]", "ANG")
    page.select_option("#gallery [name=split]", "train")
    assert shown(page, "#cards") == [
        key for key in everything if (rows[key]["label_name"], rows[key]["split"]) == ("ANG", "train")
    ]
    assert "shown" in page.inner_text("#gallery output")
    page.select_option("#gallery [name=label]", "")
    page.select_option("#gallery [name=split]", "")
    page.fill("#gallery [name=text]", everything[3].lower())
    assert shown(page, "#cards") == [everything[3]]


def test_the_quarantine_filters_by_reason_and_detail(page: Page, shown_set: Path) -> None:
    rows = read_quarantine(shown_set).to_pylist()
    page.select_option("#quarantine [name=reason]", "truncated")
    assert shown(page, "#quarantine-rows") == [row["key"] for row in rows if row["reason"] == "truncated"]
    page.select_option("#quarantine [name=reason]", "")
    page.fill("#quarantine [name=text]", "POINTER")
    assert shown(page, "#quarantine-rows") == [row["key"] for row in rows if "pointer" in row["detail"]]


def test_the_sound_plays_and_lasts_as_long_as_its_window(page: Page) -> None:
    seconds, window = page.eval_on_selector(
        "audio",
        """one => new Promise((done, failed) => {
            one.onloadedmetadata = () => done([one.duration, Number(one.dataset.seconds)]);
            one.onerror = () => failed(one.error.message);
            one.load();
        })""",
    )
    assert seconds == pytest.approx(window, abs=0.001)
    ended = """one => new Promise(done => {
        one.muted = true; one.onended = () => setTimeout(() => done(one.currentTime)); one.play();
    })"""
    assert page.eval_on_selector("audio", ended) == pytest.approx(window, abs=0.01)
    playhead = page.eval_on_selector(".card .playhead", "one => [one.hidden, parseFloat(one.style.left)]")
    assert playhead == [False, pytest.approx(100, abs=0.5)]


def test_on_a_phone_no_table_is_cut_off_but_the_list_of_clips_which_scrolls(
    browser: Browser, shown_page: Path
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(shown_page.as_uri())
    hidden = """held => held.map(
        one => [one.scrollHeight - one.clientHeight, one.scrollWidth - one.clientWidth])"""
    assert {down for down, _ in page.eval_on_selector_all(".scroll:not(.long)", hidden)} == {0}
    assert {aside for _, aside in page.eval_on_selector_all(".scroll:has(.stack)", hidden)} == {0}
    assert page.eval_on_selector_all(".scroll.long", "held => held.length") == 1
    context.close()


def test_frames_and_spectrogram_share_one_axis(page: Page) -> None:
    boxes = page.eval_on_selector(
        ".card",
        "card => ['.frames', '.mel', '.mel img', '.axis'].map(name => card.querySelector(name))"
        ".map(one => one.getBoundingClientRect()).map(box => [box.left, box.right])",
    )
    assert all(box == pytest.approx(boxes[0], abs=0.5) for box in boxes)
    frames = page.eval_on_selector_all(
        ".card:first-child .frames img", "held => held.map(one => one.getBoundingClientRect().left)"
    )
    left, right = boxes[0]
    assert frames == pytest.approx([left + step * (right - left) / 4 for step in range(4)], abs=0.5)


def test_the_keyboard_reaches_the_filters_and_opens_the_facts(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#gallery .card summary")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("#gallery .card details", "one => one.open")
    assert "av_offset" in page.inner_text("#gallery .card details")


@pytest.mark.parametrize("which", ["shown_page", "run_page"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_of_the_screen(
    page: Page, request: pytest.FixtureRequest, which: str, width: str
) -> None:
    page.goto(request.getfixturevalue(which).as_uri())
    page.set_viewport_size({"width": WIDTHS[width][0], "height": WIDTHS[width][1]})
    inside, screen = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert inside <= screen


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    held = {"accuracy": 0.75, "loss": 0.5, "samples": 8, "confusion": [[3, 1], [1, 3]]}
    result = {
        "labels": ["same", "different"],
        "test": held,
        "val": held,
        "steps": 9,
        "energy": {"spikes": 2.5},
    }
    (run / "result.json").write_text(json.dumps(result))
    (run / "config.json").write_text(json.dumps({"config": {"preset": "nano"}, "model": {}, "set": "gone"}))
    rows = [f"{step},{1 / (step + 1)},{step / 10}" for step in range(10)]
    (run / "metrics.csv").write_text("\n".join(["step,train_loss,val_accuracy", *rows]))
    return snnergy.report(run)


@pytest.mark.parametrize("which", ["shown_page", "run_page"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_fault(
    browser: Browser, request: pytest.FixtureRequest, which: str, scheme: str, width: str
) -> None:
    shown_page = request.getfixturevalue(which)
    size = {"width": WIDTHS[width][0], "height": WIDTHS[width][1]}
    context = browser.new_context(color_scheme=scheme, viewport=size)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.goto(shown_page.as_uri())
    page.eval_on_selector_all("details", "held => held.forEach(one => { one.open = true; })")
    said = Axe().run(page).response
    assert said["passes"]
    serious = [
        (fault["id"], fault["impact"], fault["nodes"][0]["html"], fault["nodes"][0]["failureSummary"])
        for fault in said["violations"]
        if fault["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    context.close()


def test_in_print_the_controls_are_gone_and_the_facts_stay(page: Page) -> None:
    page.emulate_media(media="print")
    assert not page.is_visible("#gallery .filters")
    assert not page.is_visible("audio")
    assert page.is_visible("#quarantine-rows tr")
    assert page.pdf().startswith(b"%PDF")
