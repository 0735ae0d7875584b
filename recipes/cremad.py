"""CREMA-D: 91 actors say 12 sentences in 6 emotions; 7,442 clips of sound (WAV) and sight (FLV).

Cao, Cooper, Keutmann, Gur, Nenkova, Verma: CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE
Transactions on Affective Computing 5(4), 2014. https://github.com/CheyneyComputerScience/CREMA-D

The label is the emotion that the actor was asked for, from the file's name. A clip is WAV and FLV of one
stem; its sound is the WAV's, because the FLV's own begins with the MP3 encoder's delay. Four clips that the
authors list as broken are left out, which gives the 7,438 that the literature counts.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from avdata.errors import Flag, SourceError, UsageError, nearest
from avdata.recipe import Clip, Recipe

LABELS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")

SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")

STEM = re.compile(rf"(10\d\d)_({'|'.join(SENTENCES)})_({'|'.join(LABELS)})_(LO|MD|HI|XX)")

# Copies from before 2022-10-18 have this name.
MISNAMED = {"1040_ITH_SAD_X": "1040_ITH_SAD_XX"}

KNOWN_BAD = {
    "1064_IEO_DIS_MD": "the FLV holds all emotions one after the other, 61.8 s, and the WAV 4.1 s",
    "1064_TIE_SAD_XX": "the FLV has no duration and about 18 frames, the WAV 3.34 s",
    "1076_MTI_NEU_XX": "the FLV has about 3 frames",
    "1076_MTI_SAD_XX": "the WAV is silent and the FLV an error picture",
}

SAME_AUDIO = (
    ("1006_TIE_HAP_XX", "1006_TIE_NEU_XX"),
    ("1013_WSI_DIS_XX", "1013_WSI_SAD_XX"),
    ("1017_IWW_ANG_XX", "1017_IWW_FEA_XX"),
)
"""Pairs with one and the same WAV under two labels."""

BLACK = frozenset({"1047_IEO_FEA_LO", "1047_IEO_SAD_LO"})

# WAV and FLV differ in length by more than 0.2 s, by the files' sizes.
MISMATCHED = frozenset(
    """
    1003_IWW_FEA_XX 1003_MTI_ANG_XX 1003_TAI_SAD_XX 1004_IOM_HAP_XX 1004_ITS_NEU_XX 1004_IWL_DIS_XX
    1004_TSI_NEU_XX 1005_ITS_SAD_XX 1005_IWL_DIS_XX 1005_WSI_SAD_XX 1006_ITS_DIS_XX 1006_IWL_ANG_XX
    1006_TSI_FEA_XX 1007_ITS_HAP_XX 1007_IWL_SAD_XX 1007_IWW_FEA_XX 1008_ITH_HAP_XX 1008_IWW_DIS_XX
    1013_WSI_DIS_XX 1013_WSI_SAD_XX 1014_TAI_SAD_XX 1017_IEO_ANG_MD 1017_IEO_HAP_MD 1018_IEO_DIS_MD
    1018_TIE_HAP_XX 1021_TIE_DIS_XX 1021_WSI_SAD_XX 1022_IEO_ANG_MD 1022_WSI_ANG_XX 1028_ITS_SAD_XX
    1028_WSI_NEU_XX 1035_IEO_DIS_HI 1035_IEO_DIS_MD 1037_WSI_DIS_XX 1038_TIE_SAD_XX 1047_IEO_FEA_LO
    1047_IEO_FEA_MD 1047_IEO_SAD_LO 1048_IEO_FEA_LO 1049_WSI_ANG_XX 1050_ITS_DIS_XX 1057_IEO_ANG_HI
    1058_IEO_ANG_LO 1059_WSI_NEU_XX 1064_DFA_HAP_XX 1064_IEO_ANG_HI 1064_IEO_DIS_MD 1064_ITS_FEA_XX
    1064_TIE_SAD_XX 1064_WSI_FEA_XX 1064_WSI_SAD_XX 1065_TIE_SAD_XX 1067_IEO_FEA_LO 1067_IWL_HAP_XX
    1067_MTI_FEA_XX 1071_MTI_ANG_XX 1071_MTI_DIS_XX 1071_MTI_FEA_XX 1071_MTI_HAP_XX 1071_MTI_NEU_XX
    1071_MTI_SAD_XX 1071_WSI_ANG_XX 1072_IEO_DIS_MD 1072_MTI_ANG_XX 1072_TIE_DIS_XX 1074_TAI_DIS_XX
    1074_TIE_DIS_XX 1075_TIE_FEA_XX 1076_MTI_NEU_XX 1080_TSI_DIS_XX 1083_MTI_SAD_XX 1084_IEO_FEA_HI
    1084_ITS_DIS_XX 1084_TAI_FEA_XX 1085_IWL_DIS_XX 1086_IEO_SAD_HI 1090_MTI_ANG_XX 1091_TIE_SAD_XX
    """.split()
)

# Given their sound back on 2020-12-16; older copies of these FLVs have none.
REENCODED = frozenset(
    """
    1005_IWW_DIS_XX 1007_IWL_HAP_XX 1007_TAI_NEU_XX 1037_DFA_ANG_XX 1037_WSI_DIS_XX 1037_WSI_FEA_XX
    1037_WSI_SAD_XX 1039_IWL_SAD_XX 1039_WSI_SAD_XX 1045_ITS_HAP_XX 1045_WSI_DIS_XX 1046_TIE_HAP_XX
    1058_IEO_SAD_HI 1061_TIE_ANG_XX 1063_IEO_DIS_HI 1067_IEO_FEA_LO 1068_IEO_SAD_MD 1070_IWL_NEU_XX
    1070_IWL_SAD_XX 1071_WSI_ANG_XX 1072_TAI_NEU_XX 1072_WSI_ANG_XX 1073_MTI_SAD_XX 1075_IWW_DIS_XX
    1075_WSI_DIS_XX 1076_ITH_HAP_XX 1076_ITH_NEU_XX 1076_TAI_NEU_XX 1079_IWL_ANG_XX 1079_TAI_DIS_XX
    1091_IWW_FEA_XX
    """.split()
)

# The rule of tensorflow_datasets 4.9.10: RandomState(0).shuffle of the sorted ids, 63 / 9 / 19 actors.
VAL_ACTORS = frozenset(
    """
    1015 1020 1021 1030 1050 1070 1079 1089 1090
    """.split()
)

TEST_ACTORS = frozenset(
    """
    1010 1013 1022 1026 1037 1038 1040 1045 1047 1048 1059 1065 1066 1068 1071 1073 1084 1086 1088
    """.split()
)

# HiCMAE's five folds: consecutive ids, 18 actors each and 19 in the last.
FOLDS = tuple((1001 + 18 * fold, 1018 + 18 * fold + (fold == 4)) for fold in range(5))

OGMGE = {
    "train": "68d0d3fd253830328fc92c68f3cf2e215db8c5b86757ad9c5112d2c76ba68bde",
    "test": "14866c99301fd56fb4a16f8a7048a8a6372a47069aee9f216443bc718be45f1f",
}

OGMGE_URL = (
    "https://raw.githubusercontent.com/GeWu-Lab/OGM-GE_CVPR2022/"
    "343dc1d95c9bda88f105c0da8d24f185e0e98b54/data/CREMAD"
)


def speaker_split(actor: str) -> str:
    """The split of an actor by the rule of tensorflow_datasets."""
    return "val" if actor in VAL_ACTORS else "test" if actor in TEST_ACTORS else "train"


def fold_split(actor: str, fold: int) -> str:
    """The split of an actor when fold `fold` (1 … 5) is the test set and the next one validates."""
    held = next(index for index, (first, last) in enumerate(FOLDS, start=1) if first <= int(actor) <= last)
    return "test" if held == fold else "val" if held == fold % 5 + 1 else "train"


def parse_ogmge(text: str) -> dict[str, str]:
    """Label by stem from one of OGM-GE's lists, `stem,LABEL` a line.

    >>> parse_ogmge("1041_TIE_NEU_XX,NEU")
    {'1041_TIE_NEU_XX': 'NEU'}
    """
    rows = (line.split(",") for line in text.removeprefix("\ufeff").splitlines() if line.strip())
    return {row[0]: row[1] for row in rows}


def make_clips(files: Mapping[str, tuple[Path, Path]], split_of: Callable[[str], str | None]) -> list[Clip]:
    """Clips of the stems, by the grammar of their names.

    Args:
        files: video and audio path by stem, whether or not they exist.
        split_of: the split of a stem; None leaves the clip out, as a published list does.
    """
    twins = {stem: other for pair in SAME_AUDIO for stem, other in (pair, pair[::-1])}
    clips = []
    for stem, (video, audio) in sorted(files.items()):
        named = STEM.fullmatch(stem)
        split = split_of(stem)
        if named is None or split is None:
            continue
        actor, sentence, label, level = named.groups()
        flags = [
            flag
            for flag, stems in (
                (Flag.DUP_AUDIO, twins), (Flag.AV_MISMATCH, MISMATCHED),
                (Flag.BLACK_FRAMES, BLACK), (Flag.REENCODED, REENCODED),
            )
            if stem in stems
        ]  # fmt: skip
        clips.append(
            Clip(
                key=stem, label=label, group=actor, split=split, video=video, audio=audio,
                flags=tuple(flags), excluded=KNOWN_BAD.get(stem),
                extras={"actor": actor, "sentence": sentence, "level": level},
            )
        )  # fmt: skip
    return clips


def clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Every clip of which the folder holds the WAV, the FLV, or both.

    Raises:
        SourceError: the folder holds no CREMA-D, or lacks the lists that the split is made from.
    """
    files = find_files(root)
    if not files:
        msg = (
            f"{root} holds no CREMA-D: neither AudioWAV/ and VideoFlash/ nor files named like"
            " 1001_DFA_ANG_XX.wav and .flv were found"
        )
        raise SourceError(msg, hint="give the folder that holds AudioWAV/ and VideoFlash/ with --source")
    return make_clips(files, _splitter(root, split_by, files))


