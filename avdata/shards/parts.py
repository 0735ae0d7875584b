"""Parts of a dataset: prepared datasets of one recipe and config that are read as one.

`select.part` divides a dataset by a hash of the group, so that each clip is in exactly one part. All counts
add up, and the statistics of the mels are merged exactly: they are those of the undivided dataset.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from avdata.config.overrides import diff_settings
from avdata.config.schema import Config
from avdata.errors import AvdataError
from avdata.shards.card_features import merge_features
from avdata.shards.dataset_info import SPLITS
from avdata.shards.mel_sums import MelSums

_log = logging.getLogger(__name__)

_SHARED = (
    "format", "name", "title", "recipe", "license", "citation", "ethics", "labels", "label_orders",
    "background", "split_by", "shape",
)  # fmt: skip
"""Fields of dataset.json that are equal in all parts."""

_COUNTED_SOURCES = ("files", "lists")


def merge_infos(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the dataset.json of the union of some parts.

    Shards have the path of their part, a slash, and their path in the part.

    Args:
        infos: content of dataset.json by the path of the part, in the order of the samples.

    Raises:
        AvdataError: the parts differ in recipe, settings or source, a part occurs twice, or one was prepared
            by a version that did not record exact sums.
    """
    parts = list(infos.values())
    first = parts[0]
    for name, info in infos.items():
        _check_alike(name, info, *next(iter(infos.items())))
    _check_numbers(infos)
    config = _without_part(first)
    mel_sums = MelSums()
    for info in parts:
        mel_sums.add(MelSums.from_json(info["mel_sums"]))
    return {
        **{name: first[name] for name in _SHARED},
        "config": config.model_dump(mode="json"),
        "config_hash": config.hash,
        "plan": _hash_of(info["plan"] for info in parts),
        "source": _merge_sources([info["source"] for info in parts]),
        "extras": merge_features(info["extras"] for info in parts),
        "splits": _merge_splits(infos),
        "leaks": sum(info["leaks"] for info in parts),
        "quarantine": _total(info["quarantine"] for info in parts),
        "flags": _total(info["flags"] for info in parts),
        "mel_stats": mel_sums.statistics(),
        "mel_sums": mel_sums.to_json(),
        "tools": {
            tool: _joined(info["tools"][tool] for info in parts if tool in info["tools"])
            for tool in dict.fromkeys(tool for info in parts for tool in info["tools"])
        },
        "machine": _joined(info["machine"] for info in parts),
        "index": {
            "bytes": sum(info["index"]["bytes"] for info in parts),
            "sha256": _hash_of(info["index"]["sha256"] for info in parts),
        },
    }


def missing_parts(infos: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the parts that `select.part` of the others implies, such as `7/100`."""
    numbers = {part for info in infos if (part := info["config"]["select"]["part"]) is not None}
    counts = {int(part.partition("/")[2]) for part in numbers}
    return [
        f"{number}/{count}"
        for count in sorted(counts)
        for number in range(1, count + 1)
        if f"{number}/{count}" not in numbers
    ]


def _check_alike(name: str, info: Mapping[str, Any], other: str, expected: Mapping[str, Any]) -> None:
    """Raise AvdataError if two datasets cannot be read as one."""
    hint = "Prepare all parts with the same version, recipe, source and settings."
    differences = diff_settings(
        _without_part(info).model_dump(mode="json"), _without_part(expected).model_dump(mode="json")
    )
    if differences:
        setting, value, required = differences[0]
        msg = f"Config mismatch of parts: {setting} is {value} in {name}, {required} in {other}."
        raise AvdataError(msg, hint=hint)
    fields = [field for field in _SHARED if info[field] != expected[field]]
    if _shared_source(info) != _shared_source(expected):
        fields.append("source")
    if fields:
        msg = f"Parts {name} and {other} cannot be read as one: {', '.join(fields)} of dataset.json differ."
        raise AvdataError(msg, hint=hint)
    if not (info.get("index") and info.get("mel_sums")):
        msg = f"{name} cannot be a part: its dataset.json records no mel_sums."
        raise AvdataError(msg, hint="Prepare it again with this version of avdata.")


def _check_numbers(infos: Mapping[str, Mapping[str, Any]]) -> None:
    numbers: dict[str, str] = {}
    for name, info in infos.items():
        part = info["config"]["select"]["part"]
        if part in numbers:
            msg = f"Part {part} occurs twice: {numbers[part]} and {name}."
            raise AvdataError(msg, hint="Leave one of them out.")
        if part is not None:
            numbers[part] = name
    if len({part.partition("/")[2] for part in numbers}) > 1 or 0 < len(numbers) < len(infos):
        listed = ", ".join(f"{info['config']['select']['part']} in {name}" for name, info in infos.items())
        msg = f"Parts are of different divisions: {listed[:200]}."
        raise AvdataError(msg, hint="Prepare all parts with the same N of --part I/N.")


def _without_part(info: Mapping[str, Any]) -> Config:
    config = info["config"]
    return Config.model_validate({**config, "select": {**config["select"], "part": None}})


def _shared_source(info: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in info["source"].items() if name not in _COUNTED_SOURCES}


def _merge_sources(sources: list[Mapping[str, Any]]) -> dict[str, Any]:
    merged = dict(sources[0])
    if merged.get("files"):
        merged["files"] = {
            "verified": _total(source["files"]["verified"] for source in sources),
            "unverified": sum(source["files"]["unverified"] for source in sources),
        }
    return merged  # each part read the same lists


def _merge_splits(infos: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    splits = {}
    for name in SPLITS:
        entries = {part: info["splits"][name] for part, info in infos.items() if name in info["splits"]}
        if entries:
            splits[name] = {
                "samples": sum(entry["samples"] for entry in entries.values()),
                "shards": [
                    {**shard, "path": f"{part}/{shard['path']}"}
                    for part, entry in entries.items()
                    for shard in entry["shards"]
                ],
                "labels": {
                    label: sum(entry["labels"][label] for entry in entries.values())
                    for label in next(iter(entries.values()))["labels"]
                },
                "groups": sum(entry["groups"] for entry in entries.values()),
            }
    return splits


def _total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def _joined(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _hash_of(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
