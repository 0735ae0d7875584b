"""Trainings on several GPUs at once: one process per training, one training per GPU."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avdata.errors import AvdataError
from avdata.subprocesses import python_command, python_environment
from snnergy.training.checkpoint import RUN_FILE, write_json
from snnergy.training.config import TrainConfig

POLL_S = 0.5


@dataclass(frozen=True)
class Job:
    """A training.

    Attributes:
        dataset: folder or URL of the prepared dataset.
        run: folder of the run, next to which its settings and its output are written.
        config: settings.
    """

    dataset: str | Path
    run: Path
    config: TrainConfig


def gpu_names(count: int) -> list[str]:
    """Return the values of CUDA_VISIBLE_DEVICES that select each of the `count` visible GPUs alone."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible if len(visible) == count else [str(number) for number in range(count)]


def train_command(job: Job) -> list[str]:
    """Write the settings of a training to a file; return the command that starts or resumes it."""
    settings = job.run.with_suffix(".settings.json")
    settings.parent.mkdir(parents=True, exist_ok=True)
    write_json(settings, job.config.model_dump(mode="json"))
    resume = ["--resume"] if (job.run / RUN_FILE).is_file() else []
    words = ["train", job.dataset, "--output", job.run, "--config", settings, "--device", "cuda", *resume]
    return python_command("-m", "snnergy", *map(str, words))


def train_on_gpus(
    jobs: Sequence[Job],
    gpus: Sequence[str],
    *,
    command: Callable[[Job], list[str]] = train_command,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Run all trainings, as many at once as there are GPUs. A signal or a failure ends the others too.

    Args:
        jobs: trainings; they are started in this order.
        gpus: values of CUDA_VISIBLE_DEVICES, see `gpu_names`.
        command: returns the command line of a training.
        progress: called as (done, total) after each training.

    Raises:
        AvdataError: a training failed; the message names its log.
    """
    waiting, free = deque(jobs), list(gpus)
    active: dict[subprocess.Popen[bytes], tuple[Job, str]] = {}
    try:
        while waiting or active:
            while waiting and free:
                job, gpu = waiting.popleft(), free.pop(0)
                active[_start(command(job), job, gpu)] = job, gpu
            ended = [process for process in active if process.poll() is not None]
            for process in ended:
                job, gpu = active.pop(process)
                _check(process.returncode, job)
                free.append(gpu)
                progress(len(jobs) - len(waiting) - len(active), len(jobs))
            if not ended:
                time.sleep(POLL_S)
    finally:
        # They save their state on SIGTERM.
        for process in active:
            process.terminate()
        for process in active:
            process.wait()


def _log_path(job: Job) -> Path:
    return job.run.with_suffix(".log")


def _start(words: Sequence[str], job: Job, gpu: str) -> subprocess.Popen[bytes]:
    # A launcher's variables would make each training one rank of a larger one.
    launcher = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"}
    variables = python_environment(CUDA_VISIBLE_DEVICES=gpu)
    environment = {name: value for name, value in variables.items() if name not in launcher}
    with _log_path(job).open("ab") as log:
        return subprocess.Popen(  # noqa: S603  # our own interpreter and module
            words, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _check(code: int, job: Job) -> None:
    if code == 0:
        return
    path = _log_path(job)
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    reason = next((line for line in reversed(lines) if line.startswith("error:")), f"exit code {code}")
    msg = f"Training {job.run.name} failed: {reason.removeprefix('error: ')}"
    raise AvdataError(msg, hint=f"See {path}, then run the same command again to resume")
