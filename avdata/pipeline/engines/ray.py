"""Where shard jobs run on many machines: a Ray cluster, with the promises of the local engine.

Each worker is an actor of one CPU that does one job at a time. Now and then it tells a small actor beside the
driver which items it took in hand: a message an item would keep that actor busy with some hundred workers. A
job whose worker was lost is done again elsewhere, and then each item is announced before it is begun; so an
item that was in hand at one loss after another is known, as in `avdata.pipeline.engines.local`, and banned.
Jobs leave their work in the set's folder (on a shared disk) or store, and send back only their entry.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from avdata.errors import AvdataError, QuarantineReason, UsageError
from avdata.pipeline.engines.base import (
    CRASHES_ALLOWED,
    NO_ITEM,
    ExcludeItem,
    Function,
    Job,
    Report,
    ShardTask,
    WorkerState,
    next_task,
    picklable_error,
)

POLL_INTERVAL_S = 0.2  # seconds

REPORT_INTERVAL_S = 0.5  # seconds


class _ItemTracker:
    """Who has which item in hand."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str]] = []

    def begin(self, turn: int, items: list[str]) -> None:
        """Note that a turn of a worker began items."""
        self._begun += [(turn, item) for item in items]

    def take(self) -> list[tuple[int, str]]:
        """What was begun since the last call, in order."""
        begun, self._begun = self._begun, []
        return begun


class _ItemReporter:
    """A job's `report`: tells the watch, of each item before it begins if `careful`, else now and then."""

    def __init__(self, ray: Any, watch: Any, turn: int, *, careful: bool) -> None:
        self._ray, self._watch, self._turn, self._careful = ray, watch, turn, careful
        self._pending: list[str] = []
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._send_periodically, daemon=True)
        self._started = False

    def __call__(self, item: str) -> None:
        with self._lock:
            self._pending.append(item)
        if self._careful or not self._started:
            self._ray.get(self._send())
            self._started = True
            if not self._careful:
                self._thread.start()

    def close(self) -> None:
        """Tell what is left."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self._ray.get(self._send())

    def _send(self) -> Any:
        with self._lock:
            items, self._pending = self._pending, []
        return self._watch.begin.remote(self._turn, items)

    def _send_periodically(self) -> None:
        while not self._closed.wait(REPORT_INTERVAL_S):
            if self._pending:
                self._send()


class _RayWorker:
    """A worker: does jobs, one at a time."""

    def run(self, function: Function, task: ShardTask[Any], watch: Any, turn: int) -> tuple[str, Any]:
        """The job's result, or its error as a value: Ray cannot rebuild every exception."""
        import ray  # noqa: PLC0415

        teller = _ItemReporter(ray, watch, turn, careful=task.careful)
        try:
            return "done", function(task.job, teller)
        except Exception as error:  # whatever it is, the driver raises it
            return "error", picklable_error(error)
        finally:
            teller.close()


@dataclass(kw_only=True)
class _Worker(WorkerState[Any]):
    actor: Any
    ref: Any = None
    turn: int = -1


