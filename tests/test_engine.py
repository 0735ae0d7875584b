from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from avdata.engine import run_jobs
from avdata.errors import AvdataError, Reason


@dataclass(frozen=True)
class Job:
    items: tuple[str, ...]
    banned: tuple[tuple[str, Reason], ...] = field(default=())


def ban(job: Job, item: str, reason: Reason, detail: str) -> Job:
    return replace(job, banned=(*job.banned, (item, reason)))


def work(job: Job, report: Callable[[str], None]) -> tuple[tuple[str, ...], tuple[tuple[str, Reason], ...]]:
    done = []
    for item in job.items:
        if item in dict(job.banned):
            continue
        report(item)
        if item.startswith("/"):
            with open(item, "a", encoding="utf-8") as tally:
                tally.write(f"{os.getpid()}\n")
            os._exit(7)
        if item == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if item == "hang":
            threading.Event().wait()
        if item == "raise":
            msg = "this one raises"
            raise AvdataError(msg)
        done.append(item)
    return tuple(done), job.banned


def test_one_killer_item_is_banned_and_the_others_are_done() -> None:
    jobs = [Job(("a", "crash", "b")), Job(("c",))]
    results = set(run_jobs(work, jobs, workers=2, item_timeout=60, ban=ban))
    assert results == {(("a", "b"), (("crash", Reason.CRASH),)), (("c",), ())}


def test_a_crashed_job_is_retried_twice_each_time_in_a_new_process(tmp_path: Path) -> None:
    tally = tmp_path / "tally"
    results = list(run_jobs(work, [Job((str(tally), "b"))], workers=1, item_timeout=60, ban=ban))
    assert results == [(("b",), ((str(tally), Reason.CRASH),))]
    pids = tally.read_text(encoding="utf-8").split()
    assert len(pids) == len(set(pids)) == 3


def test_an_item_that_hangs_is_ended_and_banned() -> None:
    results = list(run_jobs(work, [Job(("hang", "b"))], workers=1, item_timeout=0.5, ban=ban))
    assert results == [(("b",), (("hang", Reason.TIMEOUT),))]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_work_is_raised_here(workers: int) -> None:
    with pytest.raises(AvdataError, match="this one raises"):
        list(run_jobs(work, [Job(("raise",))], workers=workers, item_timeout=60, ban=ban))


def test_no_work_starts_no_worker() -> None:
    assert list(run_jobs(work, [], workers=2, item_timeout=60, ban=ban)) == []