def find_files(root: Path) -> dict[str, tuple[Path, Path]]:
    """Video and audio path by stem, from `AudioWAV/` and `VideoFlash/` or from a flat folder."""
    base = next(
        (folder for folder in (root, *sorted(root.glob("*/"))) if (folder / "VideoFlash").is_dir()), None
    )
    sight, sound = (base / "VideoFlash", base / "AudioWAV") if base else (root, root)
    found: dict[str, tuple[Path, Path]] = {}
    for path in (*sight.glob("*.flv"), *sound.glob("*.wav")):
        stem = MISNAMED.get(path.stem, path.stem)
        if STEM.fullmatch(stem):
            audio = sound / f"{stem}.wav"
            if not audio.is_file() and (old := next((o for o, n in MISNAMED.items() if n == stem), None)):
                audio = sound / f"{old}.wav"
            found[stem] = (sight / f"{stem}.flv", audio)
    return found


def listed(root: Path, paths: Sequence[str], split_by: str) -> Sequence[Clip]:
    """Every clip of which the paths name a file; `root` holds the lists that the split is made from."""
    stems = {PurePosixPath(path).stem for path in paths if path.startswith(("AudioWAV/", "VideoFlash/"))}
    files = {stem: (Path("VideoFlash", f"{stem}.flv"), Path("AudioWAV", f"{stem}.wav")) for stem in stems}
    return make_clips(files, _splitter(root, split_by, files))


