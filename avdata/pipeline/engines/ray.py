"""Ray engine: run shard jobs on a cluster, with the guarantees of the local engine.

Each worker is an actor that runs one job at a time, as a task with the name of the shard. It reports its
items in batches to a small actor beside the driver: one message per item would overload that actor with some
hundred workers. After a lost worker, the job runs elsewhere and reports each item before it begins. Jobs
write to the dataset's folder (on a shared disk) or to object storage, and return only their journal entry.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterable
from dataclasses import asdict, dataclass
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
    TaskQueue,
    WorkerState,
    next_task,
    picklable_error,
)
from avdata.pipeline.engines.ray_options import RayOptions

POLL_INTERVAL_S = 0.2

REPORT_INTERVAL_S = 0.5


class _ItemTracker:
    """Actor that collects the items that workers report."""

    def __init__(self) -> None:
        self._begun: list[tuple[int, str]] = []

    def begin(self, turn: int, items: list[str]) -> None:
        """Record that a turn of a worker began items."""
        self._begun += [(turn, item) for item in items]

    def take(self) -> list[tuple[int, str]]:
        """Return the items that began since the last call, in order."""
        begun, self._begun = self._begun, []
        return begun


class _ItemReporter:
    """Report callable of a job: sends each item at once if `careful`, else every `REPORT_INTERVAL_S`."""

    def __init__(self, ray: Any, tracker: Any, turn: int, *, careful: bool) -> None:
        self._ray, self._tracker, self._turn, self._careful = ray, tracker, turn, careful
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
        """Send the remaining items."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        self._ray.get(self._send())

    def _send(self) -> Any:
        with self._lock:
            items, self._pending = self._pending, []
        return self._tracker.begin.remote(self._turn, items)

    def _send_periodically(self) -> None:
        while not self._closed.wait(REPORT_INTERVAL_S):
            if self._pending:
                self._send()


class _RayWorker:
    """Actor that runs one job at a time."""

    def run(self, function: Function, task: ShardTask[Any], tracker: Any, turn: int) -> tuple[str, Any]:
        """Return the job's result, or its error as a value: Ray cannot rebuild every exception."""
        import ray  # noqa: PLC0415

        reporter = _ItemReporter(ray, tracker, turn, careful=task.careful)
        try:
            return "done", function(task.job, reporter)
        except Exception as error:  # the driver raises it
            return "error", picklable_error(error)
        finally:
            reporter.close()


@dataclass(kw_only=True)
class _Worker(WorkerState[Any]):
    actor: Any
    ref: Any = None
    turn: int = -1


def run_jobs(
    function: Function,
    jobs: Iterable[Job],
    *,
    workers: int,
    item_timeout: float,
    exclude: ExcludeItem[Job],
    on_item: Report = lambda item: None,
    address: str = "auto",
    options: RayOptions = RayOptions(),  # noqa: B008  # frozen
) -> Generator[Any, None, None]:
    """Run the jobs on a Ray cluster; see `base.RunJobs`.

    Args:
        function: see `RunJobs`; every node imports its module.
        jobs: see `RunJobs`.
        workers: number of actors; 0 is one per `options.num_cpus` CPUs of the cluster, which may grow or
            shrink.
        item_timeout: see `RunJobs`.
        exclude: see `RunJobs`.
        on_item: see `RunJobs`.
        address: address of the cluster; `auto` is the one this machine belongs to.
        options: what each actor requests.

    Raises:
        UsageError: Ray is not installed.
        AvdataError: the cluster cannot be reached.
    """
    waiting = TaskQueue(jobs)
    if not waiting:
        return
    ray = _connected(address, log_to_driver=options.log_to_driver)
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    requested = {name: value for name, value in asdict(options).items() if name != "log_to_driver" and value}
    tracker = ray.remote(_ItemTracker).options(num_cpus=0, scheduling_strategy=here).remote()
    pool: list[_Worker] = []
    turns: list[_Worker] = []
    crashes: dict[str, int] = {}
    try:
        while waiting or any(worker.task for worker in pool):
            size = workers or max(int(ray.cluster_resources().get("CPU", 1) / options.num_cpus), 1)
            busy = sum(worker.task is not None for worker in pool)
            while len(pool) < busy + waiting.count(size - busy):
                pool.append(_Worker(actor=ray.remote(_RayWorker).options(**requested).remote()))
            _dispatch(function, waiting, pool, turns, tracker)
            if not waiting:
                _release_idle(ray, pool)
            refs = {worker.ref: worker for worker in pool if worker.task}
            ready, _ = ray.wait(list(refs), timeout=POLL_INTERVAL_S)
            _collect_reports(ray, tracker, turns, on_item)
            _kill_overdue(ray, pool, item_timeout)
            for worker in (refs[ref] for ref in ready):
                try:
                    kind, value = ray.get(worker.ref)
                except _losses(ray) as error:
                    pool.remove(worker)
                    waiting.put_back(_after_loss(ray, worker, error, crashes, exclude, item_timeout))
                    continue
                worker.finish_task(crashes)
                if kind == "error":
                    raise value
                yield value
    finally:
        for worker in pool:
            ray.kill(worker.actor)
        ray.kill(tracker)


