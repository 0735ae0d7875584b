"""Networks and training loop of `learn.py`: one cell is one network, trained on one task with one seed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from learn_sets import MODALITIES, Samples
from torch import Tensor, nn
from torch.nn import functional

from snnergy.data import to_batch
from snnergy.models.config import PRESETS
from snnergy.models.network import SNNergy, build, recalibrate
from snnergy.training.config import resolve_config

CALIBRATION_BATCHES = 10


@dataclass(frozen=True)
class Row:
    """Network of a table.

    Attributes:
        kind: spiking network, convolutional network of the same widths, or logistic regression.
        model: model preset.
        fusion: fusion of the spiking network, or the modalities of the others.
        options: fields of `ModelConfig`.
        alpha_lr: learning rate of α in multiples of the others'.
    """

    kind: Literal["snn", "cnn", "linear"] = "snn"
    model: str = "tiny"
    fusion: str = "cmqka"
    options: Mapping[str, Any] = field(default_factory=dict)
    alpha_lr: float = 1.0


class CNN(nn.Module):
    """Convolutional network with ReLU: four layers of the widths of a model preset per modality."""

    def __init__(self, model: str, fusion: str, classes: int, channels: int) -> None:
        super().__init__()
        dims = PRESETS[model].dims
        self.names = ("audio", "video") if fusion == "concat" else (fusion,)
        self.layers = nn.ModuleDict()
        for name in self.names:
            widths = [1 if name == "audio" else channels, dims[0] // 2, *dims]
            parts: list[nn.Module] = []
            for inputs, outputs in pairwise(widths):
                conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
                parts += [conv, nn.BatchNorm2d(outputs), nn.MaxPool2d(3, 2, 1), nn.ReLU()]
            self.layers[name] = nn.Sequential(*parts)
        self.head = nn.Linear(len(self.names) * dims[-1], classes)

    def forward(
        self, audio: Tensor, video: Tensor, mask_a: Tensor | None = None, mask_v: Tensor | None = None
    ) -> Tensor:
        """Return logits [B, K] of audio [T, B, 1, F, L] and video [T, B, C, H, W]; masks are bool [B]."""
        inputs, masks = {"audio": audio, "video": video}, {"audio": mask_a, "video": mask_v}
        features = []
        for name in self.names:
            feature = self.layers[name](inputs[name].flatten(0, 1)).mean((2, 3))
            feature = feature.unflatten(0, inputs[name].shape[:2]).mean(0)
            mask = masks[name]
            features.append(feature if mask is None else feature * mask[:, None])
        logits: Tensor = self.head(torch.cat(features, dim=1))
        return logits


def train_cell(
    row: Row, splits: Mapping[str, Samples], *, seed: int, epochs: float, batch_size: int, lr: float
) -> dict[str, Any]:
    """Train a network and return its accuracy on `val` and `test`, CPU seconds and facts about the training.

    The loop is the trainer's with the training preset `quick`: AdamW, warm-up and cosine, no augmentation,
    recalibrated batch norms. It has no selection: the last weights are measured.
    """
    began = time.process_time()
    train = splits["train"]
    if row.kind == "linear":
        result = _fit_linear(row, splits)
        return {**result, "cpu_seconds": round(time.process_time() - began, 1)}
    torch.manual_seed(seed)
    network = _build(row, int(train.label.max()) + 1, train.frames.shape[2])
    epoch_steps = -(-len(train) // batch_size)
    steps = round(epochs * epoch_steps)
    config = resolve_config("quick", {"batch_size": batch_size, "lr": lr, "steps": steps})
    optimizer = torch.optim.AdamW(_groups(network, row, config.weight_decay), lr=1.0, fused=True)
    scales = [group.get("scale", 1.0) for group in optimizer.param_groups]
    order = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    history: list[dict[str, Any]] = []
    while len(losses) < steps:
        for index in torch.randperm(len(train), generator=order).split(batch_size):
            network.train()
            rate = config.rate(len(losses), steps, epoch_steps)
            for group, scale in zip(optimizer.param_groups, scales, strict=True):
                group["lr"] = rate * scale
            if len(index) == 1:
                continue  # no batch norm of one sample
            inputs, label = _inputs(train, index)
            optimizer.zero_grad()
            loss = functional.cross_entropy(network(*inputs), label)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            losses.append(float(loss.detach()))
            if len(losses) == steps:
                break
        history.append({"step": len(losses), "loss": sum(losses[-epoch_steps:]) / len(losses[-epoch_steps:])})
    if isinstance(network, SNNergy):
        _recalibrate(network, train, batch_size)
    measured = {split: _measure(network, splits[split]) for split in ("val", "test") if split in splits}
    alphas = {
        name: float(weight.detach().mean())
        for name, weight in network.named_parameters()
        if name.endswith("alpha")
    }
    return {
        **measured, "loss": round(sum(losses[-epoch_steps:]) / len(losses[-epoch_steps:]), 4),
        "history": history, "steps": steps, "alphas": {k: round(v, 4) for k, v in alphas.items()},
        "params": sum(weight.numel() for weight in network.parameters()),
        "cpu_seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def _build(row: Row, classes: int, channels: int) -> nn.Module:
    if row.kind == "cnn":
        return CNN(row.model, row.fusion, classes, channels)
    return build(
        row.model, num_classes=classes, video_channels=channels, fusion=row.fusion, **dict(row.options)
    )


def _groups(network: nn.Module, row: Row, weight_decay: float) -> list[dict[str, Any]]:
    if not isinstance(network, SNNergy):
        return [{"params": list(network.parameters()), "weight_decay": weight_decay}]
    groups = network.parameter_groups(weight_decay)
    alphas = [weight for name, weight in network.named_parameters() if name.endswith("alpha")]
    ids = {id(weight) for weight in alphas}
    for group in groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in ids]
    return [*groups, *([{"params": alphas, "weight_decay": 0.0, "scale": row.alpha_lr}] if alphas else [])]


def _inputs(samples: Samples, index: Tensor) -> tuple[tuple[Tensor | None, ...], Tensor]:
    """Return the arguments of a network for samples, and their labels."""
    batch = to_batch(
        samples.audio[index], samples.frames[index], samples.label[index], torch.ones(len(index))
    )
    masks: tuple[Tensor | None, ...] = (None, None)
    if samples.masked:
        masks = tuple(samples.hidden[index] != number for number in range(2))
    return (batch.audio, batch.video, *masks), batch.label


def _recalibrate(network: SNNergy, train: Samples, batch_size: int) -> None:
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).split(batch_size)
    # With the masks: an absent modality sends no message, which changes what the next stage reads.
    batches: Iterator[Any] = (_inputs(train, index)[0] for index in order[:CALIBRATION_BATCHES])
    recalibrate(network, batches)


@torch.no_grad()
def _measure(network: nn.Module, samples: Samples) -> dict[str, float]:
    """Return accuracy of all samples, and of those with each modality hidden, or none."""
    network.eval()
    hits = []
    for index in torch.arange(len(samples)).split(64):
        inputs, label = _inputs(samples, index)
        hits.append(network(*inputs).argmax(1) == label)
    return _by_hidden(torch.cat(hits), samples)


def _by_hidden(hits: Tensor, samples: Samples) -> dict[str, float]:
    groups = {"all": torch.ones_like(hits)}
    if bool((samples.hidden < 2).any()):
        for number, name in enumerate((*MODALITIES[:2], "none")):
            groups[f"hidden_{name}"] = samples.hidden == number
    return {name: round(float(hits[group].float().mean()), 4) for name, group in groups.items()}


def _fit_linear(row: Row, splits: Mapping[str, Samples]) -> dict[str, Any]:
    """Fit a logistic regression on mels pooled to 16 bands and 4 columns per step, and 8 by 8 pixels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def features(samples: Samples) -> Any:
        parts = []
        if row.fusion in ("audio", "concat"):
            parts.append(functional.adaptive_avg_pool2d(samples.audio.flatten(0, 1), (16, 4)))
        if row.fusion in ("video", "concat"):
            parts.append(functional.adaptive_avg_pool2d(samples.frames.flatten(0, 1).float(), (8, 8)))
        return torch.cat([part.view(len(samples), -1) for part in parts], dim=1).numpy()

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    model.fit(features(splits["train"]), splits["train"].label.numpy())
    measured = {}
    for split in ("val", "test"):
        hits = torch.from_numpy(model.predict(features(splits[split]))) == splits[split].label
        measured[split] = _by_hidden(hits, splits[split])
    return measured
