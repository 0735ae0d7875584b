"""HTML report of a training run, or of several runs that are compared.

    snnergy.report("run")                             # writes run/report.html
    snnergy.report("run", against=["other"])          # writes run/comparison.html

The report contains what the run's folder contains: for a run that was stopped, only the curves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import AvdataError, error_message, redact_url
from avdata.reporting.charts import Chart, lines
from avdata.storage.paths import local_path
from snnergy.analysis.firing_rates import FILE, rate_charts
from snnergy.analysis.run_comparison import collect_comparison
from snnergy.analysis.run_results import (
    Points,
    describe_settings,
    find_baseline,
    flatten,
    preset_changes,
    read_points,
    read_run,
)

if TYPE_CHECKING:
    from avdata.streaming.dataset import AVDataset
    from snnergy.analysis.attention_masks import MaskRecord
    from snnergy.analysis.energy import Energy

NAME, COMPARISON_NAME = "report.html", "comparison.html"

SAMPLES = 8
"""Samples in the report: half of them wrong predictions, if there are so many."""

MAX_SEARCHED = 64
"""Samples that are evaluated to find right and wrong predictions."""

GROUPS = {
    "Loss": (("train_loss", "val_loss"), "cross-entropy"),
    "Accuracy on the validation split": (("val_accuracy",), "share of samples"),
    "Learning rate": (("lr",), "learning rate"),
    "Norm of the gradient": (("grad_norm",), "L2 norm"),
}
"""Charts by title: the columns of metrics.csv that they show, and the title of the y axis."""


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

    @property
    def is_correct(self) -> bool:
        """Whether the predicted label is the true one."""
        return self.label == self.predicted


@dataclass(frozen=True)
class NetworkView:
    """What a run's best network does on samples of its dataset.

    Attributes:
        rates: (layer, firing rate) in the order of the network.
        samples: samples with their predictions.
        searched: number of samples from which they were selected.
        energy: energy on the first batch.
        raster: data URI of the spikes for the first sample; empty for an artificial network.
        note: why the rest is empty, or empty.
    """

    rates: Sequence[tuple[str, float]] = ()
    samples: Sequence[SampleView] = ()
    searched: int = 0
    energy: Energy | None = None
    raster: str = ""
    note: str = ""


def report(
    run: str | Path,
    output: str | Path | None = None,
    *,
    dataset: str | Path | None = None,
    against: Sequence[str | Path] = (),
) -> Path:
    """Write an HTML report of a training run, or a comparison of several runs.

    Args:
        run: folder of the run.
        output: HTML file to write; None: `report.html` in the folder of the run, or `comparison.html`.
        dataset: the prepared dataset; None: the one in run.json. If it is missing, the report has no
            samples.
        against: folders of runs to compare with `run`, which is the reference.

    Returns:
        The path of the file.

    Raises:
        UsageError: more than eight runs.
        AvdataError: a folder contains no run, or the file cannot be written.
    """
    from avdata.reporting.html import render  # noqa: PLC0415
    from avdata.storage.atomic import atomic_write  # noqa: PLC0415

    folder = Path(run)
    path = folder / (COMPARISON_NAME if against else NAME) if output is None else local_path(output)
    if against:
        template, context = "runs.html", collect_comparison([folder, *map(Path, against)])
    else:
        template, context = "run.html", collect_page_data(folder, dataset)
    created = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = render(template, package="snnergy.analysis", created=created, **context)
    atomic_write(path, page.encode())
    return path


def collect_page_data(folder: Path, dataset: str | Path | None = None) -> dict[str, Any]:
    """Return the variables of the template. Arguments as for `report`."""
    run = read_run(folder)
    stored = None if run.dataset == "unknown" else run.dataset
    view = _inspect_network(folder, dataset or stored)
    return {
        "run": run,
        "baseline": find_baseline(run),
        "dataset": redact_url(dataset) if dataset else run.dataset,
        "changed": preset_changes(run),
        "settings": flatten({**run.settings, "network": run.model}),
        "descriptions": describe_settings(),
        "charts": curves(run.points),
        "view": view,
        "rate_charts": rate_charts(
            read_points(folder / FILE), view.rates or list(run.result.get("rates", {}).items())
        ),
    }


def curves(points: Points) -> list[Chart]:
    """Return charts of the columns of a run's metrics.csv."""
    charts = []
    for title, (names, y_title) in GROUPS.items():
        series = {name.replace("_", " "): points[name] for name in names if name in points}
        is_share = title.startswith("Accuracy")
        limits = {"low": 0.0, "high": 1.0} if is_share else {}
        chart = lines(title, ("optimizer step", y_title), series, **limits)
        charts += [chart] if chart else []
    return charts


