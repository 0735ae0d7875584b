"""UrbanSound8K-AV: 8,732 audio slices of UrbanSound8K in 10 classes, each with one image of its class.

Guo, Gao, Qu, Zheng, Jiang, Lu, Qiao: Transformer-Based Spiking Neural Networks for Multimodal Audiovisual
Classification, IEEE TCDS 16(3), 2024; audio: Salamon, Jacoby, Bello: A Dataset and Taxonomy for Urban
Sound Research, ACM MM 2014.

A clip is `CLASS/STEM.wav` with `CLASS/STEM.jpg`; stems and splits are those of the recipe `urbansound8k`,
which prepares the sounds alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from avdata.recipes.urbansound8k import (
    CSV,
    LABELS,
    PRESETS,
    SPLITS,
    find_audio,
    find_csv,
    lists,
    parse_folds,
    parse_stem,
    splitter,
)

from avdata import Clip, Recipe, SampleFlag, SourceError
from avdata.storage.hashing import hash_file

log = logging.getLogger(__name__)

VISION = ("vision", "Dataset_v3_vision")

AUDIO = ("audio", "sound", "Dataset_v3_sound")

IMAGES = (".jpg", ".jpeg", ".png")


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Return every slice of which the folder holds the audio, the image, or both.

    Raises:
        SourceError: the folder is not UrbanSound8K-AV, or lacks the folds of the split.
    """
    vision, audio = _find_pair(root) or (None, None)
    if vision is None or audio is None:
        folders = f"{' or '.join(VISION)} beside {' or '.join(AUDIO)}"
        if find_audio(root):
            msg = f"Folder holds UrbanSound8K without images: {root} (no folder {folders})."
            hint = "Prepare the sounds alone with: avdata prepare urbansound8k, or add the images of Kaggle's"
            raise SourceError(msg, hint=f"{hint} lingyueguo/urbansound8k-av.")
        msg = f"Folder holds no UrbanSound8K-AV dataset: {root} (no folder {folders})."
        hint = "Use --source with the unpacked Kaggle dataset lingyueguo/urbansound8k-av."
        raise SourceError(msg, hint=hint)
    table = find_csv(root)
    folds = parse_folds(table) if table else {}
    where = f"missing in {table}" if table else f"no {CSV} in {root}"
    images = _by_stem(path for path in vision.glob("*/*") if path.suffix.lower() in IMAGES)
    audios = _by_stem(path for path in audio.glob("*/*") if path.suffix.lower() == ".wav")
    stems = sorted({*images, *audios})
    slices = [piece for stem in stems if (piece := parse_stem(stem, folds))]
    split_of = splitter(split_by, slices, where)
    twins = _same_bytes(images)
    return [
        Clip(
            key=piece.stem, label=piece.label, group=piece.fs_id, split=split_of(piece),
            video=images.get(piece.stem, vision / piece.label / f"{piece.stem}.jpg"),
            audio=audios.get(piece.stem, audio / piece.label / f"{piece.stem}.wav"),
            is_image=True, flags=(SampleFlag.DUP_IMAGE,) if piece.stem in twins else (),
            extras={"fs_id": piece.fs_id, **({"fold": piece.fold} if piece.fold else {})},
        )
        for piece in slices
    ]  # fmt: skip


def _find_pair(root: Path) -> tuple[Path, Path] | None:
    """Return the sibling folders of images and audio; the `audio` of UrbanSound8K has no sibling."""
    for folder in (root, *sorted(root.glob("*/")), *sorted(root.glob("*/*/"))):
        pairs = [[folder / name for name in names if (folder / name).is_dir()] for names in (VISION, AUDIO)]
        if all(pairs):
            return pairs[0][0], pairs[1][0]
    return None


def _by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Return the file of each stem; of several files, the one in the folder of its class."""
    found: dict[str, Path] = {}
    for path in sorted(paths):
        piece = parse_stem(path.stem)
        is_in_class = piece is not None and path.parent.name == piece.label
        if path.stem in found:
            log.warning("%s is in two folders: %s and %s.", path.name, found[path.stem].parent, path.parent)
        if path.is_file() and (is_in_class or path.stem not in found):
            found[path.stem] = path
    return found


def _same_bytes(images: Mapping[str, Path]) -> set[str]:
    """Return the stems that share their image with another stem; only files of equal size are read."""
    by_size: dict[int, list[str]] = {}
    for stem, path in images.items():
        by_size.setdefault(path.stat().st_size, []).append(stem)
    by_hash: dict[str, list[str]] = {}
    for size, stems in by_size.items():
        for stem in stems if size and len(stems) > 1 else ():
            by_hash.setdefault(hash_file(images[stem]), []).append(stem)
    return {stem for stems in by_hash.values() if len(stems) > 1 for stem in stems}


RECIPE = Recipe(
    name="urbansound8k-av",
    version=1,
    title="UrbanSound8K-AV",
    labels=LABELS,
    label_orders={"alphabetical": tuple(sorted(LABELS))},
    splits=SPLITS,
    default_split="fold:10",
    clips=clips,
    lists=lists,
    mock="avdata.recipes.urbansound8k_av_mock:write_mock",
    presets=PRESETS,
)
