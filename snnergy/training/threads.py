"""Number of threads of a training on the CPU, from the cores that are free.

Threads that share a core with another program wait for one another at the end of every operation, and torch's
OpenMP library spins while it waits: two threads on two busy cores took 20 times as long as one. Three things
prevent that: no more threads than the cores of the process and its cgroup allow, no more than were idle when
the training began, and OMP_WAIT_POLICY=PASSIVE, which the command `snnergy` sets before torch is imported.

The number of threads changes the order of floating-point sums. A run stores its number and resumes with it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

STAT = Path("/proc/stat")

CGROUP = Path("/sys/fs/cgroup")

MEASURE_S = 0.2
"""Shortest time over which idle cores are measured; the kernel counts in hundredths of a second."""


def allowed_cores() -> set[int]:
    """Return the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_quota(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> float:
    """Return the number of cores that the cgroups of this process may use; infinite without a limit.

    Args:
        root: mount point of cgroup v2. A container sees its own group there.
        membership: file that names the group of the process.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    group = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    folders = [root / group, *(root / group).parents]
    quota = math.inf
    for folder in folders[: len(Path(group).parts) + 1]:
        try:
            limit, period = (folder / "cpu.max").read_text(encoding="utf-8").split()
            quota = min(quota, int(limit) / int(period))
        except (OSError, ValueError):  # the root group has no file; "max" is no number
            continue
    return quota


class IdleCores:
    """Measurement of the cores that other programs leave idle, from its creation on."""

    def __init__(self, stat: Path = STAT) -> None:
        self._stat, self._cores = stat, allowed_cores()
        self._began = self._now()

    def _now(self) -> tuple[float, float, float | None]:
        """Return the time, the CPU time of this process and the idle time of its cores, seconds."""
        try:
            rows = [line.split() for line in self._stat.read_text(encoding="utf-8").splitlines()]
            names = {f"cpu{core}" for core in self._cores}
            # Columns: name, user, nice, system, idle, iowait.
            ticks = sum(int(row[4]) + int(row[5]) for row in rows if row and row[0] in names)
            idle = ticks / os.sysconf("SC_CLK_TCK")
        except (OSError, ValueError, IndexError):
            idle = None
        return time.monotonic(), time.process_time(), idle

    def count(self) -> float:
        """Return the mean number of cores that were idle or used by this process."""
        time.sleep(max(0.0, self._began[0] + MEASURE_S - time.monotonic()))
        (began, own_before, idle_before), (now, own, idle) = self._began, self._now()
        total = len(self._cores)
        if idle is None or idle_before is None:  # not Linux
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
            return max(0.0, total - load)
        return min(total, (idle - idle_before + own - own_before) / (now - began))


def choose_threads(requested: int | None, stored: int | None, idle: IdleCores) -> int:
    """Return the number of threads of a training.

    Args:
        requested: setting `threads`.
        stored: number of threads of the run to resume; None for a new run.
        idle: measurement of the idle cores.

    Returns:
        `requested`, or `stored`, or torch's number if OMP_NUM_THREADS sets it; otherwise at most torch's
        number, the quota of the cgroup and the idle cores.
    """
    if requested or stored:
        return requested or stored or 1
    torch_threads = torch.get_num_threads()
    if "OMP_NUM_THREADS" in os.environ:
        return torch_threads
    limit = min(torch_threads, len(allowed_cores()), cpu_quota())
    # One and a half idle cores are enough for two threads.
    return max(1, min(int(limit), round(idle.count()))) if limit >= 2 else 1


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Set the number of torch's threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
