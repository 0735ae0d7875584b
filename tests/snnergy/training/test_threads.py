from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from snnergy.training.checkpoint import read_config
from snnergy.training.config import TrainConfig
from snnergy.training.threads import IdleCores, choose_threads, cpu_quota, use_threads
from snnergy.training.trainer import train


@pytest.mark.parametrize(
    ("limits", "group", "expected"),
    [
        ({"": "150000 100000"}, "0::/", 1.5),
        ({"": "max 100000"}, "0::/", float("inf")),
        ({"a/b": "max 100000", "a": "200000 100000"}, "0::/a/b", 2.0),
        ({"a/b": "50000 100000", "a": "200000 100000"}, "12:cpu:/x\n0::/a/b", 0.5),
        ({}, "0::/gone", float("inf")),
    ],
)
def test_cpu_quota_is_the_smallest_of_all_groups(
    tmp_path: Path, limits: dict[str, str], group: str, expected: float
) -> None:
    for folder, limit in limits.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "cpu.max").write_text(limit + "\n")
    (tmp_path / "membership").write_text(group + "\n")
    assert cpu_quota(tmp_path, tmp_path / "membership") == expected


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[float], IdleCores]:
    """Idle cores of a machine with eight cores, of which this process may use four."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("snnergy.training.threads.cpu_quota", lambda: float("inf"))
    clock = iter([100.0, 110.0, 110.0])
    monkeypatch.setattr("snnergy.training.threads.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("snnergy.training.threads.time.process_time", lambda: 1.0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    ticks = os.sysconf("SC_CLK_TCK")

    def write(idle: float) -> None:
        rows = [f"cpu{core} 9 9 9 {round(idle * ticks)} 0 0" for core in range(8)]
        (tmp_path / "stat").write_text("\n".join(["cpu 1 1 1 1 1", *rows, "intr 1"]))

    def make(idle_each: float) -> IdleCores:
        write(50.0)
        cores = IdleCores(tmp_path / "stat")
        write(50.0 + 10 * idle_each)
        return cores

    return make


@pytest.mark.parametrize(("idle_each", "threads"), [(1.0, 4), (0.9, 4), (0.5, 2), (0.1, 1), (0.0, 1)])
def test_threads_follow_the_idle_cores(
    four_cores: Callable[[float], IdleCores], idle_each: float, threads: int
) -> None:
    assert choose_threads(None, None, four_cores(idle_each)) == threads


def test_threads_stay_below_the_quota(
    four_cores: Callable[[float], IdleCores], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = four_cores(1.0)
    monkeypatch.setattr("snnergy.training.threads.cpu_quota", lambda: 2.5)
    assert choose_threads(None, None, idle) == 2
    monkeypatch.setattr("snnergy.training.threads.cpu_quota", lambda: 0.5)
    assert choose_threads(None, None, idle) == 1


def test_threads_that_are_set_are_used(
    four_cores: Callable[[float], IdleCores], monkeypatch: pytest.MonkeyPatch
) -> None:
    idle = four_cores(0.0)
    assert choose_threads(3, 2, idle) == 3
    assert choose_threads(None, 2, idle) == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert choose_threads(None, None, idle) == 4


def test_idle_cores_without_proc_come_from_the_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    monkeypatch.setattr(os, "getloadavg", lambda: (2.5, 0.0, 0.0))
    monkeypatch.setattr("snnergy.training.threads.MEASURE_S", 0.0)
    assert IdleCores(tmp_path / "none").count() == 1.5


def test_use_threads_restores_the_number() -> None:
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_run_stores_its_threads_and_resumes_with_them(
    tiny_set: Path, tmp_path: Path, quick: Callable[..., TrainConfig]
) -> None:
    config = quick(steps=None, epochs=1, threads=2)
    result = train(tiny_set, tmp_path, config, device="cpu")
    assert result["threads"] == read_config(tmp_path)["threads"] == 2
    more = quick(steps=None, epochs=2, threads=None)
    assert train(tiny_set, tmp_path, more, device="cpu", resume=True)["threads"] == 2
