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

from avdata.errors import SampleFlag, SourceError, UsageError, did_you_mean
from avdata.manifest import Source, load_facts, load_manifest
from avdata.recipe import Clip, Recipe

LABELS = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")

SENTENCES = ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI", "IWL", "ITH", "DFA", "ITS", "TSI", "WSI")

STEM = re.compile(rf"(10\d\d)_({'|'.join(SENTENCES)})_({'|'.join(LABELS)})_(LO|MD|HI|XX)")

ACTOR_FACTS = load_facts("cremad.actors.tsv", facts=("fold", "speaker"), keys=r"10\d\d")
CLIP_FACTS = load_facts(
    "cremad.clips.tsv",
    facts=("av_mismatch", "black_frames", "dup_audio_of", "former_name", "known_bad", "reencoded"),
    keys=STEM.pattern,
)
FLAGS = (SampleFlag.DUP_AUDIO, SampleFlag.AV_MISMATCH, SampleFlag.BLACK_FRAMES, SampleFlag.REENCODED)
"""Flags whose clips are listed in the table, in the order in which a clip carries them."""
FORMER_NAMES = CLIP_FACTS["former_name"]


def speaker_split(actor: str) -> str:
    """Return the split of an actor as in tensorflow_datasets: RandomState(0).shuffle of the sorted ids."""
    return ACTOR_FACTS["speaker"].get(actor, "train")


def fold_split(actor: str, fold: int) -> str:
    """The split of an actor when fold `fold` (1 … 5) is the test set and the next one validates."""
    held = int(ACTOR_FACTS["fold"][actor])
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
    clips = []
    for stem, (video, audio) in sorted(files.items()):
        named = STEM.fullmatch(stem)
        split = split_of(stem)
        if named is None or split is None:
            continue
        actor, sentence, label, level = named.groups()
        clips.append(
            Clip(
                key=stem, label=label, group=actor, split=split, video=video, audio=audio,
                flags=tuple(flag for flag in FLAGS if stem in CLIP_FACTS[flag]),
                excluded=CLIP_FACTS["known_bad"].get(stem),
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
    renamed = {former: stem for stem, former in FORMER_NAMES.items()}
    found: dict[str, tuple[Path, Path]] = {}
    for path in (*sight.glob("*.flv"), *sound.glob("*.wav")):
        stem = renamed.get(path.stem, path.stem)
        if STEM.fullmatch(stem):
            audio = sound / f"{stem}.wav"
            if not audio.is_file() and stem in FORMER_NAMES:
                audio = sound / f"{FORMER_NAMES[stem]}.wav"
            found[stem] = (sight / f"{stem}.flv", audio)
    return found


def clips_from_paths(root: Path, paths: Sequence[str], split_by: str) -> Sequence[Clip]:
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
        raise UsageError(msg, hint=did_you_mean(split_by, list(SPLITS)))
    sources = {source.name: source for source in load_manifest("cremad").sources}
    lists = {
        name: parse_ogmge(_read_list(root, name, sources[f"ogmge-{name}"])) for name in ("train", "test")
    }
    return lambda stem: ogmge_split(stem, lists)


def ogmge_split(stem: str, lists: Mapping[str, Mapping[str, str]]) -> str | None:
    """Test as published; of the published train list the validation actors' clips validate."""
    if stem in lists["test"]:
        return "test"
    if stem in lists["train"]:
        return "val" if speaker_split(stem[:4]) == "val" else "train"
    return None


def _read_list(root: Path, name: str, source: Source) -> str:
    places = [folder / f"{name}.csv" for folder in (root / "ogmge", root / "data" / "CREMAD", root)]
    path = next((place for place in places if place.is_file()), None)
    url = source.urls[0]
    if path is None:
        msg = f"the split ogmge needs OGM-GE's {name}.csv, and {places[0]} does not exist"
        raise SourceError(msg, hint=f"fetch {url} to {places[0]}, or use --split-by speaker")
    data = path.read_bytes()
    generated = (root / "truth.json").is_file()
    sha256 = (source.checksum or "").removeprefix("sha256:")
    if not generated and hashlib.sha256(data).hexdigest() != sha256:
        msg = f"{path} is not the published list: its sha256 does not begin with {sha256[:12]}"
        raise SourceError(msg, hint=f"fetch it again from {url}")
    return data.decode("utf-8-sig")


def _fold_actors(fold: int) -> list[str]:
    return sorted(actor for actor, held in ACTOR_FACTS["fold"].items() if int(held) == fold)


SPLITS = {
    "speaker": "no actor in two splits: 63, 9 and 19 actors by the rule of tensorflow_datasets",
    "ogmge": "the lists of OGM-GE (CVPR 2022), 6,698 and 744 clips, all actors in both; validation is"
    " taken from train by actor",
    **{
        f"fold:{fold}": f"actors {actors[0]} to {actors[-1]} test, the next fold validates"
        " (HiCMAE's five folds)"
        for fold in range(1, 6)
        for actors in (_fold_actors(fold),)
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
    mock="avdata.recipes.cremad_mock:write_mock",
    known_bad=CLIP_FACTS["known_bad"],
    clips_from_paths=clips_from_paths,
)
