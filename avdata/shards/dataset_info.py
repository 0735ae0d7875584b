"""Schema of dataset.json, the one place where its content is parsed and checked.

A published dataset.json is outside data: its names become paths that are written, read and deleted, its sizes
become memory, and its texts are printed. After `parse_info`, every field has the type that readers expect.
Unknown fields are kept, so that a newer version may add some.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from avdata.config.overrides import merge_overrides
from avdata.config.schema import Config, format_validation_error
from avdata.errors import AvdataError, shorten
from avdata.features.audio import feature_bins
from avdata.manifest import License
from avdata.shards.format import FORMAT_VERSION

SPLITS = ("train", "val", "test")

MAX_ELEMENTS = 2**31
"""Largest number of elements of one array of a sample."""

MAX_DEPTH = 32
"""Largest depth of nested objects and lists. Writers of YAML and JSON recurse."""

_SHARD_PATH = re.compile(rf"(?:[A-Za-z0-9_][A-Za-z0-9._=-]*/)?({'|'.join(SPLITS)})/[A-Za-z0-9._-]+\.tar")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")

_PART_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=-]*")

_DAMAGED_HINT = "Prepare the dataset again with --overwrite, or download it again."

_UNSAFE_HINT = "Do not use this dataset: it was changed after its preparation."

Count = Annotated[int, Field(ge=0, le=2**53)]

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

Integer = Annotated[str, Field(pattern=r"^-?[0-9]{1,60}$")]

Size = Annotated[int, Field(ge=1, le=2**31)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


class _Recipe(_Model):
    name: str
    version: int


class _Shard(_Model):
    path: str
    samples: Count
    bytes: Count
    sha256: Sha256


class _Split(_Model):
    samples: Count
    shards: list[_Shard]
    labels: dict[str, Count]
    groups: Count


class _Verified(_Model):
    verified: dict[str, Count]
    unverified: Count


class _SourceEntry(_Model):
    name: str
    urls: list[str]
    checksum: str | None = None
    checksum_per_file: bool = False


class _Source(_Model):
    checksums: Literal["off", "manifest", "mock"]
    homepage: str | None = None
    commit: str | None = None
    manifest: str | None = None
    files: _Verified | None = None
    lists: _Verified | None = None
    sources: list[_SourceEntry] = []


class _License(License):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Shape(_Model):
    mel: Annotated[list[Size], Field(min_length=3, max_length=3)]
    frames: Annotated[list[Size], Field(min_length=4, max_length=4)] | None


class _MelStats(_Model):
    mean: list[float]
    std: list[Annotated[float, Field(ge=0)]]


class _MelSums(_Model):
    count: Count
    sum: list[Integer]
    squares: list[Integer]


class _Index(_Model):
    bytes: Count
    sha256: Sha256


class _DatasetInfo(_Model):
    """Content of dataset.json; `config` is checked by `Config`."""

    format: Literal[2]
    name: str
    title: str
    recipe: _Recipe
    config_hash: str
    plan: str
    source: _Source
    license: _License | None
    citation: str | None
    ethics: str | None
    labels: list[str]
    label_orders: dict[str, list[str]]
    background: str | None
    extras: list[dict[str, Any]]
    split_by: str | None
    splits: dict[Literal["train", "val", "test"], _Split]
    leaks: Count
    quarantine: dict[str, Count]
    flags: dict[str, Count]
    shape: _Shape
    mel_stats: _MelStats | None
    mel_sums: _MelSums | None = None
    tools: dict[str, str]
    machine: str
    index: _Index | None = None

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        if len(set(self.labels)) < len(self.labels):
            msg = "labels occur twice"
            raise ValueError(msg)
        bands = self.shape.mel[1]
        if self.mel_stats and not len(self.mel_stats.mean) == len(self.mel_stats.std) == bands:
            msg = f"mel_stats are not of {bands} bands"
            raise ValueError(msg)
        sums = self.mel_sums
        if sums and sums.count and not len(sums.sum) == len(sums.squares) == bands:
            msg = f"mel_sums are not of {bands} bands"
            raise ValueError(msg)
        return self


def parse_info(data: bytes, where: object) -> dict[str, Any]:
    """Return the content of a dataset.json. Settings that it lacks, of a newer version, have their defaults.

    Args:
        data: bytes of the file.
        where: the file, for messages.

    Raises:
        AvdataError: the bytes are not JSON or of another format version, a field is missing or invalid, or a
            file name is unsafe.
    """
    try:
        info = json.loads(data, parse_constant=_refuse_constant)
        _check_values(info)
    except (ValueError, RecursionError) as error:
        msg = f"{where} cannot be read ({error})"
        raise AvdataError(msg, hint=_DAMAGED_HINT) from error
    version = info.get("format") if isinstance(info, dict) else None
    if type(version) is not int or version != FORMAT_VERSION:
        msg = f"Unsupported format version in {where}: {shorten(repr(version))}. Supported: {FORMAT_VERSION}."
        raise AvdataError(msg, hint="Install the avdata version that wrote it, or prepare the dataset again.")
    try:
        _DatasetInfo.model_validate(info)
    except ValidationError as error:
        raise _invalid_field(error.errors()[0], where) from error
    try:
        settings = _parse_config(info.get("config"))
    except ValidationError as error:
        raise _invalid_field(error.errors()[0], where, ("config",)) from error
    _check_names(info, where)
    _check_shape(info["shape"], settings, where)
    config = merge_overrides(info["config"], settings.model_dump(mode="json"))
    return {**info, "config": config}


def _refuse_constant(name: str) -> None:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _check_values(value: object, depth: int = 0) -> None:
    """Check the depth, that numbers are finite (1e400 is not), and that texts have no lone surrogates."""
    if depth > MAX_DEPTH:
        msg = f"nested more than {MAX_DEPTH} levels deep"
        raise ValueError(msg)
    if isinstance(value, str):
        value.encode()
    elif isinstance(value, float) and not math.isfinite(value):
        _refuse_constant(str(value))
    elif isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_values(item, depth + 1)


def _parse_config(config: object) -> Config:
    """Return the settings, without those that this version does not have."""
    if isinstance(config, dict):
        known = Config.model_fields
        config = {
            section: {
                name: value
                for name, value in values.items()
                if name in getattr(known[section].annotation, "model_fields", {})
            }
            if isinstance(values, dict)
            else values
            for section, values in config.items()
            if section in known
        }
    return Config.model_validate_json(json.dumps(config, allow_nan=False), strict=True)


def _invalid_field(error: ErrorDetails, where: object, section: tuple[str, ...] = ()) -> AvdataError:
    field = ".".join(str(part) for part in (*section, *error["loc"]))
    msg = f"Invalid {shorten(field)} in {where}: {shorten(format_validation_error(error))}."
    return AvdataError(msg, hint=_DAMAGED_HINT)


def _check_shape(shape: Mapping[str, Any], config: Config, where: object) -> None:
    """Check that the arrays have the shapes of the settings, whose sizes are limited."""
    steps, size = config.video.num_frames, config.video.size
    expected = {
        "mel": [steps, feature_bins(config.audio), config.mel_columns],
        "frames": [steps, size, size, 3 if config.video.color == "rgb" else 1],
    }
    for name, value in expected.items():
        if shape[name] not in (value, None) or math.prod(value) > MAX_ELEMENTS:
            msg = f"Invalid shape.{name} in {where}: {shape[name]}, by its settings {value}."
            raise AvdataError(msg, hint=_DAMAGED_HINT)


def check_shard_paths(paths: Iterable[object], where: object) -> None:
    """Check that every path is `SPLIT/NAME.tar`, or `PART/SPLIT/NAME.tar` in a merged dataset.

    >>> check_shard_paths(["train/cremad-train-00000-of-00012.tar"], "index.parquet")

    Args:
        paths: paths of shards.
        where: the file that holds them, for messages.

    Raises:
        AvdataError: a path is another one.
    """
    for path in paths:
        if not isinstance(path, str) or not _SHARD_PATH.fullmatch(path):
            msg = f"Unsafe shard path in {where}: {shorten(path)!a}. Allowed: SPLIT/NAME.tar."
            raise AvdataError(msg, hint=_UNSAFE_HINT)


def is_part_name(name: str) -> bool:
    """Return whether a folder name may precede the paths of a part's shards.

    >>> is_part_name("part-001"), is_part_name(".avdata"), is_part_name("train")
    (True, False, False)
    """
    return _PART_NAME.fullmatch(name) is not None and name not in SPLITS


def shard_depth(info: Mapping[str, Any]) -> int:
    """Return the number of folders above each shard: 1, or 2 in a merged dataset."""
    paths = (shard["path"] for split in info["splits"].values() for shard in split["shards"])
    return max((path.count("/") for path in paths), default=1)


def split_of(shard: str) -> str:
    """Return the split of a shard, from its path.

    >>> split_of("train/cremad-train-00000-of-00012.tar"), split_of("part-001/val/x.tar")
    ('train', 'val')
    """
    return shard.split("/")[-2]


def _check_names(info: Mapping[str, Any], where: object) -> None:
    """Check what becomes part of a path: dataset name and shard paths."""
    if not _NAME.fullmatch(info["name"]):
        msg = f"Unsafe dataset name in {where}: {shorten(info['name'])!a}."
        raise AvdataError(msg, hint=_UNSAFE_HINT)
    for split, content in info["splits"].items():
        check_shard_paths((shard["path"] for shard in content["shards"]), where)
        paths = [shard["path"] for shard in content["shards"]]
        if misplaced := [path for path in paths if split_of(path) != split]:
            msg = f"Unsafe shard path in {where}: {shorten(misplaced[0])} is listed in split {split}."
            raise AvdataError(msg, hint=_UNSAFE_HINT)
