"""Tests of report pages in headless Chromium, driven by playwright.

`test_browser.py` runs this file in a subprocess; `pytest tests/reporting/in_browser.py` runs it directly.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, sync_playwright

import snnergy
from avdata.shards.reader import read_index, read_info, read_quarantine

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


@pytest.fixture(scope="module")
def tab(browser: Browser) -> Iterator[Page]:
    """Yield the tab of all tests; a new context for each would cost more than most tests."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.set_default_timeout(TIMEOUT_MS)
    yield context.new_page()
    context.close()


@pytest.fixture
def page(tab: Page, report_page: Path) -> Page:
    """Return the dataset's page without filters. It is loaded once for consecutive tests."""
    if tab.url != report_page.as_uri():
        tab.goto(report_page.as_uri())
    tab.set_viewport_size({"width": 1280, "height": 900})
    tab.evaluate(
        "document.forms.length && [...document.forms].forEach(form => {"
        " form.reset(); form.dispatchEvent(new Event('input')); })"
    )
    return tab


def visible_keys(page: Page, rows: str) -> list[str]:
    return page.eval_on_selector_all(
        f"{rows} > :not([hidden])", "items => items.map(item => item.dataset.text.split(' ')[0])"
    )


def all_keys(page: Page, rows: str) -> list[str]:
    return page.eval_on_selector_all(f"{rows} > *", "items => items.map(item => item.dataset.text)")


def test_page_loads_without_errors_and_requests(tab: Page, report_page: Path) -> None:
    messages: list[str] = []
    requests: list[str] = []

    def record_message(message: ConsoleMessage) -> None:
        messages.append(message.text)

    def record_error(error: object) -> None:
        messages.append(str(error))

    def record_request(request: Request) -> None:
        requests.append(request.url)

    tab.on("console", record_message)
    tab.on("pageerror", record_error)
    tab.on("request", record_request)
    tab.goto(report_page.as_uri())
    tab.wait_for_load_state("networkidle")
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [report_page.as_uri()]


