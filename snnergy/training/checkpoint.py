"""Checkpoints: everything that a run goes on from, in one file that is never half written.

A checkpoint holds tensors, numbers and text only, and is read with `weights_only=True`: nothing in it is
executed.
"""

from __future__ import annotations

import io
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from avdata.errors import AvdataError
from avdata.storage.atomic import atomic_write
from snnergy.models.config import ModelConfig
from snnergy.models.network import SNNergy
from snnergy.training.config import TrainConfig, parse

FORMAT = 1


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a mapping for people and machines."""
    atomic_write(path, (json.dumps(value, indent=1) + "\n").encode())


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write a checkpoint.

    Raises:
        AvdataError: the disk is full or the place cannot be written; the one before is kept.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    try:
        atomic_write(path, buffer.getvalue())
    except AvdataError as error:
        # The same command alone, as elsewhere, begins no run where one is.
        hint = "make room, then train on with --resume (a comparison: with the same command)"
        raise AvdataError(error.message, hint=hint) from error


def load(data: bytes, name: str | Path) -> dict[str, Any]:
    """Read a checkpoint's bytes, to the CPU.

    Raises:
        AvdataError: they are not a checkpoint of this package.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (OSError, ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        # What torch says of such bytes is a page on how to load them unsafely.
        msg = f"{name} cannot be read ({'it is no checkpoint' if data else 'it is empty'})"
        raise AvdataError(
            msg, hint="it may be cut short; another checkpoint of the run may be whole"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        msg = f"{name} is no checkpoint of this version of snnergy"
        raise AvdataError(msg, hint="give a last.ckpt or best.ckpt that `snnergy train` wrote")
    return state


def read_config(folder: Path) -> dict[str, Any]:
    """What a run's config.json holds: `config`, `model`, `set`.

    Raises:
        AvdataError: it is gone, or is not one.
    """
    path = folder / "config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        return {"config": dict(said["config"]), "model": dict(said["model"]), "set": str(said["set"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path} cannot be read ({error})"
        raise AvdataError(msg, hint="give a run's folder, or a checkpoint beside its config.json") from error


def load_network(checkpoint: str | Path) -> tuple[SNNergy, TrainConfig]:
    """The network of a checkpoint, in evaluation mode on the CPU, and how it was trained.

    Raises:
        AvdataError: it cannot be read, or its run's config.json is gone.
    """
    network, config, _ = load_all(checkpoint)
    return network, config


def load_all(checkpoint: str | Path) -> tuple[SNNergy, TrainConfig, bool]:
    """The network, its settings, and whether its batch norms were recalibrated before it was saved."""
    path = Path(checkpoint)
    try:
        data = path.read_bytes()
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise AvdataError(msg, hint="give a run's folder, or a checkpoint beside its config.json") from error
    said = read_config(path.parent)
    state = load(data, path)
    shape: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in said["model"].items()
    }
    network = SNNergy(ModelConfig(**shape))
    network.load_state_dict(state["ema"] or state["network"])
    return network.eval(), parse(said["config"]), bool(state["calibrated"])