def _splitter(root: Path, split_by: str, files: Iterable[str]) -> Callable[[str], str | None]:
    if split_by == "speaker":
        return lambda stem: speaker_split(stem[:4])
    if split_by.startswith("fold:"):
        fold = int(split_by.removeprefix("fold:"))
        return lambda stem: fold_split(stem[:4], fold)
    if split_by != "ogmge":
        msg = f"cremad has no split {split_by!r}"
        raise UsageError(msg, hint=nearest(split_by, list(SPLITS)))
    lists = {name: parse_ogmge(_read_list(root, name)) for name in OGMGE}
    return lambda stem: ogmge_split(stem, lists)


def ogmge_split(stem: str, lists: Mapping[str, Mapping[str, str]]) -> str | None:
    """Test as published; of the published train list the validation actors' clips validate."""
    if stem in lists["test"]:
        return "test"
    if stem in lists["train"]:
        return "val" if stem[:4] in VAL_ACTORS else "train"
    return None


def _read_list(root: Path, name: str) -> str:
    places = [folder / f"{name}.csv" for folder in (root / "ogmge", root / "data" / "CREMAD", root)]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        msg = f"the split ogmge needs OGM-GE's {name}.csv, and {places[0]} does not exist"
        raise SourceError(msg, hint=f"fetch {OGMGE_URL}/{name}.csv to {places[0]}, or use --split-by speaker")
    data = path.read_bytes()
    generated = (root / "truth.json").is_file()
    if not generated and hashlib.sha256(data).hexdigest() != OGMGE[name]:
        msg = f"{path} is not the published list: its sha256 does not begin with {OGMGE[name][:12]}"
        raise SourceError(msg, hint=f"fetch it again from {OGMGE_URL}/{name}.csv")
    return data.decode("utf-8-sig")


def mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write a small CREMA-D of generated media; see `recipes.cremad_mock`."""
    from avdata.recipes.cremad_mock import write_mock  # noqa: PLC0415  # encoders load only when needed

    write_mock(out, count, bad=bad, seed=seed)


SPLITS = {
    "speaker": "no actor in two splits: 63, 9 and 19 actors by the rule of tensorflow_datasets",
    "ogmge": "the lists of OGM-GE (CVPR 2022), 6,698 and 744 clips, all actors in both; validation is"
    " taken from train by actor",
    **{
        f"fold:{fold}": f"actors {first} to {last} test, the next fold validates (HiCMAE's five folds)"
        for fold, (first, last) in enumerate(FOLDS, start=1)
    },
}

RECIPE = Recipe(
    name="cremad",
    version=1,
    title="CREMA-D",
    labels=LABELS,
    label_orders={
        "ogmge": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),
        "tfds": ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"),
    },
    splits=SPLITS,
    default_split="speaker",
    clips=clips,
    mock=mock,
    known_bad=KNOWN_BAD,
    listed=listed,
)
