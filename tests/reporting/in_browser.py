"""Tests of report pages in headless Chromium, driven by playwright.

`test_browser.py` runs this file in a subprocess; `pytest tests/reporting/in_browser.py` runs it directly.
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

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
WIDTHS = {"phone": (390, 844), "desktop": (1280, 900)}
TIMEOUT_MS = 300_000
"""Long, because a busy machine is slow; test_browser.py ends a browser that hangs."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        # The system's browser (`make test` installs it), or that of `playwright install chromium`.
        executable = next(filter(None, map(shutil.which, BROWSERS)), None)
        # The sandbox fails for root and in containers without user namespaces. The pages are trusted.
        browser = play.chromium.launch(executable_path=executable, args=["--no-sandbox"], timeout=TIMEOUT_MS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, report_page: Path) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(report_page.as_uri())
    yield page
    context.close()


def visible_keys(page: Page, rows: str) -> list[str]:
    return page.eval_on_selector_all(
        f"{rows} > :not([hidden])", "items => items.map(item => item.dataset.text.split(' ')[0])"
    )


def test_page_loads_without_errors_and_requests(browser: Browser, report_page: Path) -> None:
    messages: list[str] = []
    requests: list[str] = []
    context = browser.new_context()
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()

    def record_message(message: ConsoleMessage) -> None:
        messages.append(message.text)

    page.on("console", record_message)
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report_page.as_uri())
    page.wait_for_load_state("networkidle")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report_page.as_uri()]
    context.close()


def test_all_images_load(page: Page) -> None:
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) > 50
    assert min(widths) > 0


def test_gallery_filters_by_flag_label_split_and_key(page: Page, report_dataset: Path) -> None:
    rows = {row["key"]: row for row in read_index(report_dataset).to_pylist()}
    all_keys = visible_keys(page, "#cards")
    flag = next(flag for row in rows.values() for flag in row["flags"])
    page.select_option("#gallery [name=flags]", flag)
    assert visible_keys(page, "#cards") == [key for key in all_keys if flag in rows[key]["flags"]]
    page.select_option("#gallery [name=flags]", "")
    page.select_option("#gallery [name=label]", "ANG")
    page.select_option("#gallery [name=split]", "train")
    assert visible_keys(page, "#cards") == [
        key for key in all_keys if (rows[key]["label_name"], rows[key]["split"]) == ("ANG", "train")
    ]
    assert "shown" in page.inner_text("#gallery output")
    page.select_option("#gallery [name=label]", "")
    page.select_option("#gallery [name=split]", "")
    page.fill("#gallery [name=text]", all_keys[3].lower())
    assert visible_keys(page, "#cards") == [all_keys[3]]


def test_quarantine_filters_by_reason_and_detail(page: Page, report_dataset: Path) -> None:
    rows = read_quarantine(report_dataset).to_pylist()
    page.select_option("#quarantine [name=reason]", "truncated")
    assert visible_keys(page, "#quarantine-rows") == [
        row["key"] for row in rows if row["reason"] == "truncated"
    ]
    page.select_option("#quarantine [name=reason]", "")
    page.fill("#quarantine [name=text]", "POINTER")
    assert visible_keys(page, "#quarantine-rows") == [
        row["key"] for row in rows if "pointer" in row["detail"]
    ]


def test_audio_plays_for_the_length_of_its_window(page: Page) -> None:
    seconds, window = page.eval_on_selector(
        "audio",
        """audio => new Promise((resolve, reject) => {
            audio.onloadedmetadata = () => resolve([audio.duration, Number(audio.dataset.seconds)]);
            audio.onerror = () => reject(audio.error.message);
            audio.load();
        })""",
    )
    assert seconds == pytest.approx(window, abs=0.001)
    play = """audio => new Promise(resolve => {
        audio.muted = true; audio.onended = () => setTimeout(() => resolve(audio.currentTime)); audio.play();
    })"""
    assert page.eval_on_selector("audio", play) == pytest.approx(window, abs=0.01)
    playhead = page.eval_on_selector(".card .playhead", "line => [line.hidden, parseFloat(line.style.left)]")
    assert playhead == [False, pytest.approx(100, abs=0.5)]


