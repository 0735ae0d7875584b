"""Samples and datasets as HTML for notebooks."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from avdata.visualization.images import frame_images, spectrogram_image

SAMPLES_SHOWN = 3
"""Samples in the HTML of a dataset."""

_BOX = "max-width:640px;font:13px/1.5 system-ui,sans-serif;margin:0 0 1em"

_STEPS = (
    "position:absolute;inset:0;"
    "background:repeating-linear-gradient(to right,transparent 0 calc({step}% - 1px),"
    "rgb(255 255 255/.55) calc({step}% - 1px) {step}%)"
)


def web_url(text: object) -> str | None:
    """Return a text if it is an http or https URL, which is safe as a link; else None.

    >>> web_url("https://example.org"), web_url("javascript:alert(1)")
    ('https://example.org', None)
    """
    return text if isinstance(text, str) and re.fullmatch(r"(?i:https?)://\S+", text) else None


def render_sample(mel: np.ndarray, frames: np.ndarray | None, facts: Mapping[str, Any]) -> str:
    """Return a sample as self-contained HTML: frames above the spectrogram on one time axis.

    Args:
        mel: log-mel spectrogram of each step, [T, F, L].
        frames: uint8 [T, H, W, C], or None.
        facts: the sample's JSON.
    """
    steps = len(mel)
    # Equal steps mean that each one contains the spectrogram of the complete window.
    joined = mel[0] if (mel == mel[:1]).all() and steps > 1 else np.concatenate(list(mel), axis=1)
    start, end = facts["window_start"], facts["window_end"]
    images = [] if frames is None else frame_images(frames)
    strip = "".join(f'<img alt="" src="{uri}" style="width:{width:.3%}">' for _, width, uri in images)
    flags = "".join(f" · {escape(flag)}" for flag in facts.get("flags", ()))
    return (
        f'<div style="{_BOX}"><b>{escape(facts["key"])}</b> {escape(facts["label_name"])}'
        f" · {escape(facts['split'])}{flags}"
        f'<div style="display:flex">{strip}</div><div style="position:relative;height:96px">'
        f'<img alt="{"frames and " * bool(images)}spectrogram of {escape(facts["key"])}"'
        f' src="{spectrogram_image(joined)}"'
        f' style="width:100%;height:100%"><div style="{_STEPS.format(step=round(100 / steps, 4))}">'
        "</div></div>"
        f'<div style="display:flex;justify-content:space-between"><span>{start:.2f}</span>'
        f"<span>{end:.2f} s</span></div></div>"
    )


def render_dataset(
    info: Mapping[str, Any],
    split: str,
    count: int,
    shapes: Mapping[str, Sequence[int] | None],
    samples: Sequence[str],
    filter_text: str | None = None,
) -> str:
    """Return a split of a dataset as HTML: title, shapes, labels and some samples.

    Args:
        info: the content of dataset.json.
        split: name of the split.
        count: number of samples.
        shapes: shapes of a sample's `mel` and `frames`.
        samples: HTML of some samples.
        filter_text: the filter that selected the samples, if there is one.
    """
    facts = info["splits"][split]
    labels = ", ".join(f"{escape(name)} {number:,}" for name, number in facts["labels"].items())
    where = f" where <code>{escape(filter_text)}</code>" if filter_text else ""
    mel, frames = (escape(" × ".join(map(str, shapes[name] or ()))) or "none" for name in ("mel", "frames"))
    return (
        f'<div style="{_BOX}"><b>{escape(info["title"])}</b>, {escape(split)}:'
        f" {count:,} samples of {facts['groups']:,} group{'s' * (facts['groups'] != 1)}{where}<br>"
        f"spectrogram {mel}, frames {frames}<br>{labels}</div>" + "".join(samples)
    )
