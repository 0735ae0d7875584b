"""Ctrl-C and SIGTERM: exit codes 130 and 143, no half file, and the command resumes."""

from __future__ import annotations

import importlib.abc
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.http_server import running_server
from support.hub_fixtures import hub, own_set, slept
from support.hub_server import HubServer
from support.trees import digest_tree

import avdata
from avdata import interrupts
from avdata.__main__ import main
from avdata.interrupts import Terminated, deferred_interrupts, handle_interrupts, wait_for
from avdata.storage import atomic
from avdata.storage.atomic import atomic_write, remove_stale_parts

__all__ = ["hub", "own_set", "slept"]

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}

WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

RESUME = "Completed work is kept; run the same command again to resume"


def stop(number: signal.Signals) -> None:
    """Send a signal to this process, and let the main thread handle it."""
    os.kill(os.getpid(), number)


@pytest.fixture(autouse=True)
def _same_handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in CODES]
    yield
    assert [signal.getsignal(number) for number in CODES] == before


def nth(count: int, action: Callable[[], None], function: Any) -> Any:
    """Return a function that calls `action` before its call number `count`, counted from 1."""
    calls = 0

    def call(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == count:
            action()
        return function(*arguments, **options)

    return call


def run(words: list[Any], monkeypatch: pytest.MonkeyPatch, program: Callable[[], None] = main) -> int:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        program()
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("number", CODES)
def test_atomic_write_ends_before_a_signal_takes_effect(
    number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomic, "fsync", nth(1, lambda: stop(number), atomic.fsync))
    with pytest.raises((KeyboardInterrupt, Terminated)), handle_interrupts():
        atomic_write(tmp_path / "file", b"content")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"content"}


def test_a_second_signal_is_not_deferred() -> None:
    reached = []

    def work() -> None:
        with handle_interrupts(), deferred_interrupts():
            stop(signal.SIGINT)
            reached.append(1)
            stop(signal.SIGINT)
            reached.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == [1]


def test_handle_interrupts_leaves_ignored_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with handle_interrupts():
            stop(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_deferred_interrupts_of_a_thread_do_not_defer_the_main_thread() -> None:
    inside, done = threading.Event(), threading.Event()

    def work() -> None:
        with deferred_interrupts():
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=work)
    thread.start()
    inside.wait(60)
    with pytest.raises(KeyboardInterrupt), handle_interrupts():
        stop(signal.SIGINT)
    done.set()
    thread.join()


