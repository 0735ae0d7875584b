"""A training run as one page: its curves, its confusion, its layers, and what its masks let through.

    snnergy.report("run")          # writes run/report.html

What a run does not hold is not shown: a run that was stopped has curves only.
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
"""The curves that are drawn where metrics.csv has them."""


@dataclass(frozen=True)
class SampleView:
    """One sample, and what the network made of it.

    Attributes:
        key: of the sample.
        label: its true label.
        said: the network's label.
        sure: the probability it gave to that label.
        pictures: (what, data URI) of frames and spectrogram, with and without masks.
    """

    key: str
    label: str
    said: str
    sure: float
    pictures: tuple[tuple[str, str], ...]


def report(run: str | Path, output: str | Path | None = None, *, dataset: str | Path | None = None) -> Path:
    """Write a page that shows a training run to a person.

    Args:
        run: the run's folder.
        output: the HTML file; `report.html` in the run's folder without.
        dataset: the prepared set; the one of config.json without. Where it is gone, no samples are shown.

    Returns:
        The page.

    Raises:
        AvdataError: the folder holds no run, or the page cannot be written.
    """
    from avdata.reporting.html import render  # noqa: PLC0415
    from avdata.storage.atomic import atomic_write  # noqa: PLC0415

    folder = Path(run)
    path = folder / NAME if output is None else Path(output)
    atomic_write(
        path, render("run.html", package="snnergy.analysis", **collect_page_data(folder, dataset)).encode()
    )
    return path


def collect_page_data(folder: Path, prepared: str | Path | None = None) -> dict[str, Any]:
    """Everything the page shows, as its template wants it. The arguments are those of `report`."""
    said = _read(folder / "config.json")
    result = _read(folder / "result.json", missing={})
    seen, looks, energy, note = _sample_views(folder, prepared or said.get("set"))
    settings = said.get("config") or {k: v for k, v in said.items() if k not in {"model", "set"}}
    labels = list(result.get("labels", ()))
    measured = {name: result[name] for name in ("test", "val") if isinstance(result.get(name), Mapping)}
    return {
        "name": folder.resolve().name,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "set": str(prepared or said.get("set", "unknown")),
        "settings": settings,
        "model": said.get("model", {}),
        "result": result,
        "labels": labels,
        "measured": measured,
        "classes": {name: classes(held["confusion"], labels) for name, held in measured.items()},
        "charts": curves(folder / "metrics.csv"),
        "rates": list(seen.rates.items()) if seen else [],
        "energy": energy,
        "looks": looks,
        "note": note,
    }


def _read(path: Path, missing: Mapping[str, Any] | None = None) -> dict[str, Any]:
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if missing is not None:
            return dict(missing)
        msg = f"{path.parent} holds no run: there is no {path.name}"
        raise AvdataError(msg, hint="give the --out of a `snnergy train`") from error
    except (OSError, ValueError) as error:
        msg = f"{path} cannot be read ({error})"
        raise AvdataError(msg) from error
    return dict(held)


def curves(metrics: Path) -> list[Chart]:
    """The curves of a run's metrics.csv; none where there is no such file."""
    if not metrics.is_file():
        return []
    points: dict[str, list[tuple[float, float]]] = {}
    with metrics.open(newline="", encoding="utf-8") as rows:
        for row in csv.DictReader(rows):
            for name, value in row.items():
                # The last line of a killed run may be cut short.
                if name and value and (row.get("step") or "").isdigit():
                    points.setdefault(name, []).append((float(row["step"]), float(value)))
    made = []
    for title, names in GROUPS.items():
        held = {name.replace("_", " "): points[name] for name in names if name in points}
        share = title.startswith("Accuracy")
        chart = lines(title, "step", held, low=0.0 if share else None, high=1.0 if share else None)
        made += [chart] if chart else []
    return made


