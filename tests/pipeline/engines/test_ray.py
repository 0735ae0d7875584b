"""Tests of the Ray engine on a local test cluster of three nodes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import engine_jobs, worker_modules
from support import kill as killer
from support.engine_jobs import Excluded, Job, exclude_item, run_items
from support.processes import wait_until
from support.trees import digest_tree

import avdata
from avdata.errors import AvdataError, QuarantineReason, UsageError
from avdata.pipeline.engines.ray import run_jobs
from avdata.pipeline.engines.ray_options import parse_ray_options
from avdata.shards.reader import read_index

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SETTINGS = {"video": {"size": 48}, "shards": {"samples_per_shard": 1}}
FEW = {"video": {"size": 48}, "shards": {"samples_per_shard": 4}}  # same as `cremad_set`
NODE = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


def meet(folder: Path) -> None:
    """Wait until a second job has reached this point."""
    (folder / uuid.uuid4().hex).touch()
    while len(list(folder.iterdir())) < 2:
        threading.Event().wait(0.02)


def work(job: Job, report: Callable[[str], None]) -> tuple[tuple[str, ...], Excluded]:
    def act(item: str) -> None:
        if item.startswith("/"):
            meet(Path(item))

    return run_items(job, report, act)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Ray creates its sockets in this folder, and a socket path is limited to about 100 characters.
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp" if Path("/tmp").is_dir() else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        yield from _cluster()
    shutil.rmtree(folder, ignore_errors=True)


def _cluster() -> Iterator[Cluster]:
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=NODE)
    made.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
    made.add_node(**{name: value for name, value in NODE.items() if name != "include_dashboard"})
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.cloudpickle.register_pickle_by_value(engine_jobs)
    ray.cloudpickle.register_pickle_by_value(killer)
    ray.cloudpickle.register_pickle_by_value(worker_modules)
    yield made
    ray.shutdown()
    made.shutdown()


def test_run_jobs_excludes_a_crashing_item_and_finishes_the_others(cluster: Cluster) -> None:
    jobs = [Job(("a", "crash", "b")), Job(("c",))]
    results = set(run_jobs(work, jobs, workers=2, item_timeout=600, exclude=exclude_item))
    assert results == {(("a", "b"), (("crash", QuarantineReason.CRASH),)), (("c",), ())}


def test_run_jobs_stops_and_excludes_an_item_that_hangs(cluster: Cluster) -> None:
    # The timeout also applies to the next item, and Ray reports its end late on a busy machine.
    results = list(run_jobs(work, [Job(("hang", "b"))], workers=1, item_timeout=5, exclude=exclude_item))
    assert results == [(("b",), (("hang", QuarantineReason.TIMEOUT),))]


def test_run_jobs_takes_a_job_when_a_worker_is_free(cluster: Cluster) -> None:
    taken = []

    def jobs() -> Iterator[Job]:
        for number in range(6):
            taken.append(number)
            yield Job((str(number),))

    results = run_jobs(work, jobs(), workers=1, item_timeout=600, exclude=exclude_item)
    for done, _ in enumerate(results):
        assert len(taken) <= done + 2  # one that runs, and the next one
    assert len(taken) == 6


def test_verify_by_a_cluster_finds_the_problems_of_this_process(
    cluster: Cluster, cremad_set: Path, tmp_path: Path
) -> None:
    damaged = shutil.copytree(cremad_set, tmp_path / "set")
    shard = min(damaged.glob("train/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-20_480])
    problems = avdata.verify(damaged).problems
    assert problems
    assert avdata.verify(damaged, engine="ray").problems == problems


def test_run_jobs_raises_the_error_of_a_job(cluster: Cluster) -> None:
    with pytest.raises(AvdataError, match="this item raises"):
        list(run_jobs(work, [Job(("raise",))], workers=1, item_timeout=600, exclude=exclude_item))


def test_run_jobs_uses_cpus_added_during_the_run(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    known = iter([1, 1])
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": next(known, 3)})
    jobs = [Job((str(tmp_path),)), Job((str(tmp_path), "b"))]
    results = list(run_jobs(work, jobs, workers=0, item_timeout=600, exclude=exclude_item))
    assert [banned for _, banned in results] == [(), ()]


def test_prepare_excludes_only_the_crashing_clip_on_both_engines(
    cluster: Cluster, cremad_mock: Path, cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_index(cremad_set).to_pylist()
    monkeypatch.setenv("PYTHONPATH", str(Path(killer.__file__).parents[1]))
    monkeypatch.setattr("avdata.pipeline.shard_job.run_shard_job", killer.killing)
    (tmp_path / killer.KEY).write_text(whole[1]["key"], encoding="utf-8")
    for engine in ("local", "ray"):
        done = avdata.prepare(
            "cremad", source=cremad_mock, output=tmp_path / engine, config=FEW, workers=1, engine=engine
        )
        assert done.quarantined == {QuarantineReason.CRASH: 1}
        rows = {row["key"]: row["sha256"] for row in read_index(tmp_path / engine).to_pylist()}
        assert rows == {row["key"]: row["sha256"] for row in whole if row is not whole[1]}
    assert digest_tree(tmp_path / "ray") == digest_tree(tmp_path / "local")


def test_ray_worker_imports_neither_librosa_nor_torch(
    cluster: Cluster, cremad_mock: Path, cremad_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avdata.pipeline.shard_job.run_shard_job", worker_modules.run_and_record_modules)
    output = tmp_path / "out"
    avdata.prepare("cremad", source=cremad_mock, output=output, config=FEW, workers=1, engine="ray")
    modules = set(json.loads(worker_modules.recorded_modules(output).read_text(encoding="utf-8")))
    assert "avdata.features.audio.mel_filterbank" in modules
    assert not {"librosa", "numba", "torch"} & modules
    assert digest_tree(output) == digest_tree(cremad_set)


def test_prepare_rejects_an_unknown_engine(cremad_mock: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown engine 'slurm'"):
        avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "out", engine="slurm")
    assert not (tmp_path / "out").exists()


def test_prepare_results_in_identical_bytes_after_losing_a_node(
    cluster: Cluster, cremad_mock: Path, tmp_path: Path
) -> None:
    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "local", config=SETTINGS, workers=0)
    lost: list[int] = []

    def lose(stage: str, done: int, total: int) -> None:
        if stage == "prepare" and done >= total // 2 and not lost:
            lost.append(done)
            cluster.remove_node(sorted(cluster.worker_nodes, key=id)[0], allow_graceful=False)

    done = avdata.prepare(
        "cremad", source=cremad_mock, output=tmp_path / "ray", config=SETTINGS, workers=0, engine="ray",
        progress=lose,
    )  # fmt: skip
    assert lost
    assert done.quarantined == {}
    assert digest_tree(tmp_path / "ray") == digest_tree(tmp_path / "local")


PREPARATION = """
import sys
import avdata

