"""The dataset card, README.md of a prepared set: what a reader and the Hub need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}


def dataset_card(info: Mapping[str, Any]) -> str:
    """The card as Markdown with the Hub's YAML head.

    Args:
        info: what dataset.json holds.
    """
    return "\n".join([*_head(info), "", f"# {info['title']}, prepared with avdata", "", *_body(info)]) + "\n"


def _head(info: Mapping[str, Any]) -> list[str]:
    import yaml  # noqa: PLC0415

    samples = sum(split["samples"] for split in info["splits"].values())
    licence = info["licence"] or {"id": "unknown", "name": "unknown", "link": None}
    files = [{"split": HUB_SPLITS[split], "path": f"{split}/*.tar"} for split in info["splits"]]
    head: dict[str, Any] = {
        "pretty_name": info["title"],
        "license": licence["id"],
        **(
            {"license_name": licence["name"], "license_link": licence["link"]}
            if licence["id"] == "other"
            else {}
        ),
        "task_categories": ["video-classification", "audio-classification"],
        "size_categories": [_size(samples)],
        "tags": ["webdataset", "audio-visual", "avdata"],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---"]


def _size(samples: int) -> str:
    for limit, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**6, "100K<n<1M")):
        if samples < limit:
            return name
    return "1M<n<10M"


def _body(info: Mapping[str, Any]) -> list[str]:
    mel, frames, config = info["shape"]["mel"], info["shape"]["frames"], info["config"]
    video = {"jpeg": "frames.jpg", "png": "frames.png", "npy": "frames.npy"}[config["video"]["storage"]]
    counts = [
        f"| {name} | {split['samples']:,} | {split['groups']:,} | {len(split['shards'])} |"
        for name, split in info["splits"].items()
    ]
    lost = [f"- {count:,} × `{reason}`" for reason, count in info["quarantine"].items()] or ["None."]
    labels = ", ".join(f"{index} {name}" for index, name in enumerate(info["labels"]))
    licence = info["licence"]
    mock = info["source"].get("checksums") == "mock"
    return [
        *(["**Generated media that stand in for the dataset; not the dataset itself.**", ""] if mock else []),
        f"Split by `{info['split_by']}`.",
        "",
        "| split | samples | groups | shards |",
        "|---|---|---|---|",
        *counts,
        "",
        "## A sample",
        "",
        f"- `mel.npy`: float16 {mel}: steps, bands, columns ({config['audio']['kind']},"
        f" {config['audio']['sample_rate']} Hz, n_fft {config['audio']['n_fft']},"
        f" hop {config['audio']['hop']})",
        f"- `{video}`: {frames[0]} frames of {frames[1]} × {frames[2]}",
        f"- `cls`: {labels}",
        "- `json`: label, split, times, measured offset, provenance",
        "",
        "All settings are in `dataset.json`; one row a sample is in `index.parquet`.",
        "",
        "## Left out",
        "",
        *lost,
        "",
        "## Licence and citation",
        "",
        f"{licence['name']}. {licence['note']}" if licence else "Unknown: prepared with checksums off.",
        "",
        *([info["citation"]] if info["citation"] else []),
    ]
