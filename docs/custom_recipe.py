"""Videos in one directory per label, `LABEL/GROUP-NUMBER.mp4`; groups a and b are held out."""

from pathlib import Path

from avdata import Clip, Recipe, SourceError
from avdata.testing import Scene, write_av, write_ground_truth

LABELS = ("clap", "knock")
HELD_OUT = {"a": "test", "b": "val"}


def clips(root: Path, split_by: str) -> list[Clip]:
    videos = sorted(root.glob("*/*-*.mp4"))
    if not videos:
        raise SourceError(f"No LABEL/GROUP-NUMBER.mp4 in {root}", hint="use the parent directory as --source")
    groups = [video.stem.split("-")[0] for video in videos]
    return [
        Clip(
            key=f"{video.parent.name}_{video.stem}", label=video.parent.name, group=group,
            split=HELD_OUT.get(group, "train"), video=video,
        )
        for video, group in zip(videos, groups, strict=True)
    ]  # fmt: skip


def mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    for number in range(count or 12):
        label, group = LABELS[number % 2], "abcd"[number // 2 % 4]
        scene = Scene(seconds=2.6, beeps=(1.0,), flashes=(1.0,), seed=seed + number)
        write_av(out / label / f"{group}-{number}.mp4", scene, vcodec="mpeg4", acodec="aac")
    write_ground_truth(out, {})


RECIPE = Recipe(
    name="handmade", version=1, title="Claps and knocks", labels=LABELS, clips=clips, mock=mock,
    splits={"group": "group a is test, group b is val, the others are train"}, default_split="group",
)  # fmt: skip
