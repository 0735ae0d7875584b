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
from avdata.storage.paths import walk_files

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

VIDEO_SUFFIXES = (".flv", ".mp4", ".mkv", ".webm", ".mov", ".avi")
"""In order of preference: the published files first, then converted ones."""

AUDIO_SUFFIXES = (".wav", ".flac")
"""Likewise. The files of `AudioMP3/` are not used beside videos: the MP3s of 28 clips are silent."""


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


def make_clips(
    files: Mapping[str, tuple[Path | None, Path]], split_of: Callable[[str], str | None]
) -> list[Clip]:
    """Return the clips of the stems, from the parts of their names.

    Args:
        files: video and audio path by stem, whether or not they exist; without videos, all are None.
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
    """Return every clip of which the folder holds the audio, the video, or both.

    Raises:
        SourceError: the folder is not CREMA-D, has no videos, or lacks the lists of the split.
    """
    videos, audios = find_media(root, VIDEO_SUFFIXES), find_media(root, AUDIO_SUFFIXES)
    if not videos:
        raise _no_videos(root, audios or find_media(root, (".mp3",)))
    first = next(iter(videos.values()))
    sound = next(iter(audios.values())).parent if audios else first.parent.with_name("AudioWAV")
    files = {
        stem: (videos.get(stem, first.with_name(f"{stem}.flv")), audios.get(stem, sound / f"{stem}.wav"))
        for stem in videos.keys() | audios.keys()
    }
    return make_clips(files, _splitter(root, split_by, files))


def audio_clips(root: Path, split_by: str) -> Sequence[Clip]:
    """Return every clip of which the folder holds the audio, without videos.

    Raises:
        SourceError: the folder holds no audio of CREMA-D, or lacks the lists of the split.
    """
    files = {stem: (None, path) for stem, path in find_media(root, (*AUDIO_SUFFIXES, ".mp3")).items()}
    if not files:
        raise _no_videos(root, {})
    return make_clips(files, _splitter(root, split_by, files))


def _no_videos(root: Path, audios: Mapping[str, Path]) -> SourceError:
    """Return an error that states what the folder holds, what is missing, and where to get it."""
    example = "VideoFlash/1001_DFA_ANG_XX.flv"
    if audios:
        folder = next(iter(audios.values())).parent
        msg = f"Folder holds only the audio of CREMA-D: {len(audios):,} files in {folder}, no {example}."
        hint = "Download the videos with: avdata download cremad. Or prepare the audio alone with: avdata"
        hint += " prepare cremad-audio"
        return SourceError(msg, hint=hint)
    parquet = next((path for path in walk_files(root) if path.suffix == ".parquet"), None)
    if parquet is not None:
        msg = f"Folder holds Parquet files, not the media of CREMA-D: {root} ({parquet.name}, no {example})."
        hint = "Parquet copies hold audio alone. Download the media with: avdata download cremad"
        return SourceError(msg, hint=hint)
    msg = f"Folder holds no CREMA-D clips: {root} (no files like {example})."
    hint = "Use --source with the folder of AudioWAV/ and VideoFlash/, or omit it to download the dataset."
    return SourceError(msg, hint=hint)


def find_media(root: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the file of each stem below the folder, in any layout and case of the suffix.

    Of several files of a stem, the one with the earliest suffix is returned, then the first by path.
    """
    renamed = {former: stem for stem, former in FORMER_NAMES.items()}
    found: dict[str, Path] = {}
    ranks: dict[str, int] = {}
    for path in walk_files(root):
        stem, suffix = renamed.get(path.stem, path.stem), path.suffix.lower()
        if suffix not in suffixes or not STEM.fullmatch(stem):
            continue
        # The current name of a clip comes before its former one.
        rank = 2 * suffixes.index(suffix) + (path.stem in renamed)
        if rank < ranks.get(stem, 99):
            found[stem], ranks[stem] = path, rank
    return found


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
        f" (HiCMAE's five folds{', here with 1040_ITH_SAD_XX, which HiCMAE drops' if fold == 3 else ''})"
        for fold in range(1, 6)
        for actors in (_fold_actors(fold),)
    },
}

_LABEL_ORDERS = {
    "ogmge": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),
    "tfds": ("NEU", "HAP", "SAD", "ANG", "FEA", "DIS"),
}

AUDIO_RECIPE = Recipe(
    name="cremad-audio",
    version=1,
    title="CREMA-D, audio",
    labels=LABELS,
    label_orders=_LABEL_ORDERS,
    splits=SPLITS,
    default_split="speaker",
    clips=audio_clips,
    mock="avdata.recipes.cremad_mock:write_mock",
    known_bad=CLIP_FACTS["known_bad"],
)

RECIPE = Recipe(
    name="cremad",
    version=1,
    title="CREMA-D",
    labels=LABELS,
    label_orders=_LABEL_ORDERS,
    splits=SPLITS,
    default_split="speaker",
    clips=clips,
    mock="avdata.recipes.cremad_mock:write_mock",
    known_bad=CLIP_FACTS["known_bad"],
    clips_from_paths=clips_from_paths,
    tasks={"audio": AUDIO_RECIPE},
)
