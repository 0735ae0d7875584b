"""Mock of CREMA-D with generated media: folders, names, lists, codecs, timestamps and bad cases."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from avdata.recipes.cremad import LABELS, SENTENCES, speaker_split

from avdata.errors import UsageError
from avdata.testing import (
    NTSC,
    Scene,
    divide_clips,
    scene_audio,
    write_av,
    write_ground_truth,
    write_manifest,
    write_wav,
)

# By split of the scheme `speaker`. Others follow after all combinations of these.
ACTORS = {"train": ("1001", "1002", "1003"), "val": ("1015", "1020"), "test": ("1010", "1013")}

NAME_IN_METADATA = "Jane Example Participant"
"""Placeholder of the personal data that the XMP block of real files can hold."""

WAV_RATE = 16_000


@dataclass
class _Clip:
    stem: str
    scene: Scene
    wav: Scene | None = None
    reason: str | None = None
    flags: list[str] = field(default_factory=list)


def write_mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    """Write the mock; `truth.json` holds flash and beep times, quarantine reason and flags of each clip."""
    most = 91 * len(LABELS) * len(SENTENCES)
    if count is not None and count > most:
        msg = f"Too many clips: {count:,}. 91 actors, 12 sentences and 6 emotions give {most:,}."
        raise UsageError(msg, hint=f"Use --clips {most} or fewer.")
    clips = [_plain(*place, number, seed) for number, place in enumerate(_places(count or 24))]
    for clip in clips:
        _write_pair(out, clip)
    if bad:
        clips += _write_bad(out, seed)
    _write_lists(out, [clip.stem for clip in clips])
    write_manifest(out, "cremad")
    if bad:
        _spoil_after_listing(out)
    write_ground_truth(out, {clip.stem: _truth(clip) for clip in clips})


def _places(count: int) -> Iterator[tuple[str, str, str]]:
    """Yield actor, label and sentence of each clip: all labels in all splits, if `count` suffices.

    No two clips have the same three, because they would be one file.
    """
    unused = {(split, label): _combinations(split, label) for split in ACTORS for label in range(len(LABELS))}
    for split, label in divide_clips(count, len(LABELS)):
        # A split without further actors is followed by the others.
        order = sorted(unused, key=lambda place: (place != (split, label), place[1] != label))
        found = next((place, *pair) for place in order for pair in itertools.islice(unused[place], 1))
        (_, used), actor, sentence = found
        yield actor, LABELS[used], sentence


def _combinations(split: str, label: int) -> Iterator[tuple[str, str]]:
    """Yield all actors of a split with all sentences, first those of `ACTORS`; labels differ in order."""
    everyone = [actor for actor in map(str, range(1001, 1092)) if speaker_split(actor) == split]
    for actors in (ACTORS[split], [actor for actor in everyone if actor not in ACTORS[split]]):
        for number in range(len(actors) * len(SENTENCES)):
            yield actors[(number + label) % len(actors)], SENTENCES[number // len(actors)]


def _plain(actor: str, label: str, sentence: str, number: int, seed: int) -> _Clip:
    """Return clip `number`; one sentence has levels."""
    level = ("LO", "MD", "HI")[number % 3] if sentence == "IEO" and label != "NEU" else "XX"
    frames = 60 + 6 * (number % 5)
    event = float((18 + 3 * (number % 7)) / NTSC)
    scene = Scene(
        seconds=float(frames / NTSC),
        flashes=(event,),
        beeps=(event,),
        seed=seed * 1_000_003 + number,
        size=(480, 360),
    )
    return _Clip(f"{actor}_{sentence}_{label}_{level}", scene)


def _write_pair(out: Path, clip: _Clip) -> None:
    flv = out / "VideoFlash" / f"{clip.stem}.flv"
    write_av(flv, clip.scene)
    _add_personal_metadata(flv)
    audio = clip.wav or clip.scene
    write_wav(out / "AudioWAV" / f"{clip.stem}.wav", scene_audio(audio, WAV_RATE), WAV_RATE)


def _add_personal_metadata(flv: Path) -> None:
    """Insert an onXMPData script tag like Adobe's encoder; ffmpeg lists it as a stream."""
    text = f"<x:xmpmeta><creator>{NAME_IN_METADATA}</creator></x:xmpmeta>".encode()
    name, key = b"onXMPData", b"liveXML"
    body = b"\x02" + struct.pack(">H", len(name)) + name + b"\x08" + struct.pack(">I", 1)
    body += (
        struct.pack(">H", len(key)) + key + b"\x02" + struct.pack(">H", len(text)) + text + b"\x00\x00\x09"
    )
    tag = b"\x12" + len(body).to_bytes(3) + bytes(7) + body
    data = flv.read_bytes()
    first = 13 + 11 + int.from_bytes(data[14:17]) + 4
    flv.write_bytes(data[:first] + tag + struct.pack(">I", len(tag)) + data[first:])


