"""Features of the `datasets` library in the dataset card: label names and the type of each member.

Without features, `datasets` infers types from the first samples: labels are plain integers, and JSON fields
that those samples lack are dropped. With features, labels have names, and missing fields are None.
Format: `datasets.Features` as YAML, https://huggingface.co/docs/datasets/about_dataset_features
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

_Type = Any
"""Name of a type, list with the type of its elements, or dict with the type of each field."""

_FILE = {"bytes": "int64", "path": "string", "sha256": "string"}

_JSON = {
    "av_offset": "float64", "av_peak": "float64", "duration_audio": "float64", "duration_video": "float64",
    "flags": ["string"], "frame_times": ["float64"], "group": "string", "key": "string",
    "label_name": "string",
    "media": {
        "audio_channels": "int64", "audio_codec": "string", "audio_rate": "int64", "container": "string",
        "fps": "float64", "frames": "int64", "height": "int64",
        "pixel_aspect": "float64", "video_codec": "string", "width": "int64",
    },
    "pad_fraction": "float64", "sources": {"audio": _FILE, "video": _FILE}, "split": "string",
    "step_times": ["float64"], "window_end": "float64", "window_start": "float64",
}  # fmt: skip

_EVENT = {"event": ["float64"], "step_labels": ["int64"]}

_SCALARS = {type(None): "null", bool: "bool", int: "int64", float: "float64", str: "string"}


def dataset_features(info: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the features of the WebDataset reader, in the card's YAML form.

    Args:
        info: content of dataset.json.
    """
    config, storage = info["config"], info["config"]["video"]["storage"]
    names = {str(number): label for number, label in enumerate(info["labels"])}
    shape = info["shape"]["frames"]
    image: dict[str, Any] = {"dtype": "image"}
    frames = {"jpeg": ("frames.jpg", image), "png": ("frames.png", image)}.get(
        storage, ("frames.npy", shape and _array(shape, "uint8"))
    )
    fields = {**_JSON, **(_EVENT if info["background"] else {})}
    if config["audio"]["flac"]:
        fields["waveform_span"] = ["int64"]
    extras = [{"name": "extras", "struct": info["extras"]}] if info.get("extras") else []
    members = {
        "cls": {"dtype": {"class_label": {"names": names}}},
        **({"flac": {"dtype": {"audio": {"sampling_rate": config["audio"]["sample_rate"]}}}}
           if config["audio"]["flac"] else {}),
        **({frames[0]: frames[1]} if shape else {}),
        "json": {"struct": [*_fields(fields), *extras]},
        "mel.npy": _array(info["shape"]["mel"], "float16"),
        "__key__": {"dtype": "string"},
        "__url__": {"dtype": "string"},
    }  # fmt: skip
    return [{"name": name, **feature} for name, feature in members.items()]


def json_features(records: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the features of JSON objects with different fields, in the card's YAML form.

    >>> json_features([{"actor": "1001"}, {"actor": None, "take": 2}])
    [{'name': 'actor', 'dtype': 'string'}, {'name': 'take', 'dtype': 'int64'}]
    """
    return _fields(reduce(_merge, map(_json_type, records), {}))


def merge_features(parts: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the features of the JSON objects of several results of `json_features`.

    >>> merge_features([json_features([{"actor": "1001"}]), json_features([{"actor": None, "take": 2}])])
    [{'name': 'actor', 'dtype': 'string'}, {'name': 'take', 'dtype': 'int64'}]
    """
    return _fields(reduce(_merge, ({entry["name"]: _type(entry) for entry in part} for part in parts), {}))


def _type(feature: Mapping[str, Any] | list[Any] | str) -> _Type:
    """Return the type of a feature; the inverse of `_feature`."""
    if isinstance(feature, str):
        return feature
    if isinstance(feature, list):
        return {entry["name"]: _type(entry) for entry in feature}
    if "struct" in feature:
        return _type(feature["struct"])
    return [_type(feature["list"])] if "list" in feature else feature["dtype"]


def _array(shape: list[int], dtype: str) -> dict[str, Any]:
    return {"dtype": {f"array{len(shape)}_d": {"shape": shape, "dtype": dtype}}}


def _fields(types: Mapping[str, _Type]) -> list[dict[str, Any]]:
    return [{"name": name, **_feature(types[name])} for name in sorted(types)]


def _feature(kind: _Type) -> dict[str, Any]:
    if isinstance(kind, list):
        element = _feature(kind[0])
        return {"list": element.get("dtype") or element.get("struct") or element}
    # Parquet has no struct without fields.
    return {"struct": _fields(kind)} if isinstance(kind, dict) and kind else {"dtype": kind or "json"}


def _json_type(value: object) -> _Type:
    if isinstance(value, Mapping):
        return {name: _json_type(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [reduce(_merge, map(_json_type, value), "null")]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return "json"
    return next((name for kind, name in _SCALARS.items() if isinstance(value, kind)), "json")


def _merge(first: _Type, second: _Type) -> _Type:
    """Return the type of values of both types; `json`, if there is no common type."""
    if second in (first, "null"):
        return first
    if first == "null":
        return second
    if isinstance(first, dict) and isinstance(second, dict):
        names = first.keys() | second.keys()
        return {name: _merge(first.get(name, "null"), second.get(name, "null")) for name in names}
    if isinstance(first, list) and isinstance(second, list):
        return [_merge(first[0], second[0])]
    return "float64" if (first, second) in (("int64", "float64"), ("float64", "int64")) else "json"
