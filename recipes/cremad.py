"""CREMA-D: 91 actors say 12 sentences in 6 emotions; 7,442 clips of audio (WAV) and video (FLV).

Cao, Cooper, Keutmann, Gur, Nenkova, Verma: CREMA-D: Crowd-sourced Emotional Multimodal Actors Dataset, IEEE
Transactions on Affective Computing 5(4), 2014. https://github.com/CheyneyComputerScience/CREMA-D

The label is the requested emotion, from the file's name. A clip is the WAV and the FLV of one stem. Its audio
is the WAV, because the FLV's own audio begins with the MP3 encoder's delay. Four clips that the authors list
as broken are excluded, which leaves the 7,438 of the literature.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from avdata import Clip, Recipe, SampleFlag, SourceError, UsageError
from avdata.errors import did_you_mean
from avdata.manifest import Source, load_facts, load_manifest

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
    """Return the split of an actor when fold `fold` (1 … 5) is the test set and the next one validates."""
    own = int(ACTOR_FACTS["fold"][actor])
    return "test" if own == fold else "val" if own == fold % 5 + 1 else "train"


def parse_ogmge(text: str) -> dict[str, str]:
    """Return the label by stem from a list of OGM-GE, one `stem,LABEL` per line.

    >>> parse_ogmge("1041_TIE_NEU_XX,NEU")
    {'1041_TIE_NEU_XX': 'NEU'}
    """
    rows = (line.split(",") for line in text.removeprefix("\ufeff").splitlines() if line.strip())
    return {row[0]: row[1] for row in rows}


def make_clips(files: Mapping[str, tuple[Path, Path]], split_of: Callable[[str], str | None]) -> list[Clip]:
    """Return the clips of the stems, from the parts of their names.

    Args:
        files: video and audio path by stem, whether or not they exist.
        split_of: returns the split of a stem; None excludes the clip, as a published list does.
    """
    clips = []
    for stem, (video, audio) in sorted(files.items()):
        match = STEM.fullmatch(stem)
        split = split_of(stem)
        if match is None or split is None:
            continue
        actor, sentence, label, level = match.groups()
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
    """Return every clip of which the folder holds the WAV, the FLV, or both.

    Raises:
        SourceError: the folder is not CREMA-D, or lacks the lists of the split.
    """
    files = find_files(root)
    if not files:
        msg = f"Folder holds no CREMA-D clips: {root} (no files like VideoFlash/1001_DFA_ANG_XX.flv)."
        raise SourceError(msg, hint="Use --source with the folder of AudioWAV/ and VideoFlash/.")
    return make_clips(files, _splitter(root, split_by, files))


def find_files(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return video and audio path by stem, from `AudioWAV/` and `VideoFlash/` or from a flat folder."""
    base = next(
        (folder for folder in (root, *sorted(root.glob("*/"))) if (folder / "VideoFlash").is_dir()), None
    )
    videos, audios = (base / "VideoFlash", base / "AudioWAV") if base else (root, root)
    renamed = {former: stem for stem, former in FORMER_NAMES.items()}
    files: dict[str, tuple[Path, Path]] = {}
    for path in (*videos.glob("*.flv"), *audios.glob("*.wav")):
        stem = renamed.get(path.stem, path.stem)
        if STEM.fullmatch(stem):
            audio = audios / f"{stem}.wav"
            if not audio.is_file() and stem in FORMER_NAMES:
                audio = audios / f"{FORMER_NAMES[stem]}.wav"
            files[stem] = (videos / f"{stem}.flv", audio)
    return files


def clips_from_paths(root: Path, paths: Sequence[str], split_by: str) -> Sequence[Clip]:
    """Return the clips of the paths; `root` holds the lists of the split."""
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
        msg = f"Unknown split scheme of cremad: {split_by!r}."
        raise UsageError(msg, hint=did_you_mean(split_by, list(SPLITS)))
    sources = {source.name: source for source in load_manifest("cremad").sources}
    lists = {
        name: parse_ogmge(_read_list(root, name, sources[f"ogmge-{name}"])) for name in ("train", "test")
    }
    return lambda stem: ogmge_split(stem, lists)


def ogmge_split(stem: str, lists: Mapping[str, Mapping[str, str]]) -> str | None:
    """Return the published split; clips of the validation actors move from train to val."""
    if stem in lists["test"]:
        return "test"
    if stem in lists["train"]:
        return "val" if speaker_split(stem[:4]) == "val" else "train"
    return None


def _read_list(root: Path, name: str, source: Source) -> str:
    paths = [folder / f"{name}.csv" for folder in (root / "ogmge", root / "data" / "CREMAD", root)]
    path = next((path for path in paths if path.is_file()), None)
    url = source.urls[0]
    if path is None:
        msg = f"Split list of OGM-GE is missing: {paths[0]}."
        raise SourceError(msg, hint=f"Download {url} to {paths[0]}, or use --split-by speaker.")
    data = path.read_bytes()
    generated = (root / "truth.json").is_file()
    sha256 = (source.checksum or "").removeprefix("sha256:")
    if not generated and hashlib.sha256(data).hexdigest() != sha256:
        msg = f"Checksum mismatch: {path} is not the published list (sha256 {sha256[:12]}…)."
        raise SourceError(msg, hint=f"Download it again from {url}.")
    return data.decode("utf-8-sig")


def _fold_actors(fold: int) -> list[str]:
    return sorted(actor for actor, own in ACTOR_FACTS["fold"].items() if int(own) == fold)


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
