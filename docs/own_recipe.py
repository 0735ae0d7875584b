"""Films sorted by hand: `LABEL/GROUP-NUMBER.mp4`, a folder a label; groups a and b are held out."""

from pathlib import Path

from avdata import Clip, Recipe, SourceError
from avdata.testing import Scene, write_av, write_ground_truth

LABELS = ("clap", "knock")
HELD_OUT = {"a": "test", "b": "val"}


def clips(root: Path, split_by: str) -> list[Clip]:
    films = sorted(root.glob("*/*-*.mp4"))
    if not films:
        raise SourceError(f"{root} holds no LABEL/GROUP-NUMBER.mp4", hint="--source is the folder of labels")
    groups = [film.stem.split("-")[0] for film in films]
    return [
        Clip(
            key=f"{film.parent.name}_{film.stem}", label=film.parent.name, group=group,
            split=HELD_OUT.get(group, "train"), video=film,
        )
        for film, group in zip(films, groups, strict=True)
    ]  # fmt: skip


def mock(out: Path, count: int | None, bad: bool, seed: int) -> None:
    for number in range(count or 12):
        label, group = LABELS[number % 2], "abcd"[number // 2 % 4]
        scene = Scene(seconds=2.6, beeps=(1.0,), flashes=(1.0,), seed=seed + number)
        write_av(out / label / f"{group}-{number}.mp4", scene, vcodec="mpeg4", acodec="aac")
    write_ground_truth(out, {})


RECIPE = Recipe(
    name="handmade", version=1, title="Claps and knocks", labels=LABELS, clips=clips, mock=mock,
    splits={"group": "one group tests, one validates, the others train"}, default_split="group",
)  # fmt: skip