def _connected(address: str, *, log_to_driver: bool) -> Any:
    try:
        import ray  # noqa: PLC0415
        import ray.util.scheduling_strategies  # noqa: PLC0415
    except ImportError as error:
        msg = f"Ray cannot be imported: {error}."
        raise UsageError(msg, hint="Run: pip install 'avdata[ray]'") from error
    if not ray.is_initialized():
        try:
            ray.init(
                address=address,
                log_to_driver=log_to_driver,
                logging_level=logging.WARNING,
                job_config=_job_config(ray),
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            msg = f"No Ray cluster at {address!r}: {str(error).splitlines()[0]}"
            raise AvdataError(msg, hint="Run `ray start --head`, or use --ray-address.") from error
    return ray


def _job_config(ray: Any) -> Any:
    """Return settings with which Ray's workers import nothing from the folders of this process.

    Ray puts the current folder and that of the script first on the `sys.path` of every worker, and has no
    public setting for it.
    """

    class JobConfig(ray.job_config.JobConfig):  # type: ignore[misc]
        def _serialize(self) -> Any:
            self._py_driver_sys_path: list[str] = []
            return super()._serialize()

    return JobConfig()


def _dispatch(
    function: Function, waiting: TaskQueue[Any], pool: list[_Worker], turns: list[_Worker], tracker: Any
) -> None:
    for worker in pool:
        if worker.task is None and waiting:
            task = waiting.pop()
            worker.task, worker.item, worker.turn = task, NO_ITEM, len(turns)
            # The dashboard and `ray list tasks` show the name.
            name = str(getattr(task.job, "shard", "job"))
            worker.ref = worker.actor.run.options(name=name).remote(function, task, tracker, worker.turn)
            turns.append(worker)


def _release_idle(ray: Any, pool: list[_Worker]) -> None:
    """Stop idle workers, so that a worker that replaces one of a lost node can have their CPU."""
    for worker in [worker for worker in pool if worker.task is None]:
        pool.remove(worker)
        ray.kill(worker.actor)


def _collect_reports(ray: Any, tracker: Any, turns: list[_Worker], on_item: Report) -> None:
    for turn, item in ray.get(tracker.take.remote()):
        if item != NO_ITEM:
            on_item(item)
        worker = turns[turn]
        if worker.turn == turn:
            worker.start_item(item)


def _kill_overdue(ray: Any, pool: list[_Worker], item_timeout: float) -> None:
    for worker in pool:
        if worker.is_overdue(item_timeout) and not worker.late:
            worker.late = True
            ray.kill(worker.actor)


def _losses(ray: Any) -> tuple[type[Exception], ...]:
    """Return the exceptions of Ray that mean a lost worker or a lost result."""
    errors = ray.exceptions
    return (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError, errors.OutOfMemoryError)


def _after_loss(
    ray: Any,
    worker: _Worker,
    error: Exception,
    crashes: dict[str, int],
    exclude: ExcludeItem[Any],
    item_timeout: float,
) -> ShardTask[Any]:
    """Return the task to run after a worker was lost."""
    assert worker.task is not None
    if worker.item == NO_ITEM and _node_is_lost(ray, error):
        return worker.task
    ending = str(error).splitlines()[0]
    if not worker.begun and crashes.get(NO_ITEM, 0) >= CRASHES_ALLOWED - 1:
        msg = f"A worker could not start: {ending}"
        raise AvdataError(msg, hint="Install the same version of avdata on every node.") from error
    # A node lost during an item counts like a crash: an item that kills nodes must not kill all of them.
    reason = QuarantineReason.TIMEOUT if worker.late and worker.item != NO_ITEM else QuarantineReason.CRASH
    return next_task(worker.task, worker.item, reason, crashes, exclude, item_timeout, ending)


def _node_is_lost(ray: Any, error: Exception) -> bool:
    if isinstance(error, (ray.exceptions.ObjectLostError, ray.exceptions.NodeDiedError)):
        return True
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    node = getattr(error, "node_id", None) or getattr(error, "_node_id", None)
    return "node died" in str(error).lower() or (node is not None and str(node) not in alive)