def _truth(clip: _Clip) -> dict[str, Any]:
    return {
        "flash": list(clip.scene.flashes),
        "beep": list((clip.wav or clip.scene).beeps),
        "reason": clip.reason,
        "flags": sorted(clip.flags),
    }


def _scene(seed: int, frames: int = 60) -> Scene:
    event = float(24 / NTSC)
    events = (event,) if frames > 24 else ()
    return Scene(seconds=float(frames / NTSC), flashes=events, beeps=events, seed=seed)


def _write_bad(out: Path, seed: int) -> list[_Clip]:
    """Write one clip for each defect of the real dataset or of a damaged copy."""
    base = _scene(seed + 500)
    long = replace(_scene(seed + 501, 102), beeps=(float(24 / NTSC), float(80 / NTSC)))
    cases = [
        _Clip("1001_WSI_ANG_XX", base, reason="lfs_pointer"),
        _Clip("1001_WSI_DIS_XX", base, reason="empty_file"),
        _Clip("1001_WSI_FEA_XX", base, reason="checksum_mismatch"),
        _Clip("1002_WSI_HAP_XX", base, reason="truncated"),
        _Clip("1002_WSI_SAD_XX", base, wav=replace(base, silent=True), reason="silent_audio"),
        _Clip("1002_WSI_NEU_XX", base, reason="missing_video"),
        _Clip("1003_WSI_ANG_XX", base, reason="not_media"),
        _Clip("1003_WSI_DIS_XX", base, flags=["container_audio"]),
        _Clip(
            "1003_IWW_FEA_XX",
            long,
            wav=replace(long, seconds=2.2355625),
            flags=["audio_truncated", "av_mismatch"],
        ),
        _Clip(
            "1047_IEO_FEA_LO", replace(base, black=True, flashes=()), flags=["av_mismatch", "black_frames"]
        ),
        _Clip("1006_TIE_HAP_XX", base, flags=["dup_audio_of"]),
        _Clip("1006_TIE_NEU_XX", base, flags=["dup_audio_of"]),
        _Clip("1076_MTI_NEU_XX", _scene(seed, 3), wav=_scene(seed, 72), reason="known_bad"),
        _Clip("1040_ITH_SAD_XX", base),
    ]
    for clip in cases:
        _write_pair(out, clip)
    audios, videos = out / "AudioWAV", out / "VideoFlash"
    (videos / "1002_WSI_NEU_XX.flv").unlink()
    (audios / "1003_WSI_DIS_XX.wav").unlink()
    (audios / "1040_ITH_SAD_XX.wav").rename(audios / "1040_ITH_SAD_X.wav")
    # The manifest lists these damaged files, so that only their structure shows the damage, not a checksum.
    cut = videos / "1002_WSI_HAP_XX.flv"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    (videos / "1003_WSI_ANG_XX.flv").write_text("ffconcat version 1.0\nfile 1001_WSI_FEA_XX.flv\n")
    (videos / "1003_WSI_DIS_XX.mp4").write_bytes(b"a stray file, as in the mirror")
    return cases


def _spoil_after_listing(out: Path) -> None:
    """Damage files after the manifest lists their checksums."""
    (out / "AudioWAV" / "1001_WSI_ANG_XX.wav").write_text(
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 71582\n"
    )
    (out / "VideoFlash" / "1001_WSI_DIS_XX.flv").write_bytes(b"")
    flipped = out / "AudioWAV" / "1001_WSI_FEA_XX.wav"
    data = bytearray(flipped.read_bytes())
    data[1000] ^= 0xFF
    flipped.write_bytes(bytes(data))


def _write_lists(out: Path, stems: list[str]) -> None:
    rows = "".join(f'{number},"{stem}"\n' for number, stem in enumerate(stems, start=1))
    (out / "SentenceFilenames.csv").write_text('"Stimulus_Number","Filename"\n' + rows, encoding="utf-8")
    actors = sorted({stem[:4] for stem in stems})
    people = "".join(
        f'{actor},{20 + number},"Female","Unknown","Not Hispanic"\n' for number, actor in enumerate(actors)
    )
    (out / "VideoDemographics.csv").write_text(
        '"ActorID","Age","Sex","Race","Ethnicity"\n' + people, encoding="utf-8"
    )
    results = out / "processedResults"
    results.mkdir(exist_ok=True)
    votes = "".join(f'"{n}","{stem}","A",50,"A",50,"A:D",50\n' for n, stem in enumerate(stems, start=1))
    header = (
        '"","FileName","VoiceVote","VoiceLevel","FaceVote","FaceLevel","MultiModalVote","MultiModalLevel"\n'
    )
    (results / "summaryTable.csv").write_text(header + votes, encoding="utf-8")
    lists = out / "ogmge"
    lists.mkdir(exist_ok=True)
    for name in ("train", "test"):
        listed = [stem for number, stem in enumerate(stems) if (number % 5 == 0) == (name == "test")]
        text = "".join(f"{stem},{stem.split('_')[2]}\r\n" for stem in listed)
        (lists / f"{name}.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