def _inspect_network(folder: Path, dataset: str | Path | None) -> NetworkView:
    """Return rates, samples and energy of the best network, or a note that explains why there are none."""
    checkpoint = next(
        (folder / name for name in ("best.ckpt", "last.ckpt") if (folder / name).is_file()), None
    )
    if checkpoint is None:
        return NetworkView(note="The run has no checkpoint: no firing rates and masks.")
    is_url = "://" in str(dataset)
    if dataset is None or not (is_url or (Path(dataset) / "dataset.json").is_file()):
        return NetworkView(
            note=f"Prepared dataset not found: {dataset}. Pass its path with --dataset to show samples."
        )
    try:
        return _run_network(checkpoint, dataset)
    except (AvdataError, RuntimeError, ValueError) as error:
        return NetworkView(note=f"Cannot run the network on {dataset}: {error_message(error)}")


def _run_network(checkpoint: Path, dataset: str | Path) -> NetworkView:
    from avdata.visualization.images import image_data_uri  # noqa: PLC0415
    from snnergy.analysis.attention_masks import record_masks  # noqa: PLC0415
    from snnergy.analysis.energy import measure_energy  # noqa: PLC0415
    from snnergy.analysis.spike_raster import draw_raster, record_raster  # noqa: PLC0415
    from snnergy.data import mel_transform, open_any_split, to_device  # noqa: PLC0415
    from snnergy.training.checkpoint import load_network  # noqa: PLC0415
    from snnergy.training.evaluation import match_dataset  # noqa: PLC0415

    network, config = load_network(checkpoint)
    data = open_any_split(dataset, ("test", "val", "train"), features=config.features, shuffle=True)
    facts, _ = match_dataset(network, data)
    transform = mel_transform(data, facts=facts)
    rates, energy, raster, searched = list[tuple[str, float]](), None, "", 0
    right, wrong = list[SampleView](), list[SampleView]()
    for batch in data.loader(min(SAMPLES, len(data)), num_workers=0):
        inputs = to_device(batch, mel=transform)
        given = inputs.audio, inputs.video, *inputs.masks
        record = record_masks(network, *given)
        if energy is None:
            rates = list(record.rates.items())
            energy = measure_energy(network, [given])
            layers = record_raster(network, *given)
            raster = image_data_uri(draw_raster(layers)) if layers else ""
        for number, key in enumerate(batch.key):
            is_right = data.labels[int(batch.label[number])] == facts.labels[record.predicted(number)]
            views = right if is_right else wrong
            if len(views) < SAMPLES and batch.weight[number] > 0:
                views.append(_sample_view(data, facts.labels, key, number, record))
        searched += int((batch.weight > 0).sum())
        if searched >= MAX_SEARCHED or min(len(right), len(wrong)) >= SAMPLES // 2:
            break
    # Wrong predictions are the rarer ones; the rest of the page is filled with right ones.
    num_wrong = min(len(wrong), max(SAMPLES // 2, SAMPLES - len(right)))
    samples = [*wrong[:num_wrong], *right[: SAMPLES - num_wrong]]
    return NetworkView(rates, samples, searched, energy, raster)


def _sample_view(
    data: AVDataset, labels: Sequence[str], key: str, number: int, record: MaskRecord
) -> SampleView:
    sample = data.find(key)
    predicted = record.predicted(number)
    assert sample.mel is not None
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
    from avdata.visualization.images import color_limits, colorize, image_data_uri  # noqa: PLC0415
    from snnergy.analysis.attention_masks import overlay_mask  # noqa: PLC0415

    low, high = color_limits(mel)
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