def test_all_images_load(page: Page) -> None:
    widths = page.eval_on_selector_all("img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) > 50
    assert min(widths) > 0


def test_gallery_filters_by_flag_label_split_and_key(page: Page, report_dataset: Path) -> None:
    rows = {row["key"]: row for row in read_index(report_dataset).to_pylist()}
    keys = all_keys(page, "#cards")
    flag = next(flag for row in rows.values() for flag in row["flags"])
    page.select_option("#gallery [name=flags]", flag)
    assert visible_keys(page, "#cards") == [key for key in keys if flag in rows[key]["flags"]]
    page.select_option("#gallery [name=flags]", "")
    page.select_option("#gallery [name=label]", "ANG")
    page.select_option("#gallery [name=split]", "train")
    expected = [key for key in keys if (rows[key]["label_name"], rows[key]["split"]) == ("ANG", "train")]
    assert visible_keys(page, "#cards") == expected[:12]
    assert "shown" in page.inner_text("#gallery output")
    page.select_option("#gallery [name=label]", "")
    page.select_option("#gallery [name=split]", "")
    page.fill("#gallery [name=text]", keys[3].lower())
    assert visible_keys(page, "#cards") == [keys[3]]


def test_search_finds_samples_without_a_card(tab: Page, report_page: Path, tmp_path: Path) -> None:
    keys = json.dumps([["train", "ANG", "9001_a 9002_b"], ["val", "SAD", "9003_c"]]).replace('"', "&#34;")
    listed = f'<p class="small others" data-keys="{keys}" data-dataset="out/set" hidden></p>'
    text = report_page.read_text(encoding="utf-8")
    assert text.count('<div id="cards">') == 1
    copy = tmp_path / "report.html"
    copy.write_text(text.replace('<div id="cards">', listed + '<div id="cards">'), encoding="utf-8")
    tab.goto(copy.as_uri())
    assert not tab.is_visible(".others")
    tab.fill("#gallery [name=text]", "900")
    assert tab.inner_text(".others").startswith(
        "Samples without a card: 9001_a (train, ANG), 9002_b (train, ANG), 9003_c (val, SAD). Show one with:"
        " avdata inspect out/set KEY"
    )
    tab.select_option("#gallery [name=split]", "val")
    assert ": 9003_c (val, SAD). " in tab.inner_text(".others")
    tab.fill("#gallery [name=text]", "no such key")
    assert not tab.is_visible(".others")


def test_gallery_shows_twelve_cards_and_more_on_demand(page: Page) -> None:
    keys = all_keys(page, "#cards")
    assert len(keys) > 13
    assert visible_keys(page, "#cards") == keys[:12]
    page.click("text=Show 12 more")
    assert visible_keys(page, "#cards") == keys[:24]
    assert page.evaluate("document.activeElement.closest('.card').id") == f"s-{keys[12]}"
    page.fill("#gallery [name=text]", keys[0])
    assert not page.is_visible(".more")
    page.evaluate("key => { location.hash = `#s-${key}`; }", keys[-1])
    page.wait_for_selector(f"#s-{keys[-1]}")
    assert visible_keys(page, "#cards") == keys


def test_link_of_a_flag_filters_the_gallery(page: Page, report_dataset: Path) -> None:
    rows = {row["key"]: row for row in read_index(report_dataset).to_pylist()}
    flag = page.inner_text("a[data-filter] >> nth=0")
    page.click("a[data-filter] >> nth=0")
    keys = [key for key in all_keys(page, "#cards") if flag in rows[key]["flags"]]
    assert visible_keys(page, "#cards") == keys


def wait_for(page: Page, condition: str) -> None:
    """Wait until a condition in JavaScript holds.

    `page.wait_for_function` checks it a second time with `eval`, which the policy of the page forbids.
    """
    check = f"() => ({condition}) ? resolve() : requestAnimationFrame(check)"
    page.evaluate(f"() => new Promise(resolve => {{ const check = {check}; check(); }})")


def test_viewer_enlarges_a_card_plays_it_and_steps_by_keys(page: Page) -> None:
    keys = all_keys(page, "#cards")
    width = page.eval_on_selector(".card .frames", "frames => frames.clientWidth")
    page.focus(".zoom >> nth=0")
    page.keyboard.press("Enter")
    assert page.inner_text("#viewer h2") == keys[0]
    assert page.eval_on_selector("#viewer .frames", "frames => frames.clientWidth") > 2 * width
    wait_for(page, "document.querySelector('#viewer audio').currentTime > 0")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#viewer h2") == keys[1]
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#viewer h2") == keys[11]
    page.keyboard.press("Escape")
    # The dialog's event `close`, which moves the focus, follows the key.
    wait_for(page, f"document.activeElement.closest('.card')?.id === 's-{keys[11]}'")


def test_tables_sort_by_number_and_by_text(page: Page, report_dataset: Path) -> None:
    info = read_info(report_dataset)
    first = "#splits table.labels tbody tr:first-child th"
    page.click("#splits table.labels th:nth-child(2) button")
    counts = info["splits"][next(iter(info["splits"]))]["labels"]
    assert counts[page.inner_text(first)] == max(counts.values())
    page.click("#splits table.labels th:first-child button")
    assert page.inner_text(first) == min(info["labels"])
    page.click("#splits table.labels th:first-child button")
    assert page.inner_text(first) == max(info["labels"])


def test_quarantine_is_saved_as_csv(page: Page, report_dataset: Path) -> None:
    page.evaluate("document.querySelector('#quarantine-rows .detail').textContent = '=cmd|\"x\"'")
    with page.expect_download() as download:
        page.click("text=Save as CSV")
    with Path(download.value.path()).open(newline="") as lines:
        rows = list(csv.reader(lines))
    stored = read_quarantine(report_dataset).to_pylist()
    assert rows[0] == ["clip", "reason", "detail", "usable parts"]
    assert [row[:2] for row in rows[1:]] == [[row["key"], row["reason"]] for row in stored]
    assert rows[1][2] == '\'=cmd|"x"'
    page.reload()


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


def test_on_a_phone_only_the_list_of_clips_scrolls(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    overflow = """regions => regions.map(
        region => [region.scrollHeight - region.clientHeight, region.scrollWidth - region.clientWidth])"""
    assert {height for height, _ in page.eval_on_selector_all(".scroll:not(.long)", overflow)} == {0}
    assert {width for _, width in page.eval_on_selector_all(".scroll", overflow)} == {0}
    assert page.eval_on_selector_all(".scroll.long", "regions => regions.length") == 1


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
    page.reload()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.focus("#gallery .card summary")
    page.keyboard.press("Enter")
    assert page.eval_on_selector("#gallery .card details", "details => details.open")
    assert "av_offset" in page.inner_text("#gallery .card details")


@pytest.mark.parametrize("fixture", ["report_page", "run_page", "runs_page"])
def test_page_is_not_wider_than_the_screen(tab: Page, request: pytest.FixtureRequest, fixture: str) -> None:
    tab.goto(request.getfixturevalue(fixture).as_uri())
    for width, height in WIDTHS.values():
        tab.set_viewport_size({"width": width, "height": height})
        content_width = tab.evaluate("document.documentElement.scrollWidth")
        assert content_width <= width


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


@pytest.fixture(scope="module")
def runs_page(run_page: Path) -> Path:
    run = run_page.parent
    other = Path(shutil.copytree(run, run.with_name("other")))
    (other / "run.json").write_text(json.dumps({"config": {"preset": "small"}, "model": {}, "set": "gone"}))
    return snnergy.report(run, against=[other])


def test_print_hides_the_controls_and_keeps_the_content(page: Page) -> None:
    page.emulate_media(media="print")
    assert not page.is_visible("#gallery .filters")
    assert not page.is_visible("audio")
    assert page.is_visible("#quarantine-rows tr")
    assert page.is_visible("#splits table.labels th button.sort")
    assert page.pdf().startswith(b"%PDF")
    page.emulate_media(media="screen")


@pytest.mark.parametrize("fixture", ["report_page", "run_page", "runs_page"])
def test_axe_finds_no_serious_violation(tab: Page, request: pytest.FixtureRequest, fixture: str) -> None:
    tab.goto(request.getfixturevalue(fixture).as_uri())
    # Cards and rows come from one template each: four of them have all parts, and axe is slow.
    tab.eval_on_selector_all(
        "#cards, tbody",
        "lists => lists.forEach(list => [...list.children].slice(4).forEach(it => it.remove()))",
    )
    tab.eval_on_selector_all("details", "items => items.forEach(item => { item.open = true; })")
    for scheme, width in (("light", "phone"), ("dark", "desktop")):
        tab.emulate_media(media="screen", color_scheme=scheme)
        tab.set_viewport_size({"width": WIDTHS[width][0], "height": WIDTHS[width][1]})
        result = Axe().run(tab).response
        assert result["passes"]
        serious = [
            (rule["id"], rule["impact"], rule["nodes"][0]["html"], rule["nodes"][0]["failureSummary"])
            for rule in result["violations"]
            if rule["impact"] in {"serious", "critical"}
        ]
        assert serious == []
