"""Any set of clips in tars of the WebDataset layout, as audio-visual sets are shared on the Hub.

The members of a clip share a key: `0001.mp4`, or `0001.jpg` and `0001.flac`, with the label in `0001.cls`,
`0001.txt` or a field of `0001.json`. Task options name the members and fields; see `OPTIONS`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from avdata import Clip, QuarantineReason, Recipe, SourceError, UsageError
from avdata.sources.tar_source import TarSample, TarSource, clean_key
from avdata.sources.tar_values import MissingValueError, SampleValues, ValueField, parse_field

OPTIONS = {
    "label": "cls, txt or another text member, or json:FIELD, such as json:meta.emotion (default: cls)",
    "labels": "label names in order, as a,b,c or a text file with one per line; integer labels are indices"
    " into them (default: classes.txt beside the tars if label is cls, else the clips' labels, sorted)",
    "group": "unit that a split must not divide: key, or a member as for label (default: key)",
    "split": "path, path:PATTERN with {split}, a member as for label, hash (80/10/10 by group), or one of"
    " train, val, test for all clips (default: path if every tar's path names a split, else hash)",
    "video": "extension of the video or image (default: the only one of the clip)",
    "audio": "extension of the separate audio, if there is one (default: the only one of the clip)",
    "key": "name, or tar to put the path of its tar before each key (default: name)",
}

VIDEO_EXTENSIONS = frozenset({"3gp", "avi", "flv", "m4v", "mkv", "mov", "mp4", "webm"})

IMAGE_EXTENSIONS = frozenset({"jpeg", "jpg", "png", "webp"})

AUDIO_EXTENSIONS = frozenset({"flac", "m4a", "mp3", "oga", "ogg", "opus", "wav"})

SPLITS = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
"""Splits by the names that tars have for them."""


def clips(tars: TarSource, split_by: str, options: Mapping[str, str]) -> Sequence[Clip]:
    """Return the clips of the tars, sorted by key.

    Raises:
        SourceError: no clip has media, or none has a label, group and split.
        UsageError: the value of an option is invalid.
    """
    del split_by  # there is only one; the task option `split` defines it
    by_tar = _is_by_tar(options.get("key", "name"))
    values, media = _Values(tars, options), _Media(tars, options)
    found: dict[str, Clip] = {}
    folded: set[str] = set()  # keys that differ by case only are one file on some file systems
    repeated: list[tuple[str, Clip]] = []
    for sample in tars.samples:
        long_name = f"{sample.tar.removesuffix('.tar')}/{sample.key}"
        key = clean_key(long_name if by_tar else sample.key)
        video, audio = media.find(sample)
        clip = Clip(key, "", key, "", video, audio, is_image=_kind(video.name) in IMAGE_EXTENSIONS)
        if key.casefold() in folded:
            case = "" if key in found else ", apart from case"
            detail = f"{sample.tar}: an earlier clip has the key {key}{case}"
            repeated.append((long_name, _excluded(clip, QuarantineReason.DUPLICATE_KEY, detail)))
        elif sample.damage is not None:
            found[key] = _excluded(clip, *sample.damage)
        else:
            found[key] = values.fill_in(clip, sample)
        folded.add(key.casefold())
    for long_name, clip in repeated:
        key = _unused_key(found, long_name)
        found[key] = replace(clip, key=key)
    values.check(found.values())
    return [found[key] for key in sorted(found)]


def labels(tars: TarSource, clips: Sequence[Clip], options: Mapping[str, str]) -> Sequence[str]:
    """Return the given label names, else those of the clips: integers by value, then texts sorted."""
    names = {clip.label for clip in clips if not clip.excluded}
    return _given_labels(tars, options) or sorted(
        names, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)
    )


def _given_labels(tars: TarSource, options: Mapping[str, str]) -> list[str]:
    """Return the label names of the option `labels` or of `classes.txt`; an empty list without both."""
    given, path = options.get("labels"), tars.root / "classes.txt"
    if given is None and (options.get("label", "cls") != "cls" or not path.is_file()):
        return []
    if given is not None and not given.endswith(".txt"):
        names = [name.strip() for name in given.split(",")]
    else:
        path = Path(given) if given is not None else path
        try:
            names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            msg = f"Label names cannot be read: {path} ({error})."
            raise UsageError(msg) from error
    if len(set(names)) < len(names) or not all(names):
        msg = f"Label names are empty or repeated: {', '.join(names)}."
        raise UsageError(msg, hint="Use --task-option labels=NAME,NAME,... with each name once.")
    return names


def _label_name(value: str, names: Sequence[str]) -> str:
    """Return the label of a value, which may be an index into the label names."""
    is_index = value.isdecimal() and value not in names and int(value) < len(names)
    return names[int(value)] if is_index else value


def _is_by_tar(value: str) -> bool:
    """Return whether the option `key` puts the path of the tar before each key."""
    if value not in {"name", "tar"}:
        option = "key"
        raise _invalid_option(option, value)
    return value == "tar"


def _parse_field(option: str, text: str) -> ValueField:
    try:
        return parse_field(text)
    except ValueError as error:
        raise _invalid_option(option, text) from error


def _invalid_option(option: str, value: str) -> UsageError:
    return UsageError(f"Invalid task option {option}={value}.", hint=f"{option}: {OPTIONS[option]}.")


def _excluded(clip: Clip, reason: QuarantineReason, detail: str) -> Clip:
    return replace(clip, excluded=detail, excluded_reason=reason)


def _unused_key(found: Mapping[str, Clip], name: str) -> str:
    """Return a key of a duplicate, for its row of the quarantine."""
    key, number = clean_key(name), 2
    while key in found:
        key, number = clean_key(f"{name}-{number}"), number + 1
    return key


def _kind(extension: str) -> str:
    return extension.rpartition(".")[2]


class _Values:
    """Label, group and split of each clip."""

    def __init__(self, tars: TarSource, options: Mapping[str, str]) -> None:
        group = options.get("group", "key")
        self.label = _parse_field("label", options.get("label", "cls"))
        self.group = None if group == "key" else _parse_field("group", group)
        self.splits = _Splits(options.get("split"), tars)
        self.names = _given_labels(tars, options)
        self.first_error: MissingValueError | None = None

    def fill_in(self, clip: Clip, sample: TarSample) -> Clip:
        """Return the clip with its values; exclude it if one is missing."""
        values = SampleValues(sample)
        try:
            label = _label_name(values.read(self.label), self.names)
            group = values.read(self.group) if self.group else clip.key
            return replace(clip, label=label, group=group, split=self.splits.find(values, group))
        except MissingValueError as error:
            self.first_error = self.first_error or error
            return _excluded(clip, QuarantineReason.NO_LABEL, error.detail)

    def check(self, clips: Collection[Clip]) -> None:
        """Raise SourceError if a value is missing and no clip is left."""
        if self.first_error is not None and all(clip.excluded for clip in clips):
            msg = f"{self.first_error.detail}."
            raise SourceError(msg, hint=self.first_error.hint)


class _Media:
    """Choice of the video and of the separate audio of each clip."""

    def __init__(self, tars: TarSource, options: Mapping[str, str]) -> None:
        self.tars = tars
        self.options = options
        self.found = sorted({extension for sample in tars.samples for extension in sample.members})
        self.videos = self._extensions("video", VIDEO_EXTENSIONS) or self._of_kind(IMAGE_EXTENSIONS)
        self.audios = self._extensions("audio", AUDIO_EXTENSIONS)
        if not self.videos:
            msg = f"No video or image in the {len(tars.tars):,} tars of {tars.root}."
            hint = f"Extensions there: {', '.join(self.found) or 'none'}. Use --task-option video=EXTENSION."
            raise SourceError(msg, hint=hint)

    def find(self, sample: TarSample) -> tuple[Path, Path | None]:
        """Return the paths of the video and of the audio, also of missing ones that other clips have.

        Raises:
            SourceError: the clip has several.
        """
        video = self._choose("video", self.videos, sample)
        if not self.audios:
            return self.tars.path(sample, video), None
        return self.tars.path(sample, video), self.tars.path(
            sample, self._choose("audio", self.audios, sample)
        )

    def _extensions(self, option: str, kinds: frozenset[str]) -> list[str]:
        given = self.options.get(option)
        if given is None:
            return self._of_kind(kinds)
        chosen = given.lower().removeprefix(".")
        if chosen not in self._of_kind(frozenset({_kind(chosen)})):
            msg = f"No member has the extension of the task option {option}={given}."
            raise SourceError(msg, hint=f"Extensions there: {', '.join(self.found)}.")
        return [chosen]

    def _of_kind(self, kinds: frozenset[str]) -> list[str]:
        # An extension becomes part of a file name.
        is_plain = re.compile(r"[a-z0-9_.-]{1,40}").fullmatch
        return [extension for extension in self.found if _kind(extension) in kinds and is_plain(extension)]

    @staticmethod
    def _choose(role: str, extensions: Sequence[str], sample: TarSample) -> str:
        present = [extension for extension in extensions if extension in sample.members]
        if len(present) > 1:
            msg = f"Several {role} members in clip {sample.key!r} of {sample.tar}: {', '.join(present)}."
            raise SourceError(msg, hint=f"Use --task-option {role}={present[0]}.")
        return [*present, *extensions][0]


class _Splits:
    """Split of each clip, by the option `split`."""

    def __init__(self, option: str | None, tars: TarSource) -> None:
        self.by_tar = {tars.tar_name(tar): _split_in_path(tars.tar_name(tar)) for tar in tars.tars}
        self.option = option or ("path" if all(self.by_tar.values()) else "hash")
        self.field: ValueField | None = None
        kind, _, pattern = self.option.partition(":")
        if kind == "path":
            if pattern:
                matches = _compile_pattern(pattern)
                self.by_tar = {name: _split_by_pattern(name, matches) for name in self.by_tar}
            self._check_paths()
        elif self.option in {"train", "val", "test"}:
            self.by_tar = dict.fromkeys(self.by_tar, self.option)
        elif self.option != "hash":
            self.field = _parse_field("split", self.option)

    def _check_paths(self) -> None:
        nameless = next((name for name, split in self.by_tar.items() if split is None), None)
        if nameless is not None:
            msg = f"Tar path without a split: {nameless} (split={self.option})."
            hint = f"Names of splits: {', '.join(SPLITS)}. Others: split=path:PATTERN, hash or train."
            raise SourceError(msg, hint=hint)

    def find(self, values: SampleValues, group: str) -> str:
        """Return the split of a clip.

        Raises:
            MissingValueError: the clip has no value.
            SourceError: the value names no split.
        """
        if self.option == "hash":
            place = int(hashlib.sha256(group.encode("utf-8", "surrogatepass")).hexdigest(), 16) % 10
            return "train" if place < 8 else "val" if place == 8 else "test"
        if self.field is None:
            return self.by_tar[values.sample.tar] or ""
        value = values.read(self.field)
        if value.lower() not in SPLITS:
            msg = f"Unknown split {value!r} of clip {values.sample.key!r} of {values.sample.tar}."
            raise SourceError(msg, hint=f"Names of splits: {', '.join(SPLITS)}.")
        return SPLITS[value.lower()]


def _split_in_path(name: str) -> str | None:
    """Return the split that a tar's path names; the last one if there are several."""
    words = reversed(re.split(r"[/_.-]", name.lower()))
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def _compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of the end of a path, with `*`, `?` and `{split}`."""
    if pattern.count("{split}") != 1:
        option, value = "split", f"path:{pattern}"
        raise _invalid_option(option, value)
    wildcards = {"*": "[^/]*", "?": "[^/]", "{split}": "(?P<split>[A-Za-z]+)"}
    parts = re.split(r"(\*|\?|\{split\})", pattern)
    return re.compile("(?:^|/)" + "".join(wildcards.get(part, re.escape(part)) for part in parts) + "$")


def _split_by_pattern(name: str, pattern: re.Pattern[str]) -> str | None:
    match = pattern.search(name)
    return SPLITS.get(match["split"].lower()) if match else None


RECIPE = Recipe(
    name="webdataset",
    version=1,
    title="Clips in WebDataset tars",
    labels=(),
    splits={"task-option": "as the task option split defines it"},
    default_split="task-option",
    clips=clips,
    mock="avdata.recipes.webdataset_mock:write_mock",
    options=OPTIONS,
    source_kind="tars",
    source_labels=labels,
)
