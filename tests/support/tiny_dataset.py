"""Small datasets of random files for the download tests: their manifest, recipe and folder."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from avdata.errors import SourceError
from avdata.manifest import FileEntry, License, Manifest, Source
from avdata.recipe import Clip, Recipe

SINGLE_FILE = "wav/c0001.wav"


def make_files(count: int, size: int = 3000, seed: int = 0) -> dict[str, bytes]:
    """Files of random bytes, two a clip."""
    rng = random.Random(seed)
    names = [f"wav/c{clip:04d}.wav" for clip in range(count // 2)] + [
        f"flv/c{clip:04d}.flv" for clip in range(count - count // 2)
    ]
    return {name: rng.randbytes(rng.randint(size // 2, size)) for name in names}


def make_file_entries(files: Mapping[str, bytes]) -> tuple[FileEntry, ...]:
    return tuple(
        FileEntry(path=path, checksum=f"sha256:{hashlib.sha256(content).hexdigest()}", bytes=len(content))
        for path, content in sorted(files.items())
    )


def make_manifest(
    sources: Sequence[Source], files: Mapping[str, bytes] = {}, tables: Mapping[str, Mapping[str, bytes]] = {}
) -> Manifest:
    return Manifest(
        name="tiny",
        title="A tiny dataset",
        homepage="https://example.org",
        license=License(id="odbl", name="ODbL", publish="yes", note="share alike"),
        citation="Nobody, 2026",
        sources=tuple(sources),
        files=make_file_entries(files),
        tables={name: make_file_entries(listed) for name, listed in tables.items()},
    )


def clips_from_paths(root: Path, paths: Sequence[str], split_by: str) -> list[Clip]:
    stems = sorted({PurePosixPath(path).stem for path in paths if path[:3] in ("wav", "flv")})
    return [
        Clip(
            key=stem,
            label=f"l{int(stem[1:]) % 2}",
            group=stem,
            split="test" if int(stem[1:]) % 5 == 0 else "train",
            video=Path("flv", stem + ".flv"),
            audio=Path("wav", stem + ".wav"),
        )
        for stem in stems
    ]


def make_recipe(**changes: Any) -> Recipe:
    settings = {
        "name": "tiny",
        "version": 1,
        "title": "Tiny",
        "labels": ("l0", "l1"),
        "splits": {"official": "the only one"},
        "default_split": "official",
        "clips": lambda root, split_by: [],
        "mock": lambda out, clips, bad, seed: None,
        "clips_from_paths": clips_from_paths,
    }
    return Recipe(**{**settings, **changes})


def read_tree(root: Path) -> dict[str, bytes]:
    """All files below a folder but the state's."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and ".avdata" not in path.parts
    }


def expect_failure(dataset: Any, match: str) -> SourceError:
    """Download a dataset of a single file, and expect an error and no file."""
    with pytest.raises(SourceError, match=f"(?i){match}") as caught:
        dataset.download()
    assert not (dataset.root / SINGLE_FILE).exists()
    return caught.value
