"""GRID: sentences of six words, such as "bin blue at f two now", 1,000 by each of 34 speakers.

Cooke, Barker, Cunningham, Shao: An audio-visual corpus for speech perception and automatic speech
recognition, JASA 120(5), 2006. https://zenodo.org/records/3625687

A clip is `sN/STEM.mpg` of speaker N. The stem states the words, `bbaf2n`, and `alignments/sN/STEM.align`
their times. The label is one of the words, which the task option `word` names, and its interval is the event.
Speaker 21 has no videos.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from avdata import Clip, QuarantineReason, Recipe, SourceError, UsageError
from avdata.config.overrides import Overrides
from avdata.errors import did_you_mean
from avdata.storage.paths import walk_files

WORDS: Mapping[str, Mapping[str, str]] = {
    "command": {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    "color": {"b": "blue", "g": "green", "r": "red", "w": "white"},
    "preposition": {"a": "at", "b": "by", "i": "in", "w": "with"},
    "letter": {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},  # w has three syllables
    "digit": {
        "z": "zero", "1": "one", "2": "two", "3": "three", "4": "four", "5": "five", "6": "six",
        "7": "seven", "8": "eight", "9": "nine",
    },
    "adverb": {"a": "again", "n": "now", "p": "please", "s": "soon"},
}  # fmt: skip
"""Words of each position of a sentence, by their letter of a file's name."""

STEM = re.compile("".join(f"([{''.join(words)}])" for words in WORDS.values()))

SPEAKER = re.compile(r"s([1-9]|[12]\d|3[0-4])")

VIDEO_SUFFIXES = (".mpg", ".mpeg", ".mp4", ".avi", ".mkv")

TICKS_PER_SECOND = 25_000
"""Unit of the alignments."""

PAUSES = frozenset({"sil", "sp"})

VAL_SPEAKERS = frozenset({9, 17, 25, 33})

TEST_SPEAKERS = {"speaker": frozenset({8, 16, 24, 32}), "unseen": frozenset({1, 2, 20, 22})}

OPTIONS = {"word": f"word of the sentence that is the label: {', '.join(WORDS)} (default: color)"}


def chosen_word(options: Mapping[str, str]) -> str:
    """Return the position of the word that is the label.

    Raises:
        UsageError: there is no such position.
    """
    word = options.get("word", "color")
    if word not in WORDS:
        msg = f"Invalid task option word={word}."
        raise UsageError(msg, hint=did_you_mean(word, list(WORDS)))
    return word


def parse_stem(stem: str) -> dict[str, str] | None:
    """Return the word of each position, or None if the name is not one of a sentence.

    >>> list(parse_stem("bbaf2n").values())
    ['bin', 'blue', 'at', 'f', 'two', 'now']
    """
    match = STEM.fullmatch(stem)
    if match is None:
        return None
    return {
        position: words[letter]
        for (position, words), letter in zip(WORDS.items(), match.groups(), strict=True)
    }


def parse_alignment(text: str) -> list[tuple[float, float, str]]:
    r"""Return start and end in seconds of each word, without pauses.

    >>> parse_alignment("0 23750 sil\\n23750 29500 bin\\n")
    [(0.95, 1.18, 'bin')]

    Raises:
        ValueError: a line is not `START END WORD`, or an interval is empty.
    """
    words = []
    for line in text.splitlines():
        start, end, word = line.split()
        if word not in PAUSES:
            words.append((int(start) / TICKS_PER_SECOND, int(end) / TICKS_PER_SECOND, word))
            if not words[-1][0] < words[-1][1]:
                msg = f"empty interval {line!r}"
                raise ValueError(msg)
    return words


def split_of(speaker: int, stem: str, split_by: str) -> str:
    """Return the split of a clip: by speaker, or by a hash of the sentence for the split `sentence`."""
    if split_by == "sentence":
        place = int(hashlib.md5(stem.encode(), usedforsecurity=False).hexdigest(), 16) % 5
        return "train" if place < 3 else "val" if place == 3 else "test"
    return "test" if speaker in TEST_SPEAKERS[split_by] else "val" if speaker in VAL_SPEAKERS else "train"