@pytest.mark.parametrize("number", CODES)
def test_command_exits_with_one_message_during_its_imports(
    number: signal.Signals, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(importlib.abc.MetaPathFinder):
        def find_spec(self, name: str, *_: object) -> None:
            if name == "avdata.cli.main":
                stop(number)

    monkeypatch.setattr(sys, "meta_path", [Slow(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "avdata.cli.main", raising=False)
    assert run(["recipes"], monkeypatch) == CODES[number]
    assert capsys.readouterr().err == f"error: {WORDS[number]}\nhint:  Run the command again\n"


def test_command_reports_a_signal_that_an_import_replaced_by_another_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def names() -> None:
        try:
            stop(signal.SIGINT)
        except KeyboardInterrupt:
            msg = "initialization of _module failed"
            raise ImportError(msg) from None

    monkeypatch.setattr("avdata.recipe.recipe_names", names)
    assert run(["recipes"], monkeypatch) == 130
    assert "error: interrupted\nhint:  Nothing to resume: run the command again" in capsys.readouterr().err


@pytest.mark.parametrize("number", CODES)
def test_prepare_resumes_after_a_signal(
    number: signal.Signals,
    cremad_mock: Path,
    cremad_set: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from avdata.pipeline import shard_job

    out = tmp_path / "out"
    words = ["prepare", "cremad", "--source", cremad_mock, "--output", out, "--workers", 0]
    words += ["--set", "video.size=48", "--set", "shards.samples_per_shard=4"]
    with monkeypatch.context() as patch:
        extract = nth(6, lambda: stop(number), shard_job.extract_features)
        patch.setattr(shard_job, "extract_features", extract)
        assert run(words, monkeypatch) == CODES[number]
    assert f"error: {WORDS[number]}\nhint:  {RESUME}" in capsys.readouterr().err
    left = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert [name for name in left if name.endswith(".tar")]
    assert not [name for name in left if "parts/" in name or name.endswith(".part")]
    # What a run leaves that is killed in a write.
    for name in ("dataset.json.4194304.part", ".avdata/plan.json.4194304.part", ".avdata/parts/a.tar.host.1"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_bytes(b"half")
    for path in out.rglob("*.tar"):  # the clock was changed between the runs
        os.utime(path, (2**32, 2**32))
    assert run(words, monkeypatch) == 0
    assert digest_tree(out) == digest_tree(cremad_set)


@pytest.mark.parametrize("number", CODES)
def test_download_resumes_after_a_signal(
    number: signal.Signals, cremad_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = json.loads((cremad_mock / "manifest.json").read_text())
    files = {entry["path"]: (cremad_mock / entry["path"]).read_bytes() for entry in facts["files"]}
    with running_server(files) as server:
        facts["sources"] = [{"name": "media", "urls": [server.url + "/{path}"]}]
        (tmp_path / "manifest.json").write_text(json.dumps(facts))
        manifest = avdata.load_manifest(tmp_path / "manifest.json")
        monkeypatch.setattr("avdata.sources.download.load_manifest", lambda name: manifest)
        monkeypatch.setattr("avdata.cli.sources.print_license", lambda recipe: None)
        words = ["download", "cremad", "--output", tmp_path / "raw", "--connections", 1]
        server.always = nth(6, lambda: stop(number), lambda handler, content: False)
        assert run(words, monkeypatch) == CODES[number]
        server.always, before = None, len(server.requests)
        assert before < len(files)
        assert run(words, monkeypatch) == 0
        assert len(server.requests) <= len(files) + 1
    got = {name: (tmp_path / "raw" / name).read_bytes() for name in files}
    assert got == files
    assert not list((tmp_path / "raw").rglob("*.part"))


def test_publish_and_pull_resume_after_sigterm(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from avdata.hub import publish, pull

    number, out = signal.SIGTERM, tmp_path / "pulled"
    words = ["publish", own_set, "--repo", "me/set"]
    with monkeypatch.context() as patch:
        patch.setattr(publish, "_stage", nth(1, lambda: stop(number), publish._stage))
        assert run(words, monkeypatch) == 143
    assert run(words, monkeypatch) == 0
    words = ["pull", "me/set", "--output", out]
    with monkeypatch.context() as patch:
        patch.setattr(pull, "_move_into_place", nth(3, lambda: stop(number), pull._move_into_place))
        assert run(words, monkeypatch) == 143
    assert not (out / "dataset.json").exists()
    (out / "dataset.json.4194304.part").write_bytes(b"half")
    assert run(words, monkeypatch) == 0
    assert digest_tree(out) == digest_tree(own_set)


def test_remove_stale_parts_keeps_the_files_of_others(tmp_path: Path) -> None:
    names = ("a.json.4194304.part", f"a.json.{os.getppid()}.part", "a.json.part", "b.json.4194304.part", "a")
    for name in names:
        (tmp_path / name).touch()
    remove_stale_parts(tmp_path, "a.json")
    assert {path.name for path in tmp_path.iterdir()} == set(names[1:])


def test_wait_for_returns_a_result_that_takes_longer_than_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "CHECK_SECONDS", 0.001)
    checked = threading.Event()

    class Slow(Future[int]):
        def result(self, timeout: float | None = None) -> int:
            try:
                return super().result(timeout)
            except TimeoutError:
                checked.set()
                raise

    future = Slow()
    threading.Thread(target=lambda: checked.wait(60) and future.set_result(7)).start()
    assert wait_for(future) == 7


@pytest.mark.parametrize("error", [TimeoutError("of the task"), OSError("of the task")])
def test_wait_for_raises_the_error_of_the_task(error: Exception) -> None:
    future: Future[int] = Future()
    future.set_exception(error)
    with pytest.raises(type(error), match="of the task"):
        wait_for(future)
