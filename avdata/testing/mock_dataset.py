"""Mock datasets: small copies of a dataset's layout with generated media."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.manifest import FileEntry, Manifest, load_manifest
from avdata.progress import Progress
from avdata.recipe import load_recipe
from avdata.storage.atomic import write_errors
from avdata.storage.hashing import hash_file
from avdata.storage.paths import is_safe_relative_path, local_path


def create_mock_dataset(
    recipe: str,
    output: str | Path,
    clips: int | None = None,
    bad: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Path:
    """Write a small copy of a dataset's layout with generated media.

    Args:
        recipe: name of a recipe.
        output: folder to write: new, empty, or an earlier mock, whose files are removed.
        clips: number of clips; None for the recipe's default.
        bad: whether to add the defective files of the real dataset.
        seed: seed of the content. Equal seeds give equal bytes.
        progress: called with the stage `mock`, the clips written and `clips`, if `clips` is given.

    Returns:
        The folder. Its `manifest.json` lists every file, its `truth.json` the content of each clip.

    Raises:
        UsageError: the recipe does not exist.
        AvdataError: the folder contains other files, or cannot be written.
    """
    writer = load_recipe(recipe).mock_writer()
    folder = local_path(output)
    if folder.exists() and not folder.is_dir():
        msg = f"The output {folder} is a file."
        raise AvdataError(msg, hint="Choose a new folder.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "truth.json").is_file():
        msg = f"The output {folder} is not empty and not a mock dataset."
        raise AvdataError(msg, hint="Choose a new or empty folder. Nothing was written.")
    with write_errors(folder), _clip_progress(progress, clips):
        _remove_earlier(folder)
        writer(folder, clips, bad, seed)
    return folder


@contextmanager
def _clip_progress(progress: Progress | None, clips: int | None) -> Iterator[None]:
    """Report the clips whose first media file is written. Files of one clip have the same stem."""
    if progress is None or clips is None:
        yield
        return
    from avdata.testing.media import watch_media  # noqa: PLC0415  # imports numpy

    stems: set[str] = set()

    def count(path: Path) -> None:
        stems.add(path.stem)
        progress("mock", min(len(stems), clips), clips)

    with watch_media(count):
        yield


def _remove_earlier(folder: Path) -> None:
    """Remove the files of an earlier mock, which the next one would count as its own."""
    path = folder / "manifest.json"
    earlier = load_manifest(path) if path.is_file() else None
    if earlier is None or not earlier.mock:
        return
    for entry in earlier.files:
        if is_safe_relative_path(entry.path):
            (folder / entry.path).unlink(missing_ok=True)
    path.unlink()  # the next mock may have no manifest


def divide_clips(count: int, labels: int) -> list[tuple[str, int]]:
    """Return split and label of each clip of a mock: exactly `count`, all labels in all splits if possible.

    With fewer than three clips a label, train has all labels first, then val and test share the rest.

    >>> divide_clips(5, 2)
    [('train', 0), ('train', 1), ('train', 0), ('val', 0), ('test', 0)]

    Args:
        count: number of clips.
        labels: number of labels.
    """
    if count >= 3 * labels:
        held_out = max(count // 5, labels)
    else:
        held_out = min(max(count - labels, 2) // 2, count // 3)
    sizes = {"train": count - 2 * held_out, "val": held_out, "test": held_out}
    return [(split, number % labels) for split, size in sizes.items() for number in range(size)]


def write_manifest(root: Path, name: str) -> None:
    """Write `manifest.json` with the checksum and size of every file of a mock dataset.

    Args:
        root: folder of the mock, complete except for `manifest.json` and `truth.json`.
        name: bundled manifest to copy the title, license and citation from.
    """
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
    """Write `truth.json`: what each clip of a mock contains, and the expected result.

    Args:
        root: folder of the mock.
        truth: facts by clip key, such as event times or the quarantine reason.
    """
    (root / "truth.json").write_text(json.dumps(truth, indent=1, sort_keys=True) + "\n", encoding="utf-8")