def clips(root: Path, split_by: str, options: Mapping[str, str]) -> Sequence[Clip]:
    """Return the clips of all videos below the folder, in any layout with folders s1 to s34.

    Raises:
        SourceError: the folder holds no videos or no alignments of GRID.
        UsageError: the value of an option is invalid.
    """
    position = chosen_word(options)
    videos = _find(root, VIDEO_SUFFIXES)
    if not videos:
        msg = f"Folder holds no clips of GRID: {root} (no files like s1/bbaf2n.mpg)."
        raise SourceError(msg, hint="Use --source with the unpacked archives s1.zip to s34.zip, or omit it.")
    alignments = _find(root, (".align",))
    if not alignments:
        msg = f"Folder holds {len(videos):,} clips of GRID and no alignments: {root}."
        raise SourceError(
            msg, hint="Unpack alignments.zip of the corpus into it (alignments/s1/bbaf2n.align)."
        )
    return [
        _clip(speaker, stem, path, alignments.get((speaker, stem)), position, split_by)
        for (speaker, stem), path in sorted(videos.items())
    ]


def _clip(speaker: int, stem: str, video: Path, alignment: Path | None, position: str, split_by: str) -> Clip:
    words = parse_stem(stem) or {}
    event, problem = _event(words, alignment, position)
    return Clip(
        key=f"s{speaker}_{stem}", label=words[position], group=f"s{speaker}",
        split=split_of(speaker, stem, split_by), video=video, event=event,
        excluded=problem, excluded_reason=QuarantineReason.NO_LABEL,
        extras={"speaker": speaker, **words},
    )  # fmt: skip


def _event(
    words: Mapping[str, str], alignment: Path | None, position: str
) -> tuple[tuple[float, float] | None, str | None]:
    """Return the interval of the word, or why the alignment does not state it."""
    if alignment is None:
        return None, "the clip has no alignment, which states the interval of the word"
    name = f"{alignment.parent.name}/{alignment.name}"
    try:
        spoken = parse_alignment(alignment.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, f"{name} cannot be read: {error}"
    if [word for _, _, word in spoken] != list(words.values()):
        return None, f"{name} has other words than the name: {' '.join(word for _, _, word in spoken)}"
    start, end, _ = spoken[list(WORDS).index(position)]
    return (start, end), None


def _find(root: Path, suffixes: Sequence[str]) -> dict[tuple[int, str], Path]:
    """Return the file of each speaker and sentence; of several, the one with the earliest suffix."""
    found: dict[tuple[int, str], Path] = {}
    for path in walk_files(root):
        if path.suffix.lower() not in suffixes or STEM.fullmatch(path.stem) is None:
            continue
        folders = reversed(path.relative_to(root.parent).parts[:-1])
        speaker = next((match[1] for part in folders if (match := SPEAKER.fullmatch(part))), None)
        if speaker is None:
            continue
        other = found.setdefault((int(speaker), path.stem), path)
        if suffixes.index(path.suffix.lower()) < suffixes.index(other.suffix.lower()):
            found[int(speaker), path.stem] = path
    return found


def labels(root: Path, clips: Sequence[Clip], options: Mapping[str, str]) -> Sequence[str]:
    """Return the words of the chosen position, in the order of the corpus's description."""
    del root, clips
    return tuple(WORDS[chosen_word(options)].values())


PRESETS: Mapping[str, Overrides] = {
    # A word lasts 0.1 to 0.5 s: four steps of 0.16 s around its middle, four frames each.
    "snnergy": {"audio": {"hop_length": 20}, "align": {"window": "event", "seconds": 0.64}},
}

RECIPE = Recipe(
    name="grid",
    version=1,
    title="GRID",
    labels=tuple(WORDS["color"].values()),
    splits={
        "speaker": "speakers 8, 16, 24, 32 test, and 9, 17, 25, 33 validate",
        "unseen": "speakers 1, 2, 20, 22 test, as in LipNet; 9, 17, 25, 33 validate",
        "sentence": "60, 20 and 20 % of the sentences by a hash of their name; all speakers in all splits",
    },
    default_split="speaker",
    clips=clips,
    mock="avdata.recipes.grid_mock:write_mock",
    presets=PRESETS,
    options=OPTIONS,
    source_labels=labels,
)
