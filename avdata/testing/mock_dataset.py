"""Mock dataset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.manifest import FileEntry, Manifest, load_manifest
from avdata.recipe import load_recipe
from avdata.storage.atomic import write_errors
from avdata.storage.hashing import hash_file
from avdata.storage.paths import is_safe_relative_path


def create_mock_dataset(
    recipe: str, output: str | Path, clips: int | None = None, bad: bool = False, seed: int = 0
) -> Path:
    """Write a small, structurally faithful copy of a dataset with generated media.

    Args:
        recipe: a recipe's name.
        output: folder to write; new, empty, or a mock made before, whose files go.
        clips: how many; None is the recipe's choice.
        bad: also write the cases that go wrong in the real dataset.
        seed: equal seeds make equal bytes.

    Returns:
        The folder. Its `manifest.json` lists every file, `truth.json` what each clip holds.

    Raises:
        UsageError: there is no such recipe.
        AvdataError: the folder holds something else, or ffmpeg cannot encode.
    """
    writer = load_recipe(recipe).mock_writer()
    folder = Path(output)
    if folder.exists() and not folder.is_dir():
        msg = f"{folder} is a file"
        raise AvdataError(msg, hint="give a new folder")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "truth.json").is_file():
        msg = f"{folder} is not empty, and what it holds is not a mock"
        raise AvdataError(msg, hint="give a new or empty folder; nothing was written")
    with write_errors(folder):
        _remove_earlier(folder)
        writer(folder, clips, bad, seed)
    return folder


def _remove_earlier(folder: Path) -> None:
    """Remove the files that an earlier mock lists: they would be taken for clips of the next one."""
    listed = folder / "manifest.json"
    earlier = load_manifest(listed) if listed.is_file() else None
    if earlier is None or not earlier.mock:
        return
    for facts in earlier.files:
        if is_safe_relative_path(facts.path):
            (folder / facts.path).unlink(missing_ok=True)
    listed.unlink()  # the next one need not write any


def write_manifest(root: Path, name: str) -> None:
    """List every file below a mock's root, with checksum and size, in its `manifest.json`, the last file."""
    base = load_manifest(name)
    files = tuple(
        FileEntry(
            path=path.relative_to(root).as_posix(),
            checksum=f"sha256:{hash_file(path)}",
            bytes=path.stat().st_size,
        )
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name not in {"manifest.json", "truth.json"}
    )
    manifest = Manifest(
        name=base.name, title=base.title, homepage=base.homepage, commit=None, license=base.license,
        citation=base.citation, ethics=base.ethics, expected={}, files=files, mock=True,
    )  # fmt: skip
    (root / "manifest.json").write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def write_ground_truth(root: Path, truth: Mapping[str, Mapping[str, Any]]) -> None:
    """Record what each clip of a mock holds and what is to become of it."""
    (root / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n", encoding="utf-8")