def test_on_a_phone_only_the_list_of_clips_scrolls(browser: Browser, report_page: Path) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844})
    page = context.new_page()
    page.goto(report_page.as_uri())
    overflow = """regions => regions.map(
        region => [region.scrollHeight - region.clientHeight, region.scrollWidth - region.clientWidth])"""
    assert {height for height, _ in page.eval_on_selector_all(".scroll:not(.long)", overflow)} == {0}
    assert {width for _, width in page.eval_on_selector_all(".scroll:has(.stack)", overflow)} == {0}
    assert page.eval_on_selector_all(".scroll.long", "regions => regions.length") == 1
    context.close()


def test_frames_and_spectrogram_share_one_axis(page: Page) -> None:
    boxes = page.eval_on_selector(
        ".card",
        "card => ['.frames', '.mel', '.mel img', '.axis'].map(name => card.querySelector(name))"
        ".map(element => element.getBoundingClientRect()).map(box => [box.left, box.right])",
    )
    assert all(box == pytest.approx(boxes[0], abs=0.5) for box in boxes)
    frames = page.eval_on_selector_all(
        ".card:first-child .frames img", "images => images.map(image => image.getBoundingClientRect().left)"
    )
    left, right = boxes[0]
    assert frames == pytest.approx([left + step * (right - left) / 4 for step in range(4)], abs=0.5)


def test_keyboard_reaches_the_skip_link_and_opens_the_metadata(page: Page) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#gallery .card summary")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("#gallery .card details", "details => details.open")
    assert "av_offset" in page.inner_text("#gallery .card details")


@pytest.mark.parametrize("fixture", ["report_page", "run_page"])
@pytest.mark.parametrize("width", WIDTHS)
def test_page_is_not_wider_than_the_screen(
    page: Page, request: pytest.FixtureRequest, fixture: str, width: str
) -> None:
    page.goto(request.getfixturevalue(fixture).as_uri())
    page.set_viewport_size({"width": WIDTHS[width][0], "height": WIDTHS[width][1]})
    content_width, screen_width = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert content_width <= screen_width


@pytest.fixture(scope="module")
def run_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    row = {"samples": 4, "precision": 0.75, "recall": 0.75, "f1": None}
    metrics = {
        "accuracy": 0.75,
        "loss": 0.5,
        "samples": 8,
        "per_class": {"same": row, "different": row},
        "confusion": [[3, 1], [1, 3]],
    }
    result = {
        "labels": ["same", "different"],
        "test": metrics,
        "val": metrics,
        "steps": 9,
        "energy": {"spikes": 2.5},
    }
    (run / "result.json").write_text(json.dumps(result))
    (run / "run.json").write_text(json.dumps({"config": {"preset": "nano"}, "model": {}, "set": "gone"}))
    rows = [f"{step},{1 / (step + 1)},{step / 10}" for step in range(10)]
    (run / "metrics.csv").write_text("\n".join(["step,train_loss,val_accuracy", *rows]))
    return snnergy.report(run)


@pytest.mark.parametrize("fixture", ["report_page", "run_page"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_serious_violation(
    browser: Browser, request: pytest.FixtureRequest, fixture: str, scheme: str, width: str
) -> None:
    path = request.getfixturevalue(fixture)
    size = {"width": WIDTHS[width][0], "height": WIDTHS[width][1]}
    context = browser.new_context(color_scheme=scheme, viewport=size)
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(path.as_uri())
    page.eval_on_selector_all("details", "items => items.forEach(item => { item.open = true; })")
    result = Axe().run(page).response
    assert result["passes"]
    serious = [
        (rule["id"], rule["impact"], rule["nodes"][0]["html"], rule["nodes"][0]["failureSummary"])
        for rule in result["violations"]
        if rule["impact"] in {"serious", "critical"}
    ]
    assert serious == []
    context.close()


def test_print_hides_the_controls_and_keeps_the_content(page: Page) -> None:
    page.emulate_media(media="print")
    assert not page.is_visible("#gallery .filters")
    assert not page.is_visible("audio")
    assert page.is_visible("#quarantine-rows tr")
    assert page.pdf().startswith(b"%PDF")