def classes(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Samples, precision, recall and F1 of each label; None where undefined.

    >>> classes([[3, 1], [0, 4]], ["a", "b"])[0]
    {'label': 'a', 'samples': 4, 'precision': 1.0, 'recall': 0.75, 'F1': 0.8571428571428571}
    """
    rows = []
    for index, label in enumerate(labels):
        right, held = confusion[index][index], sum(confusion[index])
        said = sum(row[index] for row in confusion)
        shares = {"precision": (right, said), "recall": (right, held), "F1": (2 * right, said + held)}
        rows.append(
            {"label": label, "samples": held}
            | {name: part / of if of else None for name, (part, of) in shares.items()}
        )
    return rows


def _sample_views(
    folder: Path, prepared: str | Path | None
) -> tuple[MaskRecord | None, list[SampleView], Energy | None, str]:
    """What the best network makes of some samples; a sentence instead where that cannot be told."""
    checkpoint = next(
        (folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None
    )
    if checkpoint is None:
        return None, [], None, "The run has no checkpoint, so nothing is said of its layers and masks."
    if prepared is None or not (Path(prepared) / "dataset.json").is_file():
        note = f"The prepared set {prepared} is not here: no samples are shown. Give it with --on."
        return None, [], None, note
    from snnergy.analysis.attention_masks import record_masks  # noqa: PLC0415
    from snnergy.analysis.energy import measure_energy  # noqa: PLC0415
    from snnergy.data import open_split, to_device  # noqa: PLC0415
    from snnergy.training.checkpoint import load_network  # noqa: PLC0415
    from snnergy.training.evaluation import check_compatible  # noqa: PLC0415

    try:
        network, _ = load_network(checkpoint)
        split = next(
            name for name in ("test", "val", "train") if name in open_split(prepared, "train").info["splits"]
        )
        data = open_split(prepared, split, shuffle=True)
        check_compatible(network, data)
        batch = next(iter(data.loader(min(SAMPLES, len(data)), num_workers=0)))
        made = to_device(batch)
        seen = record_masks(network, made.audio, made.video)
        energy = measure_energy(network, [(made.audio, made.video)])
    except (AvdataError, RuntimeError, ValueError) as error:
        return None, [], None, f"The network could not be run on {prepared}: {error_message(error)}"
    return seen, [_sample_view(data, key, number, seen) for number, key in enumerate(batch.key)], energy, ""


def _sample_view(data: AVDataset, key: str, number: int, seen: MaskRecord) -> SampleView:
    sample = data.find(key)
    said = int(seen.probabilities[number].argmax())
    frames = sample.frames.permute(0, 2, 3, 1).numpy()
    return SampleView(
        key=key,
        label=data.labels[sample.label],
        said=data.labels[said],
        sure=float(seen.probabilities[number, said]),
        pictures=tuple(_sample_images(frames, sample.mel.squeeze(1).numpy(), number, seen)),
    )


def _sample_images(
    frames: np.ndarray, mel: np.ndarray, number: int, seen: MaskRecord
) -> list[tuple[str, str]]:
    """Frames and spectrogram side by side by step, then each stage's masks over them."""
    from avdata.visualization.images import colorize, image_data_uri  # noqa: PLC0415
    from snnergy.analysis.attention_masks import overlay_mask  # noqa: PLC0415

    color = frames if frames.shape[-1] == 3 else np.repeat(frames, 3, axis=-1)
    low, high = float(mel.min()), float(mel.max())
    sound = np.stack([colorize(step, low, high) for step in mel])
    made = [("frames", np.concatenate(list(color), 1)), ("spectrogram", np.concatenate(list(sound), 1))]
    for (modality, stage), masks in sorted(seen.masks.items(), key=lambda held: held[0][::-1]):
        steps = color if modality == "video" else sound
        # A spectrogram's low bands are drawn below, and the mask's rows begin with them.
        held = masks[number] if modality == "video" else masks[number][:, ::-1]
        over = [overlay_mask(step, mask) for step, mask in zip(steps, held, strict=True)]
        what = "frames" if modality == "video" else "spectrogram"
        made.append((f"stage {stage}: what of the {what} passes", np.concatenate(over, 1)))
    return [(what, image_data_uri(picture)) for what, picture in made]