def run_jobs(
    function: Function,
    jobs: Sequence[Job],
    *,
    workers: int,
    item_timeout: float,
    exclude: ExcludeItem[Job],
    on_item: Report = lambda item: None,
    address: str = "auto",
) -> Generator[Any, None, None]:
    """Run the jobs on a Ray cluster; see `base.RunJobs`.

    Args:
        function: see `RunJobs`; every node imports its module.
        jobs: see `RunJobs`.
        workers: actors of one CPU each; 0 is one for every CPU of the cluster, as it grows and shrinks.
        item_timeout: see `RunJobs`.
        exclude: see `RunJobs`.
        on_item: see `RunJobs`.
        address: of the cluster, `auto` for the one this machine belongs to.

    Raises:
        UsageError: Ray is not installed.
        AvdataError: there is no cluster.
    """
    if not jobs:
        return
    ray = _connected(address)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    watch = ray.remote(_ItemTracker).options(num_cpus=0, scheduling_strategy=here).remote()
    waiting = [ShardTask(job) for job in reversed(jobs)]
    farm: list[_Worker] = []
    turns: list[_Worker] = []
    crashes: dict[str, int] = {}
    try:
        while waiting or any(worker.task for worker in farm):
            size = workers or max(int(ray.cluster_resources().get("CPU", 1)), 1)
            busy = sum(worker.task is not None for worker in farm)
            while len(farm) < min(size, busy + len(waiting)):
                farm.append(_Worker(actor=ray.remote(_RayWorker).options(num_cpus=1).remote()))
            _dispatch(function, waiting, farm, turns, watch)
            if not waiting:
                _release_idle(ray, farm)
            refs = {worker.ref: worker for worker in farm if worker.task}
            ready, _ = ray.wait(list(refs), timeout=POLL_INTERVAL_S)
            _collect_reports(ray, watch, turns, on_item)
            _kill_overdue(ray, farm, item_timeout)
            for worker in (refs[ref] for ref in ready):
                try:
                    kind, value = ray.get(worker.ref)
                except _losses(ray) as error:
                    farm.remove(worker)
                    waiting.append(_after_loss(ray, worker, error, crashes, exclude, item_timeout))
                    continue
                worker.finish_task(crashes)
                if kind == "error":
                    raise value
                yield value
    finally:
        for worker in farm:
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


def _dispatch(
    function: Function, waiting: list[ShardTask[Any]], farm: list[_Worker], turns: list[_Worker], watch: Any
) -> None:
    for worker in farm:
        if worker.task is None and waiting:
            task = waiting.pop()
            worker.task, worker.item, worker.turn = task, NO_ITEM, len(turns)
            worker.ref = worker.actor.run.remote(function, task, watch, worker.turn)
            turns.append(worker)


def _release_idle(ray: Any, farm: list[_Worker]) -> None:
    """End workers that are idle: one that stands in for a lost node's waits for the CPU that they hold."""
    for worker in [worker for worker in farm if worker.task is None]:
        farm.remove(worker)
        ray.kill(worker.actor)


def _collect_reports(ray: Any, watch: Any, turns: list[_Worker], on_item: Report) -> None:
    for turn, item in ray.get(watch.take.remote()):
        if item != NO_ITEM:
            on_item(item)
        worker = turns[turn]
        if worker.turn == turn:
            worker.start_item(item)


def _kill_overdue(ray: Any, farm: list[_Worker], item_timeout: float) -> None:
    for worker in farm:
        if worker.is_overdue(item_timeout) and not worker.late:
            worker.late = True
            ray.kill(worker.actor)


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """How Ray says that a worker, or what it had made, is gone."""
    known = ray.exceptions
    return (known.RayActorError, known.ObjectLostError, known.NodeDiedError, known.OutOfMemoryError)


def _after_loss(
    ray: Any,
    worker: _Worker,
    error: Exception,
    crashes: dict[str, int],
    exclude: ExcludeItem[Any],
    item_timeout: float,
) -> ShardTask[Any]:
    """What to do instead of the task whose worker was lost."""
    assert worker.task is not None
    if worker.item == NO_ITEM and _node_is_lost(ray, error):
        return worker.task
    ending = str(error).splitlines()[0]
    if not worker.begun and crashes.get(NO_ITEM, 0) >= CRASHES_ALLOWED - 1:
        msg = f"a worker could not start: {ending}"
        raise AvdataError(msg, hint="is avdata installed on every node, in the same version?") from error
    # Over an item a lost node counts like a lost worker: what takes whole nodes along must not take them all.
    reason = QuarantineReason.TIMEOUT if worker.late and worker.item != NO_ITEM else QuarantineReason.CRASH
    return next_task(worker.task, worker.item, reason, crashes, exclude, item_timeout, ending)


def _node_is_lost(ray: Any, error: Exception) -> bool:
    if isinstance(error, (ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError)):
        return True
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    node = getattr(error, "node_id", None) or getattr(error, "_node_id", None)
    return "node died" in str(error).lower() or (node is not None and str(node) not in alive)
