"""Checks and construction before a training: network and batch sizes, from settings and dataset."""

from __future__ import annotations

from typing import Any

from avdata.errors import UsageError
from avdata.streaming.dataset import AVDataset
from snnergy.data import video_channels
from snnergy.models.network import SNNergy, build
from snnergy.training.config import TrainConfig
from snnergy.training.targets import class_names, has_step_targets

SMALLEST_BATCH_NORM = 16
"""Samples that a batch norm should see at least."""


def build_network(config: TrainConfig, data: AVDataset) -> SNNergy:
    """Return a new network for the settings and for the labels and frames of a dataset.

    Raises:
        UsageError: `model_options` contains a value that another setting or the dataset determines, or the
            fusion requires frames and the dataset has none.
    """
    channels = video_channels(data, config.fusion)
    names = class_names(data.info, per_step=has_step_targets(config, data.info))
    fixed: dict[str, Any] = {
        "num_classes": len(names), "video_channels": channels, "fusion": config.fusion,
        "aux_heads": config.aux_loss > 0,
    }  # fmt: skip
    for name in fixed.keys() & config.model_options.keys():
        msg = f"model_options.{name}={config.model_options[name]!r} has no effect."
        instead = {"fusion": "use --fusion", "aux_heads": "use --set aux_loss=0.5"}
        hint = instead.get(name, f"omit it; the dataset determines it: {fixed[name]}")
        raise UsageError(msg, hint=hint)
    # JSON and YAML have no tuples.
    options = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in config.model_options.items()
    }
    return build(config.model, **{**options, **fixed})


def part_size(config: TrainConfig, world: int, data: AVDataset) -> int:
    """Return the number of samples that a process reads at once, without the padding of a larger batch.

    Raises:
        UsageError: `batch_size` is not divisible, or batch norms would see a single value.
    """
    part, rest = divmod(config.batch_size, world * config.accumulate)
    if rest or not part:
        msg = (
            f"batch_size={config.batch_size} is not divisible by {world} processes with"
            f" accumulate={config.accumulate} parts each."
        )
        hint = (
            f"Use a multiple of {world * config.accumulate}; batch_size counts the samples of all processes"
        )
        raise UsageError(msg, hint=hint)
    # Padding takes time and changes batch norms.
    part = min(part, -(-data.num_samples // (world * config.accumulate)))
    if part * int(data.info["shape"]["mel"][0]) == 1:
        msg = "Each process reads one sample of one time step at a time: too few for batch norm."
        raise UsageError(msg, hint="Increase batch_size, or decrease accumulate")
    return part


def batch_norm_warning(config: TrainConfig, world: int) -> str | None:
    """Return a warning if batch norms see so few samples that their statistics are noise."""
    size = config.batch_norm_size(world)
    if size >= SMALLEST_BATCH_NORM:
        return None
    parts = f"batch_size {config.batch_size} / (processes {world} × accumulate {config.accumulate})"
    return (
        f"Batch norms see {size} samples at once: {parts}. Under {SMALLEST_BATCH_NORM} their statistics are"
        " noisy: increase batch_size, or on GPUs set sync_batchnorm=true."
    )
