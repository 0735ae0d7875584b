"""Checkpoints and the directory of a run.

A checkpoint holds the complete training state in one file, which is written atomically. It contains tensors,
numbers and text only and is read with `weights_only=True`, so that loading one executes no code.
"""

from __future__ import annotations

import io
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avdata.config.overrides import diff_settings
from avdata.errors import AvdataError, UsageError
from avdata.storage.atomic import atomic_write
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.models.stored import check_shapes, parse_settings, stored_network_errors, tensor_shapes
from snnergy.training.config import TrainConfig, parse

FORMAT = 3

RUN_FILE = "run.json"
"""Settings, network and training set of a run. `save_pretrained` writes its own config.json."""

RUN_FILES = (
    "result.json", "metrics.csv", "rates.csv", "curves.png", "classes.csv", "predictions.csv",
    "confusion.png", "best.ckpt", "last.ckpt", "tensorboard", "report.html",
)  # fmt: skip
"""Further files of a run."""

RESUME_MAY_CHANGE = {"workers", "threads", "logger", "save_every", "save_minutes", "accumulate"}
"""Settings that a resumed run may change; `accumulate` only together with the number of processes, so that
batch norms see equally many samples."""


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping as indented JSON, atomically. JSON has no NaN and infinity: they become null."""
    text = json.dumps(_without_nan(value), indent=1, allow_nan=False)
    atomic_write(path, f"{text}\n".encode())


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Raises:
        AvdataError: the disk is full or the path is not writable; the previous checkpoint is kept.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    try:
        atomic_write(path, buffer.getvalue())
    except AvdataError as error:
        # The hint of `atomic_write`, to repeat the command, is wrong here: without --resume it is refused.
        hint = "Free disk space, then continue with --resume (snnergy compare: repeat the same command)"
        raise AvdataError(error.message, hint=hint) from error


def load(data: bytes, name: str | Path) -> dict[str, Any]:
    """Return the state in a checkpoint's bytes, with tensors on the CPU.

    Args:
        data: content of the file.
        name: path for error messages.

    Raises:
        AvdataError: the bytes are not a checkpoint of this package.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of zipfile, pickle and torch, for damaged or hostile bytes
        # torch's own message is a page about loading such bytes unsafely.
        msg = f"Cannot read checkpoint {name}: {'invalid format' if data else 'the file is empty'}."
        raise AvdataError(
            msg, hint="The file may be truncated; use another checkpoint of the run (best.ckpt, last.ckpt)"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        msg = f"Cannot read checkpoint {name}: not a checkpoint of this version of snnergy."
        raise AvdataError(msg, hint="Use a last.ckpt or best.ckpt that `snnergy train` wrote")
    return state


def read_config(folder: Path) -> dict[str, Any]:
    """Return `config`, `model`, `dataset`, `facts`, `processes` and `threads` of a run's run.json.

    Raises:
        AvdataError: the file is missing or invalid.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {
            "config": dict(content["config"]),
            "model": dict(content["model"]),
            "dataset": str(content["dataset"]),
            "facts": DatasetFacts.parse(content["facts"]),
            "processes": int(content["processes"]),
            "threads": int(content.get("threads") or 0) or None,
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else error
        msg = f"Cannot read {path}: {reason}."
        raise AvdataError(msg, hint="Use a run's folder, or a checkpoint next to its run.json") from error


def run_settings(folder: Path) -> TrainConfig:
    """Return the settings in a run's run.json."""
    return parse(read_config(folder)["config"])


def changed_settings(stored: Mapping[str, Any], config: TrainConfig) -> str:
    """Return the settings that differ from a run's stored ones, as text; empty if the run can be resumed."""
    return ", ".join(
        f"{name} is {old}, requested {new}"
        for name, old, new in diff_settings(dict(stored), config.model_dump(mode="json"))
        if name not in RESUME_MAY_CHANGE
    )


def _check_batch_norm_size(folder: Path, stored: TrainConfig, config: TrainConfig, processes: int) -> None:
    """Raise if a resumed run has another number of samples per batch norm."""
    before = int(read_config(folder)["processes"])
    size, requested = stored.batch_norm_size(before), config.batch_norm_size(processes)
    if size == requested:
        return
    msg = (
        f"Batch norms of the run in {folder} see {size} samples ({_count(before)}, accumulate"
        f" {stored.accumulate}), requested {requested} ({_count(processes)}, accumulate {config.accumulate})."
    )
    parts, rest = divmod(config.batch_size, size * (1 if config.sync_batchnorm else processes))
    hint = f"Add --set accumulate={parts}" if parts and not rest else f"Resume with {_count(before)}"
    raise UsageError(msg, hint=hint)


def _check_no_foreign_files(folder: Path) -> None:
    """Raise if a folder without a run has files that a run would replace, or is a prepared dataset."""
    found = next((name for name in (*RUN_FILES, "dataset.json") if (folder / name).exists()), None)
    if found is not None:
        msg = f"Output folder holds no run, but {found}: {folder}."
        raise AvdataError(msg, hint="Choose another --output")


def extends_run(folder: Path, config: TrainConfig) -> bool:
    """Return whether `config` has more epochs or steps than the finished run in `folder`."""
    if not (folder / "result.json").exists():
        return False
    stored = run_settings(folder)
    if stored.steps or config.steps:
        return (config.steps or 0) > (stored.steps or 0) > 0
    return config.epochs > stored.epochs


def extension_hint(folder: Path) -> str:
    """Return how to extend a finished run: only the option that ended it has an effect."""
    stored = run_settings(folder)
    option = f"--steps above {stored.steps}" if stored.steps else f"--epochs above {stored.epochs}"
    return f"Extend it with --resume and {option}"


def _count(processes: int) -> str:
    return f"{processes} process{'es' * (processes != 1)}"


def read_result(folder: Path) -> dict[str, Any]:
    """Return the content of the `result.json` of a finished run.

    Raises:
        AvdataError: the file cannot be read, or is damaged.
    """
    try:
        result = json.loads((folder / "result.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        result = None
    if not isinstance(result, dict) or "chosen" not in result or not {"val", "test"} & set(result):
        msg = f"Cannot read {folder / 'result.json'}: it is not the result of a run."
        raise AvdataError(msg, hint="Delete it and use --resume, which writes it again")
    return result


def check_run_folder(folder: Path, config: TrainConfig, *, resume: bool, processes: int = 1) -> None:
    """Raise unless a run with these settings can start, or resume, in `folder`.

    Raises:
        AvdataError: it holds another run, or none to resume.
        UsageError: the run to resume has other settings.
    """
    if folder.exists() and not folder.is_dir():
        msg = f"Output path is a file: {folder}."
        raise AvdataError(msg, hint="Choose a folder with --output")
    if not (folder / RUN_FILE).exists():
        if resume:
            msg = f"No run to resume in {folder}."
            raise AvdataError(msg, hint="Omit --resume to start one")
        _check_no_foreign_files(folder)
        return
    if not resume and (folder / "result.json").exists():
        msg = f"Output folder already holds a finished run: {folder}."
        raise AvdataError(msg, hint=f"{extension_hint(folder)}, choose another --output, or delete it")
    if not resume:
        msg = f"Output folder already holds an unfinished run: {folder}."
        raise AvdataError(msg, hint="Continue it with --resume, choose another --output, or delete it")
    stored = run_settings(folder)
    if extends_run(folder, config):
        stored = stored.model_copy(update={"epochs": config.epochs, "steps": config.steps})
    changed = changed_settings(stored.model_dump(mode="json"), config)
    if changed:
        msg = f"Settings differ from the run in {folder}: {changed}."
        raise UsageError(msg, hint="Omit them to resume with the run's settings, or choose another --output")
    _check_batch_norm_size(folder, stored, config, processes)


def load_network(checkpoint: str | Path) -> tuple[SNNergy, TrainConfig]:
    """Return the network of a checkpoint, in evaluation mode on the CPU, and its training settings.

    Raises:
        AvdataError: the checkpoint or the run.json next to it cannot be read.
    """
    network, config, _ = load_all(checkpoint)
    return network, config


def load_all(checkpoint: str | Path) -> tuple[SNNergy, TrainConfig, bool]:
    """Return network, settings, and whether the batch norms were recalibrated before saving."""
    path = Path(checkpoint)
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"Cannot read {path}: {error.strerror}."
        raise AvdataError(msg, hint="Use a run's folder, or a checkpoint next to its run.json") from error
    stored = read_config(path.parent)
    state = load(data, path)
    with stored_network_errors(path):
        model, weights = parse_settings(stored["model"]), state["ema"] or state["network"]
        check_shapes(SNNergy, model, tensor_shapes(weights))
        network = SNNergy(model)
        network.dataset = DatasetFacts.parse(state["facts"])
        network.load_state_dict(weights)
        return network.eval(), parse(stored["config"]), bool(state["calibrated"])
