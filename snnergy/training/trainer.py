"""Training of a network.

The folder of a run contains `run.json`, `metrics.csv`, `tensorboard/`, `best.ckpt` and `last.ckpt`; a
finished run also `result.json`, `classes.csv`, `predictions.csv`, `curves.png` and `confusion.png`. A run
that was killed at any time resumes from `last.ckpt` and ends with the same weights and the same log. On
another number of processes it resumes if `accumulate` keeps the number of samples that batch norms see.
Ctrl-C and SIGTERM save `last.ckpt` after the step in progress.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.errors import AvdataError
from avdata.progress import Progress
from avdata.storage.locks import lock_folder
from avdata.storage.paths import local_path
from snnergy.training.checkpoint import (
    RUN_FILE,
    check_run_folder,
    read_config,
    run_settings,
)
from snnergy.training.config import TrainConfig, resolve_config
from snnergy.training.distributed import (
    Device,
    broadcast_from_rank0,
    check_on_rank0,
    explain_lost_ranks,
    init_fabric,
)
from snnergy.training.loop import Trainer
from snnergy.training.metrics_log import check_logger
from snnergy.training.run_result import finished_result
from snnergy.training.threads import IdleCores, choose_threads, use_threads

if TYPE_CHECKING:
    from lightning.fabric import Fabric

LOCK_DIR = ".training"


def train(
    dataset: str | Path,
    output: str | Path,
    config: TrainConfig | None = None,
    *,
    progress: Progress = lambda stage, done, total: None,
    resume: bool = False,
    device: Device = "auto",
) -> dict[str, Any]:
    """Train a network on a prepared dataset and evaluate it once on the test split.

    Under torchrun every process calls this function. A restart by torchrun resumes without `resume`.

    Args:
        dataset: folder or URL of the prepared dataset.
        output: folder of the run; with several machines, on the first one.
        config: settings; None uses the defaults, or the settings of the run to resume.
        progress: called as ("train", done, total), in optimizer steps, on rank 0.
        resume: continue from `last.ckpt` of the run. Of a finished run, return the result unless `config`
            has more epochs or steps.
        device: `auto` uses a GPU if there is one.

    Returns:
        The content of `result.json`: accuracy, loss and metrics by class on the validation and test splits,
        settings, duration, and firing rates.

    Raises:
        AvdataError: the dataset or the output folder cannot be used, the loss is not finite, or another
            process of the run exited.
        UsageError: unknown name, or the run to resume has other settings.
    """
    folder, began, idle = local_path(output), time.perf_counter(), IdleCores()
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    resume = resume or (restarted and (folder / RUN_FILE).is_file())
    settings = config or (run_settings(folder) if resume else resolve_config(None))
    check_logger(settings.logger)
    fabric = init_fabric(device, settings.precision, sync_batchnorm=settings.sync_batchnorm)
    with explain_lost_ranks(fabric):
        settings, threads = _agree(fabric, folder, settings, idle, resume=resume)
        with use_threads(threads):
            run = Trainer(fabric, dataset, folder, settings, progress)
            with _locked(fabric, folder):
                finished = finished_result(fabric, folder, settings, run.sets.facts) if resume else None
                if finished is not None:
                    return finished
                run.begin(resume=resume)
                run.work()
                return run.finish(began)


@contextmanager
def _locked(fabric: Fabric, folder: Path) -> Iterator[None]:
    """Lock the folder of the run, so that no other training writes to it."""
    place = folder / LOCK_DIR
    conflict = AvdataError(
        f"Another training writes to {folder}.", hint="Wait for it to end, or choose another --output"
    )
    with ExitStack() as lock:
        check_on_rank0(fabric, lambda: lock.enter_context(lock_folder(place, conflict)))
        if fabric.is_global_zero:
            lock.callback(shutil.rmtree, place, ignore_errors=True)
        yield


def _agree(
    fabric: Fabric, folder: Path, settings: TrainConfig, idle: IdleCores, *, resume: bool
) -> tuple[TrainConfig, int]:
    """Check the folder of the run; return the settings of rank 0 and this process's number of threads."""
    if fabric.world_size > 1:
        # The folder with the settings of the run to resume may exist on the first machine only.
        content = broadcast_from_rank0(fabric, settings.model_dump_json().encode())
        settings = TrainConfig.model_validate_json(content or b"")
    check_on_rank0(
        fabric, partial(check_run_folder, folder, settings, resume=resume, processes=fabric.world_size)
    )
    stored = read_config(folder)["threads"] if resume and fabric.is_global_zero else None
    return settings, choose_threads(settings.threads, stored, idle)
