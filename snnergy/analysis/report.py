"""HTML report of a training run: curves, confusion matrix, firing rates, energy, and masks on samples.

    snnergy.report("run")          # writes run/report.html

The report contains what the run's folder contains: for a run that was stopped, only the curves.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import AvdataError, error_message
from avdata.reporting.charts import Chart, lines

if TYPE_CHECKING:
    from avdata.streaming.dataset import AVDataset
    from snnergy.analysis.attention_masks import MaskRecord
    from snnergy.analysis.energy import Energy

NAME = "report.html"

SAMPLES = 8

GROUPS = {
    "Loss": ("train_loss", "val_loss"),
    "Accuracy on the validation split": ("val_accuracy",),
    "Learning rate": ("lr",),
    "Norm of the gradient": ("grad_norm",),
}
"""Charts by title, with the columns of metrics.csv that they show."""


@dataclass(frozen=True)
class SampleView:
    """Sample with the network's prediction and attention masks.

    Attributes:
        key: key of the sample.
        label: true label.
        predicted: predicted label.
        probability: probability of the predicted label.
        images: (title, data URI) of frames and spectrogram, without and with masks.
    """

    key: str
    label: str
    predicted: str
    probability: float
    images: tuple[tuple[str, str], ...]


def report(run: str | Path, output: str | Path | None = None, *, dataset: str | Path | None = None) -> Path:
    """Write an HTML report of a training run.

    Args:
        run: folder of the run.
        output: HTML file to write; None: `report.html` in the folder of the run.
        dataset: the prepared dataset; None: the one in run.json. If it is missing, the report has no
            samples.

    Returns:
        The path of the file.

    Raises:
        AvdataError: the folder contains no run, or the file cannot be written.
    """
    from avdata.reporting.html import render  # noqa: PLC0415
    from avdata.storage.atomic import atomic_write  # noqa: PLC0415

    folder = Path(run)
    path = folder / NAME if output is None else Path(output)
    atomic_write(
        path, render("run.html", package="snnergy.analysis", **collect_page_data(folder, dataset)).encode()
    )
    return path


def collect_page_data(folder: Path, dataset: str | Path | None = None) -> dict[str, Any]:
    """Return the variables of the template. Arguments as for `report`."""
    stored = _read(folder / "run.json")
    result = _read(folder / "result.json", missing={})
    masks, samples, energy, note = _sample_views(folder, dataset or stored.get("dataset"))
    settings = stored.get("config") or {
        k: v for k, v in stored.items() if k not in {"model", "dataset", "facts", "processes"}
    }
    labels = list(result.get("labels", ()))
    measured = {name: result[name] for name in ("test", "val") if isinstance(result.get(name), Mapping)}
    return {
        "name": folder.resolve().name,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "dataset": str(dataset or stored.get("dataset", "unknown")),
        "settings": settings,
        "model": stored.get("model", {}),
        "result": result,
        "labels": labels,
        "measured": measured,
        "charts": curves(folder / "metrics.csv"),
        "rates": list(masks.rates.items()) if masks else [],
        "energy": energy,
        "samples": samples,
        "note": note,
    }


def _read(path: Path, missing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if missing is not None:
            return dict(missing)
        msg = f"No run in {path.parent}: {path.name} is missing."
        raise AvdataError(msg, hint="use the --output folder of `snnergy train`") from error
    except (OSError, ValueError) as error:
        msg = f"Cannot read {path}: {error}."
        raise AvdataError(msg) from error
    return dict(content)


def curves(metrics: Path) -> list[Chart]:
    """Return charts of a run's metrics.csv; an empty list if the file does not exist."""
    if not metrics.is_file():
        return []
    points: dict[str, list[tuple[float, float]]] = {}
    with metrics.open(newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            for name, value in row.items():
                # The last line of a killed run may be incomplete.
                if name and value and (row.get("step") or "").isdigit():
                    points.setdefault(name, []).append((float(row["step"]), float(value)))
    charts = []
    for title, names in GROUPS.items():
        series = {name.replace("_", " "): points[name] for name in names if name in points}
        is_share = title.startswith("Accuracy")
        chart = lines(title, "step", series, low=0.0 if is_share else None, high=1.0 if is_share else None)
        charts += [chart] if chart else []
    return charts


def _sample_views(
    folder: Path, dataset: str | Path | None
) -> tuple[MaskRecord | None, list[SampleView], Energy | None, str]:
    """Return masks, samples and energy of the best network, or a note that explains why there are none."""
    checkpoint = next(
        (folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None
    )
    if checkpoint is None:
        return None, [], None, "The run has no checkpoint: no firing rates and masks."
    if dataset is None or not (Path(dataset) / "dataset.json").is_file():
        note = f"Prepared dataset not found: {dataset}. Pass its path with --dataset to show samples."
        return None, [], None, note
    from snnergy.analysis.attention_masks import record_masks  # noqa: PLC0415
    from snnergy.analysis.energy import measure_energy  # noqa: PLC0415
    from snnergy.data import mel_transform, open_any_split, to_device  # noqa: PLC0415
    from snnergy.training.checkpoint import load_network  # noqa: PLC0415
    from snnergy.training.evaluation import match_dataset  # noqa: PLC0415

    try:
        network, config = load_network(checkpoint)
        data = open_any_split(dataset, ("test", "val", "train"), features=config.features, shuffle=True)
        facts, _ = match_dataset(network, data)
        batch = next(iter(data.loader(min(SAMPLES, len(data)), num_workers=0)))
        inputs = to_device(batch, mel=mel_transform(data, facts=facts))
        masks = record_masks(network, inputs.audio, inputs.video)
        energy = measure_energy(network, [(inputs.audio, inputs.video)])
    except (AvdataError, RuntimeError, ValueError) as error:
        return None, [], None, f"Cannot run the network on {dataset}: {error_message(error)}"
    return (
        masks,
        [_sample_view(data, facts.labels, key, number, masks) for number, key in enumerate(batch.key)],
        energy,
        "",
    )


def _sample_view(
    data: AVDataset, labels: Sequence[str], key: str, number: int, record: MaskRecord
) -> SampleView:
    sample = data.find(key)
    predicted = int(record.probabilities[number].argmax())
    frames = None if sample.frames is None else sample.frames.permute(0, 2, 3, 1).numpy()
    return SampleView(
        key=key,
        label=data.labels[sample.label],
        predicted=labels[predicted],
        probability=float(record.probabilities[number, predicted]),
        images=tuple(_sample_images(frames, sample.mel.squeeze(1).numpy(), number, record)),
    )


def _sample_images(
    frames: np.ndarray | None, mel: np.ndarray, number: int, record: MaskRecord
) -> list[tuple[str, str]]:
    """Return frames and spectrogram with the steps side by side, then with the masks of each stage."""
    from avdata.visualization.images import colorize, image_data_uri  # noqa: PLC0415
    from snnergy.analysis.attention_masks import overlay_mask  # noqa: PLC0415

    low, high = float(mel.min()), float(mel.max())
    spectrogram = np.stack([colorize(step, low, high) for step in mel])
    images = [("spectrogram", np.concatenate(list(spectrogram), 1))]
    color = spectrogram
    if frames is not None:
        color = frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1)
        images.insert(0, ("frames", np.concatenate(list(color), 1)))
    for (modality, stage), masks in sorted(record.masks.items(), key=lambda item: item[0][::-1]):
        steps = color if modality == "video" else spectrogram
        # Low bands are drawn at the bottom, but are the first rows of the mask.
        rows = masks[number] if modality == "video" else masks[number][:, ::-1]
        masked = [overlay_mask(step, mask) for step, mask in zip(steps, rows, strict=True)]
        title = "frames" if modality == "video" else "spectrogram"
        images.append((f"stage {stage}: {title} with mask", np.concatenate(masked, 1)))
    return [(title, image_data_uri(image)) for title, image in images]
