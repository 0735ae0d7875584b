from __future__ import annotations

import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import engine_jobs
from support.engine_jobs import Excluded, Job, exclude_item, run_items

from avdata.errors import AvdataError, QuarantineReason
from avdata.pipeline.engines import base
from avdata.pipeline.engines import local as engine
from avdata.pipeline.engines.base import NO_ITEM, TaskQueue
from avdata.pipeline.engines.local import run_jobs
from avdata.pipeline.engines.ray import _ItemReporter


class Locked(Exception):
    """Exception that cannot be pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Locked, (threading.Lock(),)


class Strict(Exception):
    """Exception that cannot be unpickled from its arguments."""

    def __init__(self, what: str, *, why: str) -> None:
        super().__init__(f"{what}, {why}")


ODD = {"locked": Locked("locked words"), "strict": Strict("strict words", why="too")}


@pytest.fixture(autouse=True)
def _workers_import_support(monkeypatch: pytest.MonkeyPatch) -> None:
    tests = Path(engine_jobs.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tests}{os.pathsep}{tests.parent}")


def work(job: Job, report: Callable[[str], None]) -> tuple[tuple[str, ...], Excluded]:
    def act(item: str) -> None:
        if item.startswith("/"):
            with open(item, "a", encoding="utf-8") as tally:
                tally.write(f"{os.getpid()}\n")
            os._exit(7)
        if item in ODD:
            raise ODD[item]

    result = run_items(job, report, act)
    report(NO_ITEM)
    if "lost end" in job.items:
        os._exit(7)
    return result


def ends_slowly(job: Job, report: Callable[[str], None]) -> tuple[str, ...]:
    item, folder = job.items
    report(item)
    report(NO_ITEM)
    Path(folder, "at its end").touch()
    while not Path(folder, "go on").exists():
        threading.Event().wait(0.02)
    return job.items


def test_run_jobs_excludes_a_crashing_item_and_finishes_the_others() -> None:
    jobs = [Job(("a", "crash", "b")), Job(("c",))]
    results = set(run_jobs(work, jobs, workers=2, item_timeout=600, exclude=exclude_item))
    assert results == {(("a", "b"), (("crash", QuarantineReason.CRASH),)), (("c",), ())}


def test_run_jobs_retries_a_crashed_job_twice_in_new_processes(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    results = list(
        run_jobs(work, [Job((str(tally), "b"))], workers=1, item_timeout=600, exclude=exclude_item)
    )
    assert results == [(("b",), ((str(tally), QuarantineReason.CRASH),))]
    pids = tally.read_text(encoding="utf-8").split()
    assert len(pids) == len(set(pids)) == 3


def test_run_jobs_stops_and_excludes_an_item_that_hangs() -> None:
    results = list(run_jobs(work, [Job(("hang", "b"))], workers=1, item_timeout=3, exclude=exclude_item))
    assert results == [(("b",), (("hang", QuarantineReason.TIMEOUT),))]


@pytest.mark.parametrize("workers", [0, 1])
def test_run_jobs_raises_the_error_of_a_job(workers: int) -> None:
    with pytest.raises(AvdataError, match="this item raises"):
        list(run_jobs(work, [Job(("raise",))], workers=workers, item_timeout=600, exclude=exclude_item))


@pytest.mark.parametrize("odd", ODD)
def test_run_jobs_keeps_the_message_of_an_unpicklable_error(odd: str) -> None:
    with pytest.raises(RuntimeError, match=f"{odd} words"):
        list(run_jobs(work, [Job((odd,))], workers=1, item_timeout=60, exclude=exclude_item))


def test_run_jobs_takes_a_job_when_a_worker_is_free() -> None:
    taken = []

    def jobs() -> Iterator[Job]:
        for number in range(12):
            taken.append(number)
            yield Job((str(number),))

    results = run_jobs(work, jobs(), workers=2, item_timeout=600, exclude=exclude_item)
    for done, _ in enumerate(results):
        assert len(taken) <= done + 3  # two that run, and the next one
    assert len(taken) == 12


def test_task_queue_starts_the_task_of_a_lost_worker_next() -> None:
    queue = TaskQueue("abc")
    lost = queue.pop()
    queue.put_back(lost)
    assert [queue.pop().job for _ in range(queue.count(9))] == ["a", "b", "c"]
    assert not queue


def test_run_jobs_returns_no_results_for_no_jobs() -> None:
    assert list(run_jobs(work, [], workers=2, item_timeout=600, exclude=exclude_item)) == []


def test_run_jobs_applies_no_timeout_while_a_shard_is_committed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Advance the engine's clock by one day while the worker commits its shard."""
    looks = itertools.count()

    def monotonic() -> float:
        look = next(looks) if (tmp_path / "at its end").exists() else 0
        if look == 6:
            (tmp_path / "go on").touch()
        return time.monotonic() + (86_400 if look > 4 else 0)

    monkeypatch.setattr(engine, "_IDLE_POLL_INTERVAL_S", 0.02)
    monkeypatch.setattr(base, "time", SimpleNamespace(monotonic=monotonic))
    job = Job(("a", str(tmp_path)))
    assert list(run_jobs(ends_slowly, [job], workers=1, item_timeout=3600, exclude=exclude_item)) == [
        job.items
    ]
    assert next(looks) > 6


def test_run_jobs_excludes_no_item_if_workers_crash_while_committing_a_shard() -> None:
    with pytest.raises(AvdataError, match="3 workers in a row crashed while they finished a shard"):
        list(run_jobs(work, [Job(("lost end",))], workers=1, item_timeout=600, exclude=exclude_item))


def test_run_jobs_waits_until_items_are_ready() -> None:
    asked: Counter[str] = Counter()
    begun: list[str] = []

    def may_begin(item: str) -> bool:
        asked[item] += 1
        return asked[item] > 2

    jobs = [Job(("a", "b"))]
    results = list(
        run_jobs(
            work, jobs, workers=1, item_timeout=600, exclude=exclude_item, is_ready=may_begin,
            on_item=begun.append,
        )
    )  # fmt: skip
    assert (results, begun, asked) == ([(("a", "b"), ())], ["a", "b"], {"a": 3, "b": 3})


def test_item_reporter_batches_items_and_keeps_their_order() -> None:
    told: list[list[str]] = []
    watch = SimpleNamespace(begin=SimpleNamespace(remote=lambda turn, items: told.append(items)))
    teller = _ItemReporter(SimpleNamespace(get=lambda ref: ref), watch, 0, careful=False)
    teller("first")
    assert told == [["first"]]
    for number in range(1000):
        teller(str(number))
    teller.close()
    assert [item for items in told for item in items] == ["first", *map(str, range(1000))]
    assert len(told) < 10


def test_item_reporter_reports_each_item_before_it_starts_after_a_loss() -> None:
    told: list[list[str]] = []
    watch = SimpleNamespace(begin=SimpleNamespace(remote=lambda turn, items: told.append(items)))
    teller = _ItemReporter(SimpleNamespace(get=lambda ref: ref), watch, 0, careful=True)
    for item in "abc":
        teller(item)
        assert told[-1] == [item]


def test_worker_ends_quietly_when_its_parent_was_killed(capfd: pytest.CaptureFixture[str]) -> None:
    worker = engine._start(work, items_wait=False)
    worker.pipe.send(base.ShardTask(Job(("a",)), careful=True))
    assert worker.pipe.poll(60)
    worker.pipe.close()  # with unread messages: the connection is reset, not ended
    worker.process.wait(60)
    assert capfd.readouterr().err == ""
