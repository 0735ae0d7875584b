"""For notebooks: samples and datasets as pictures where a cell ends with one, and bars for long work.

avdata.prepare("cremad", source="raw", out="out/cremad", progress=avdata.bars())
avdata.open("out/cremad")[0]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from avdata.batch import AVSample
    from avdata.sample import Sample
    from avdata.stream import AVDataset

Progress = Callable[[str, int, int], None]

SHOWN = 3
"""Samples that a dataset shows of itself."""

_BOX = "max-width:640px;font:13px/1.5 system-ui,sans-serif;margin:0 0 1em"
_STEPS = (
    "position:absolute;inset:0;"
    "background:repeating-linear-gradient(to right,transparent 0 calc({step}% - 1px),"
    "rgb(255 255 255/.55) calc({step}% - 1px) {step}%)"
)


def bars() -> Progress:
    """A `progress` for `prepare`, `download`, `verify` and `report` that draws tqdm's bars.

    >>> show = bars()
    """
    from tqdm.auto import tqdm  # noqa: PLC0415

    held: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        bar = held.get(stage)
        if bar is None or (bar.n >= bar.total and done < bar.n):  # the same work begins once more
            bar = held[stage] = tqdm(total=total, desc=stage)
        bar.total = total
        bar.update(done - bar.n)
        if done >= total:
            bar.close()

    return show


def picture_of(mel: np.ndarray, frames: np.ndarray, facts: Mapping[str, Any]) -> str:
    """A sample as HTML that stands alone: frames above the spectrogram on one time axis.

    Args:
        mel: [T, F, L].
        frames: uint8 [T, H, W, C].
        facts: the sample's JSON.
    """
    from avdata.report.gallery import frame_pictures, spectrogram_picture  # noqa: PLC0415

    steps = len(frames)
    # The same picture in every step is one of the whole window.
    whole = mel[0] if (mel == mel[:1]).all() and steps > 1 else np.concatenate(list(mel), axis=1)
    start, end = facts["window_start"], facts["window_end"]
    shown = frame_pictures(frames)
    strip = "".join(f'<img alt="" src="{uri}" style="width:{width:.3%}">' for _, width, uri in shown)
    flags = "".join(f" · {escape(flag)}" for flag in facts.get("flags", ()))
    return (
        f'<div style="{_BOX}"><b>{escape(facts["key"])}</b> {escape(facts["label_name"])}'
        f" · {escape(facts['split'])}{flags}"
        f'<div style="display:flex">{strip}</div><div style="position:relative;height:96px">'
        f'<img alt="frames and spectrogram of {escape(facts["key"])}" src="{spectrogram_picture(whole)}"'
        f' style="width:100%;height:100%"><div style="{_STEPS.format(step=round(100 / steps, 4))}">'
        "</div></div>"
        f'<div style="display:flex;justify-content:space-between"><span>{start:.2f}</span>'
        f"<span>{end:.2f} s</span></div></div>"
    )


def sample_html(sample: AVSample) -> str:
    """One sample of a stream."""
    return picture_of(sample.mel.squeeze(1).numpy(), sample.frames.permute(0, 2, 3, 1).numpy(), sample.facts)


def stored_html(sample: Sample) -> str:
    """One sample as it is stored."""
    return picture_of(sample.mel.astype(np.float32), sample.frames, sample.facts)


def dataset_html(dataset: AVDataset, samples: Sequence[AVSample]) -> str:
    """A split of a prepared set: what it is, its labels, and some of its samples."""
    info, split = dataset.info, dataset.info["splits"][dataset.split]
    labels = ", ".join(f"{escape(name)} {count:,}" for name, count in split["labels"].items())
    chosen = f" where <code>{escape(dataset.filter)}</code>" if dataset.filter else ""
    mel, frames = (" × ".join(map(str, shape)) for shape in (dataset.shape.mel, dataset.shape.frames))
    return (
        f'<div style="{_BOX}"><b>{escape(info["title"])}</b>, {escape(dataset.split)}:'
        f" {len(dataset):,} samples of {split['groups']:,} group{'s' * (split['groups'] != 1)}{chosen}<br>"
        f"spectrogram {mel}, frames {frames}<br>{labels}</div>" + "".join(map(sample_html, samples))
    )
