"""Samples and datasets as HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from avdata.visualization.images import frame_images, spectrogram_image

SAMPLES_SHOWN = 3
"""Samples that a dataset shows of itself."""

_BOX = "max-width:640px;font:13px/1.5 system-ui,sans-serif;margin:0 0 1em"

_STEPS = (
    "position:absolute;inset:0;"
    "background:repeating-linear-gradient(to right,transparent 0 calc({step}% - 1px),"
    "rgb(255 255 255/.55) calc({step}% - 1px) {step}%)"
)


def render_sample(mel: np.ndarray, frames: np.ndarray, facts: Mapping[str, Any]) -> str:
    """A sample as HTML that stands alone: frames above the spectrogram on one time axis.

    Args:
        mel: [T, F, L].
        frames: uint8 [T, H, W, C].
        facts: the sample's JSON.
    """
    steps = len(frames)
    # The same picture in every step is one of the whole window.
    whole = mel[0] if (mel == mel[:1]).all() and steps > 1 else np.concatenate(list(mel), axis=1)
    start, end = facts["window_start"], facts["window_end"]
    shown = frame_images(frames)
    strip = "".join(f'<img alt="" src="{uri}" style="width:{width:.3%}">' for _, width, uri in shown)
    flags = "".join(f" · {escape(flag)}" for flag in facts.get("flags", ()))
    return (
        f'<div style="{_BOX}"><b>{escape(facts["key"])}</b> {escape(facts["label_name"])}'
        f" · {escape(facts['split'])}{flags}"
        f'<div style="display:flex">{strip}</div><div style="position:relative;height:96px">'
        f'<img alt="frames and spectrogram of {escape(facts["key"])}" src="{spectrogram_image(whole)}"'
        f' style="width:100%;height:100%"><div style="{_STEPS.format(step=round(100 / steps, 4))}">'
        "</div></div>"
        f'<div style="display:flex;justify-content:space-between"><span>{start:.2f}</span>'
        f"<span>{end:.2f} s</span></div></div>"
    )


def render_dataset(
    info: Mapping[str, Any],
    split: str,
    count: int,
    shapes: Mapping[str, Sequence[int]],
    samples: Sequence[str],
    chosen: str | None = None,
) -> str:
    """A split of a prepared set: what it is, its labels, and some of its samples.

    Args:
        info: the set's dataset.json.
        split: the split.
        count: its samples.
        shapes: the shape of a sample's `mel` and `frames`.
        samples: the HTML of some samples.
        chosen: the filter that chose the samples.
    """
    facts = info["splits"][split]
    labels = ", ".join(f"{escape(name)} {number:,}" for name, number in facts["labels"].items())
    where = f" where <code>{escape(chosen)}</code>" if chosen else ""
    mel, frames = (" × ".join(map(str, shapes[name])) for name in ("mel", "frames"))
    return (
        f'<div style="{_BOX}"><b>{escape(info["title"])}</b>, {escape(split)}:'
        f" {count:,} samples of {facts['groups']:,} group{'s' * (facts['groups'] != 1)}{where}<br>"
        f"spectrogram {mel}, frames {frames}<br>{labels}</div>" + "".join(samples)
    )
