"""The dataset card, README.md of a prepared set: what a reader and the Hub need to know of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avdata.errors import QuarantineReason

HUB_SPLITS = {"train": "train", "val": "validation", "test": "test"}

CARD_MARKER = (
    "<!-- Written by avdata and written anew by `avdata publish`; without this line it is left as it is. -->"
)

PERMISSION = (
    "**Published with permission.** The license of the source does not allow everybody to publish this set."
    " Whoever published it stated, with `--i-have-permission`, to have the permission of the owners of the"
    " media. It passes to nobody else: ask the owners before you publish it again."
)

_PAPER = (
    "M. Saleh, Z. Ahmadi. Cross-Modal Binary Attention: An Energy-Efficient Fusion Framework for Audio-Visual"
    " Learning. arXiv:2602.00701, 2026."
)

_SIZES = {
    10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M",
    10**8: "10M<n<100M", 10**9: "100M<n<1B", 10**10: "1B<n<10B",
}  # fmt: skip


def dataset_card(info: Mapping[str, Any], *, repo: str = "USER/NAME", permission: bool = False) -> str:
    """The card as Markdown with the Hub's YAML head.

    Args:
        info: what dataset.json holds.
        repo: name of the repository that the set is published in.
        permission: whoever publishes stated to have the owners' permission.
    """
    parts = [
        _head(info), [CARD_MARKER], [f"# {info['title']}, prepared with avdata"],
        [PERMISSION] if permission else [], _what(info), _splits(info), _labels(info), _preprocessing(info),
        _exclusions(info), _loading(info, repo), _provenance(info), _ethics(info), _rights(info),
    ]  # fmt: skip
    return "\n\n".join("\n".join(part) for part in parts if part) + "\n"


def _head(info: Mapping[str, Any]) -> list[str]:
    import yaml  # noqa: PLC0415

    license = info["license"] or {"id": "unknown"}
    named = {"license_name": license.get("name"), "license_link": license.get("link")}
    files = [{"split": HUB_SPLITS[split], "path": f"{split}/*.tar"} for split in info["splits"]]
    splits = [
        {"name": HUB_SPLITS[split], "num_bytes": _bytes(held), "num_examples": held["samples"]}
        for split, held in info["splits"].items()
    ]
    size = sum(split["num_bytes"] for split in splits)
    head: dict[str, Any] = {
        "pretty_name": info["title"],
        "license": license["id"],
        **(named if license["id"] == "other" else {}),
        "task_categories": ["video-classification", "audio-classification"],
        "size_categories": [_size(sum(held["samples"] for held in info["splits"].values()))],
        "tags": ["webdataset", "audio-visual", "spectrogram", "avdata", "croissant"],
        "configs": [{"config_name": "default", "data_files": files}],
        # No features here: readers that get them stop inferring, and the JSON's fields differ by recipe.
        "dataset_info": {"splits": splits, "download_size": size, "dataset_size": size},
    }
    return ["---", yaml.safe_dump(head, sort_keys=False, allow_unicode=True).strip(), "---"]


def _bytes(split: Mapping[str, Any]) -> int:
    return sum(shard["bytes"] for shard in split["shards"])


def _size(samples: int) -> str:
    return next((name for limit, name in _SIZES.items() if samples < limit), "10B<n<100B")


def _what(info: Mapping[str, Any]) -> list[str]:
    mel, frames, config = info["shape"]["mel"], info["shape"]["frames"], info["config"]
    storage = config["video"]["storage"]
    pictures = (
        f"- `frames.npy`: uint8 {frames}: steps, height, width, channels"
        if storage == "npy"
        else f"- `frames.{'jpg' if storage == 'jpeg' else storage}`: the {frames[0]} frames of"
        f" {frames[1]} × {frames[2]} side by side, in order"
    )
    mock = info["source"].get("checksums") == "mock"
    return [
        *(["**Generated media that stand in for the dataset; not the dataset itself.**", ""] if mock else []),
        "Each sample is one clip: sound and pictures on one time axis, cut into equal steps.",
        "",
        f"- `mel.npy`: float16 {mel}: steps, bands, columns",
        pictures,
        "- `cls`: the label's index",
        "- `json`: label, split, group, times, measured offset, flags, provenance",
        *(["- `flac`: the window's waveform"] if config["audio"]["flac"] else []),
        "",
        "`index.parquet` has one row a sample, `quarantine.parquet` one a clip left out, `dataset.json` every"
        " setting, `croissant.json` the same for machines.",
    ]


def _splits(info: Mapping[str, Any]) -> list[str]:
    rows = [
        f"| {name} | {split['samples']:,} | {split['groups']:,} | {len(split['shards']):,} |"
        f" {_bytes(split):,} |"
        for name, split in info["splits"].items()
    ]
    leaks = info["leaks"]
    said = (
        f"**{leaks:,} groups are in more than one split**, as this way of splitting was published: results on"
        " it do not tell how well a model does on new groups."
        if leaks
        else "No group is in two splits: what a model is tested on it has never heard or seen."
    )
    return [
        "## Splits",
        "",
        f"Split by `{info['split_by']}`; a group is what a split must not cross (speaker, recording, video).",
        "",
        "| split | samples | groups | shards | bytes |",
        "|---|---|---|---|---|",
        *rows,
        "",
        said,
    ]


def _labels(info: Mapping[str, Any]) -> list[str]:
    names = list(info["splits"])
    rows = [
        " | ".join(
            [
                f"| {number} | {label}",
                *(f"{info['splits'][name]['labels'].get(label, 0):,}" for name in names),
            ]
        )
        + " |"
        for number, label in enumerate(info["labels"])
    ]
    background = info["background"]
    return [
        "## Labels",
        "",
        f"| index | label | {' | '.join(names)} |",
        "|---|---|" + "---|" * len(names),
        *rows,
        *(
            [
                "",
                f"Steps outside a clip's event have index {len(info['labels'])}, {background}"
                " (`step_labels` in the JSON).",
            ]
            if background
            else []
        ),
    ]


def _preprocessing(info: Mapping[str, Any]) -> list[str]:
    config = info["config"]
    rows = [
        f"| {section}.{name} | `{value}` |"
        for section in ("audio", "video", "align", "quality", "select", "shards")
        for name, value in config.get(section, {}).items()
    ]
    return [
        "## Preprocessing",
        "",
        f"Config hash `{info['config_hash']}`.",
        "",
        "| setting | value |",
        "|---|---|",
        *rows,
        "",
        "### Time axis",
        "",
        "All times are seconds on the clip's own axis, as the container's presentation timestamps say, not"
        " frame numbers divided by a nominal rate. Step t covers [start + t·d, start + (t + 1)·d); its frame"
        " is the one on screen at the step's middle, its mel columns are those whose window centers lie"
        " inside it. Where sound and pictures come from different files, `av_offset` is measured by"
        " cross-correlation.",
        "",
        "Mels are stored as computed; `mel_stats` in `dataset.json` has the train split's mean and deviation"
        " of each band.",
    ]


def _exclusions(info: Mapping[str, Any]) -> list[str]:
    lost = [
        f"| {count:,} | `{reason}` | {QuarantineReason(reason).description} |"
        for reason, count in info["quarantine"].items()
    ]
    if not lost:
        return ["## Left out", "", "No clip."]
    return ["## Left out", "", "| clips | reason | |", "|---|---|---|", *lost]


def _loading(info: Mapping[str, Any], repo: str) -> list[str]:
    split = next(iter(info["splits"]), "train")
    return [
        "## How to load it",
        "",
        "```python",
        "import avdata",
        "",
        f'data = avdata.open("hf://datasets/{repo}", split="{split}", shuffle=True)',
        "for batch in data.loader(batch_size=32):",
        "    batch.mel, batch.frames, batch.label",
        "```",
        "",
        "```python",
        "from datasets import load_dataset",
        "",
        f'data = load_dataset("{repo}", split="{HUB_SPLITS[split]}", streaming=True)',
        "```",
        "",
        "```python",
        "import webdataset",
        "from huggingface_hub import HfApi, hf_hub_url",
        "",
        f'names = HfApi().list_repo_files("{repo}", repo_type="dataset")',
        f'urls = [hf_hub_url("{repo}", name, repo_type="dataset")',
        f'        for name in names if name.startswith("{split}/")]',
        'data = webdataset.WebDataset(urls, shardshuffle=False).decode("torchrgb")',
        "```",
        "",
        f"`avdata pull {repo} --into {info['name']}` fetches all of it, proven byte for byte.",
    ]


def _provenance(info: Mapping[str, Any]) -> list[str]:
    source = info["source"]
    proven = {
        "manifest": "Every source file was held against the published checksums.",
        "mock": "The source files were generated.",
        "off": "The source files were taken as they were: checksums were off.",
    }[source["checksums"]]
    rows = [
        f"| {one['name']} | {'<br>'.join(one['urls'])} | `{one['checksum'] or 'by file'}` |"
        for one in source.get("sources", [])
    ]
    tools = ", ".join(f"{name} {number}" for name, number in info["tools"].items())
    return [
        "## Provenance",
        "",
        proven,
        *([f"Homepage: {source['homepage']}."] if source.get("homepage") else []),
        *([f"Commit `{source['commit']}`."] if source.get("commit") else []),
        *(["", "| source | from | checksum |", "|---|---|---|", *rows] if rows else []),
        "",
        f"Recipe `{info['recipe']['name']}` {info['recipe']['version']}, plan `{info['plan']}`, on"
        f" {info['machine']}: {tools}. Each shard's SHA-256 is in `dataset.json`, each sample's in"
        " `index.parquet`, each source file's in the samples' JSON.",
    ]


def _ethics(info: Mapping[str, Any]) -> list[str]:
    return ["## People", "", info["ethics"]] if info.get("ethics") else []


def _rights(info: Mapping[str, Any]) -> list[str]:
    license = info["license"]
    return [
        "## License and citation",
        "",
        f"{license['name']}. {license['note']}" if license else "Unknown: prepared with checksums off.",
        "",
        *([f"- The dataset: {info['citation']}"] if info["citation"] else []),
        f"- The network that this preparation was made for, SNNergy: {_PAPER}",
    ]
