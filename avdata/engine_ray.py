"""Where shard jobs run on many machines: a Ray cluster, with the promises of the local engine.

Each worker is an actor of one CPU that does one job at a time. Before each item it tells a small actor beside
the driver which one it takes in hand; so a worker that is lost names its item, as in `avdata.engine`. A lost
node's job is done again elsewhere; an item that was in hand at three losses is banned. Jobs leave
their work in the set's folder (on a shared disk) or store, and send back only their entry.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from avdata.engine import CRASHES_ALLOWED, Ban, Function, Report, detail_of
from avdata.errors import AvdataError, Reason, UsageError

Job = TypeVar("Job")
LOOK_EVERY = 0.2  # seconds


class _Watch:
    """Who has which item in hand."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str]] = []

    def begin(self, worker: int, item: str) -> None:
        """Note that a worker begins an item."""
        self._begun.append((worker, item))

    def take(self) -> list[tuple[int, str]]:
        """What was begun since the last call, in order."""
        begun, self._begun = self._begun, []
        return begun


class _Hand:
    """A worker: does jobs, one at a time."""

    def run(self, function: Function, job: Any, watch: Any, number: int) -> tuple[str, Any]:
        """The job's result, or its error as a value: Ray cannot rebuild every exception."""
        import ray  # noqa: PLC0415

        def report(item: str) -> None:
            # Waited for: a worker that dies of the item must have said so.
            ray.get(watch.begin.remote(number, item))

        try:
            return "done", function(job, report)
        except Exception as error:  # whatever it is, the driver raises it
            return "error", error


@dataclass
class _Worker:
    actor: Any
    number: int
    job: Any = None
    ref: Any = None
    item: str | None = None
    late: bool = False
    since: float = field(default_factory=time.monotonic)


def run_jobs(
    function: Function,
    jobs: Sequence[Job],
    *,
    workers: int,
    item_timeout: float,
    ban: Ban[Job],
    on_item: Report = lambda item: None,
    address: str = "auto",
) -> Generator[Any, None, None]:
    """Results of `function(job, report)` for each job, in the order in which they are done.

    Args:
        function: a module-level function of a module that every node can import.
        jobs: what to run, the first ones first.
        workers: actors of one CPU each; 0 is one for every CPU of the cluster, as it grows and shrinks.
        item_timeout: seconds an item may take before its worker is killed and the item banned.
        ban: makes a job that leaves one item out, with the reason and a detail.
        on_item: called with each item that was begun.
        address: of the cluster, `auto` for the one this machine belongs to.

    Raises:
        UsageError: Ray is not installed.
        AvdataError: there is no cluster, or the function raised one.
        Exception: whatever else the function raised.
    """
    if not jobs:
        return
    ray = _connected(address)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    watch = ray.remote(_Watch).options(num_cpus=0, scheduling_strategy=here).remote()
    waiting = list(reversed(jobs))
    farm: dict[int, _Worker] = {}
    crashes: dict[str, int] = {}
    started = 0
    try:
        while waiting or any(worker.ref is not None for worker in farm.values()):
            size = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
            busy = sum(worker.ref is not None for worker in farm.values())
            while len(farm) < min(size, busy + len(waiting)):
                farm[started] = _Worker(ray.remote(_Hand).options(num_cpus=1).remote(), started)
                started += 1
            _hand_out(function, waiting, farm, watch)
            if not waiting:
                _let_go(ray, farm)
            refs = {worker.ref: worker for worker in farm.values() if worker.ref is not None}
            ready, _ = ray.wait(list(refs), timeout=LOOK_EVERY)
            _hear(ray, watch, farm, on_item)
            _kill_late(ray, farm, item_timeout)
            for worker in (refs[ref] for ref in ready):
                try:
                    kind, value = ray.get(worker.ref)
                except _losses(ray) as error:
                    del farm[worker.number]
                    waiting.append(_after_loss(ray, worker, error, crashes, ban, item_timeout))
                    continue
                worker.job = worker.ref = worker.item = None
                if kind == "error":
                    raise value
                yield value
    finally:
        for worker in farm.values():
            ray.kill(worker.actor)
        ray.kill(watch)


def _connected(address: str) -> Any:
    try:
        import ray  # noqa: PLC0415
        import ray.util.scheduling_strategies  # noqa: PLC0415
    except ImportError as error:
        msg = f"the engine ray cannot be loaded ({error})"
        raise UsageError(msg, hint="pip install 'avdata[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        except (ConnectionError, ValueError, RuntimeError) as error:
            msg = f"there is no Ray cluster at {address!r} ({str(error).splitlines()[0]})"
            raise AvdataError(msg, hint="start one with `ray start --head`, or give --ray-address") from error
    return ray


def _hand_out(function: Function, waiting: list[Any], farm: dict[int, _Worker], watch: Any) -> None:
    for worker in farm.values():
        if worker.ref is None and waiting:
            worker.job, worker.item, worker.since = waiting.pop(), None, time.monotonic()
            worker.ref = worker.actor.run.remote(function, worker.job, watch, worker.number)


def _let_go(ray: Any, farm: dict[int, _Worker]) -> None:
    """End workers that are idle: one that stands in for a lost node's waits for the CPU that they hold."""
    for number in [number for number, worker in farm.items() if worker.ref is None]:
        ray.kill(farm.pop(number).actor)


def _hear(ray: Any, watch: Any, farm: dict[int, _Worker], on_item: Report) -> None:
    for number, item in ray.get(watch.take.remote()):
        on_item(item)
        if number in farm and farm[number].ref is not None:
            farm[number].item, farm[number].since = item, time.monotonic()


def _kill_late(ray: Any, farm: dict[int, _Worker], item_timeout: float) -> None:
    for worker in farm.values():
        if worker.item is not None and not worker.late and time.monotonic() - worker.since > item_timeout:
            worker.late = True
            ray.kill(worker.actor)


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """How Ray says that a worker, or what it had made, is gone."""
    known = ray.exceptions
    return (known.RayActorError, known.ObjectLostError, known.NodeDiedError, known.OutOfMemoryError)


def _after_loss(
    ray: Any, worker: _Worker, error: Exception, crashes: dict[str, int], ban: Ban[Any], item_timeout: float
) -> Any:
    """The job to do instead of the one whose worker was lost."""
    if worker.late and worker.item is not None:
        return ban(worker.job, worker.item, Reason.TIMEOUT, detail_of(Reason.TIMEOUT, item_timeout))
    name = worker.item or ""
    if not name and _node_is_lost(ray, error):
        return worker.job
    # A lost node counts like a lost worker: what takes whole nodes along must not take them all.
    crashes[name] = crashes.get(name, 0) + 1
    if crashes[name] < CRASHES_ALLOWED:
        return worker.job
    if not name:
        msg = f"a worker could not start: {str(error).splitlines()[0]}"
        raise AvdataError(msg, hint="is avdata installed on every node, in the same version?") from error
    return ban(worker.job, name, Reason.CRASH, detail_of(Reason.CRASH, item_timeout))


def _node_is_lost(ray: Any, error: Exception) -> bool:
    if isinstance(error, (ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError)):
        return True
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    node = getattr(error, "node_id", None) or getattr(error, "_node_id", None)
    return "node died" in str(error).lower() or (node is not None and str(node) not in alive)
