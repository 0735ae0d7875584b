"""Setting overrides: from the command line, from files, and their merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdata.errors import UsageError

Overrides = Mapping[str, Any]
"""Settings by section and key. Sections that are left out keep their values."""

_FILE_HINT = "Example of a config file: video: {num_frames: 8}"


def merge_overrides(base: Overrides, over: Overrides) -> dict[str, Any]:
    """Return `base` updated with `over`, with nested mappings merged key by key.

    >>> merge_overrides({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = (
            merge_overrides(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def diff_settings(old: Overrides, new: Overrides, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Return the differences of two dumped configs as (setting, old value, new value).

    >>> diff_settings({"audio": {"n_mels": 64}}, {"audio": {"n_mels": 128}})
    [('audio.n_mels', 64, 128)]
    """
    rows: list[tuple[str, Any, Any]] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            rows += diff_settings(a, b, f"{prefix}{key}.")
        elif a != b:
            rows.append((prefix + key, a, b))
    return rows


def parse_setting(text: str) -> dict[str, Any]:
    """Return `section.key=value` as nested overrides, with the value parsed as YAML.

    >>> parse_setting("video.num_frames=8")
    {'video': {'num_frames': 8}}

    Raises:
        UsageError: the text has no `=`, or the value is not YAML.
    """
    path, equals, raw = text.partition("=")
    if not equals or not path:
        msg = f"Invalid --set {text!r}: the form is section.key=value."
        raise UsageError(msg, hint="Example: --set video.num_frames=8")
    import yaml  # noqa: PLC0415  # a run without --set needs none

    try:
        value: Any = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError as error:
        msg = f"Invalid --set {text!r}: the value is not YAML ({_yaml_error(error)})."
        raise UsageError(msg, hint="Quote special characters in the value.") from error
    for key in reversed(path.split(".")):
        value = {key: value}
    assert isinstance(value, dict)
    return value


def _yaml_error(error: Exception) -> str:
    """Return the cause and its line number, on one line."""
    mark = getattr(error, "problem_mark", None)
    where = f"line {mark.line + 1}: " if mark else ""
    return where + (getattr(error, "problem", None) or str(error)).splitlines()[0]


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the nested overrides of a YAML or JSON file.

    Raises:
        UsageError: the file is missing, unreadable, or not a mapping.
    """
    import yaml  # noqa: PLC0415

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        msg = f"The config file {path} cannot be read ({error.strerror})."
        raise UsageError(msg, hint=_FILE_HINT) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"The config file {path} is not YAML ({_yaml_error(error)})."
        raise UsageError(msg, hint=_FILE_HINT) from error
    if not isinstance(value, dict):
        msg = f"The config file {path} contains no mapping."
        raise UsageError(msg, hint=_FILE_HINT)
    return value