settings = {"video": {"size": 48}, "shards": {"samples_per_shard": 1}}
avdata.prepare("cremad", source=sys.argv[1], output=sys.argv[2], config=settings, workers=2, engine="ray",
               ray_address=sys.argv[3])
"""


def working_processes() -> set[int]:
    """Return the workers of this test's cluster that hold an actor or run a task."""
    mark, found = f"RAY_TMPDIR={os.environ['RAY_TMPDIR']}".encode(), set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            title = (folder / "cmdline").read_bytes()
            is_work = title.startswith(b"ray::") and not title.startswith(b"ray::IDLE")
            if is_work and mark in (folder / "environ").read_bytes():
                found.add(int(folder.name))
    return found


@pytest.mark.exhaustive
def test_prepare_resumes_after_its_killed_driver_which_leaves_no_worker(
    cluster: Cluster, cremad_mock: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    before = working_processes()
    driver = subprocess.Popen(
        [sys.executable, "-c", PREPARATION, str(cremad_mock), str(out), cluster.address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_until(lambda: list(out.glob("*/*.tar")) or driver.poll() is not None)
    assert working_processes() - before
    driver.kill()
    driver.wait()
    wait_until(lambda: not working_processes() - before)
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    assert not (out / "dataset.json").exists()
    for folder in (out, tmp_path / "undisturbed"):
        avdata.prepare("cremad", source=cremad_mock, output=folder, config=SETTINGS, workers=0)
    assert digest_tree(out) == digest_tree(tmp_path / "undisturbed")
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    kept = [name for name, modified in finished.items() if after[name] == modified]
    assert max(1, len(finished) - 2) <= len(kept) < len(after)  # each worker may lack its last entry


@dataclass(frozen=True)
class NamedJob:
    shard: str


def describe_task(job: NamedJob, report: Callable[[str], None]) -> tuple[str, str, dict[str, float]]:
    import ray

    context = ray.get_runtime_context()
    return job.shard, context.get_task_name(), context.get_assigned_resources()


def test_run_jobs_names_each_task_by_its_shard_and_requests_the_options(cluster: Cluster) -> None:
    options = parse_ray_options({"num_cpus": "0.5", "memory": "1MiB"})
    jobs = [NamedJob(f"train/x-{number}.tar") for number in range(3)]
    results = list(
        run_jobs(describe_task, jobs, workers=2, item_timeout=60.0, exclude=exclude_item, options=options)
    )
    assert sorted(shard for shard, _, _ in results) == [job.shard for job in jobs]
    for shard, name, resources in results:
        assert (name, resources["CPU"], resources["memory"]) == (shard, 0.5, 1 << 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_cpu": "1"}, "Did you mean 'num_cpus'"),
        ({"num_cpus": "0"}, "number of at least 0.001"),
        ({"memory": "4 gigs"}, "number of bytes"),
        ({"resources.x": "many"}, "number of at least 0"),
        ({"log_to_driver": "maybe"}, "true or false"),
    ],
)
def test_prepare_rejects_invalid_ray_options(
    options: dict[str, str], message: str, cremad_mock: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as raised:
        avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "out", ray_options=options)
    assert message in str(raised.value)
    assert not (tmp_path / "out").exists()
