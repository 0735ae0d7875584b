"""The peers of `stream.py`: each writes the same samples in its own format and reads them its own best way.

Run by `stream.py` inside the environment of the peers. A sample is mel float16, frames uint8 (or the JPEG
strip of the frames, which every peer decodes with torchvision, as we do) and a label.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

BATCH = 32
Sample = tuple[np.ndarray, Any, int]


def arrays(data: Path) -> tuple[np.ndarray, np.ndarray, list[bytes]]:
    """The raw samples that all formats are written from."""
    strips = [path.read_bytes() for path in sorted((data / "raw").glob("*.jpg"))]
    return (
        np.load(data / "raw" / "mel.npy", mmap_mode="r"),
        np.load(data / "raw" / "frames.npy", mmap_mode="r"),
        strips,
    )


def decoded(strip: bytes, steps: int) -> torch.Tensor:
    """A JPEG strip as uint8 [T, C, H, W]."""
    from torchvision.io import decode_jpeg

    picture = decode_jpeg(torch.frombuffer(bytearray(strip), dtype=torch.uint8))
    channels, height, width = picture.shape
    return picture.view(channels, height, steps, width // steps).permute(2, 0, 1, 3)


def collate(samples: list[Sample]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A batch as tensors."""
    mels, frames, labels = zip(*samples, strict=True)
    return (
        torch.from_numpy(np.stack(mels)),
        torch.stack([torch.as_tensor(one) for one in frames]),
        torch.tensor(labels),
    )


# -- webdataset ------------------------------------------------------------------------------------------


def webdataset_loader(data: Path, storage: str, workers: int, order: str) -> Iterable[Any]:
    import webdataset

    shards = [str(path) for path in sorted((data / f"ours-{storage}" / "train").glob("*.tar"))]
    frames = "frames.npy" if storage == "npy" else "frames.jpg"

    def jpeg(key: str, content: bytes) -> torch.Tensor | None:
        return decoded(content, 5) if key.endswith("jpg") else None

    stream = webdataset.WebDataset(
        shards, shardshuffle=100 if order == "random" else False, empty_check=False
    )
    if order == "random":
        stream = stream.shuffle(1000, initial=100)
    stream = stream.decode(jpeg).to_tuple("mel.npy", frames, "cls").batched(BATCH, collation_fn=collate)
    return webdataset.WebLoader(stream, batch_size=None, num_workers=workers)


# -- mosaicml-streaming ----------------------------------------------------------------------------------


def mosaic_write(data: Path, storage: str) -> None:
    from streaming import MDSWriter

    mel, frames, strips = arrays(data)
    shape = ",".join(map(str, mel.shape[1:]))
    picture = "bytes" if storage == "jpeg" else f"ndarray:uint8:{','.join(map(str, frames.shape[1:]))}"
    columns = {"mel": f"ndarray:float16:{shape}", "frames": picture, "label": "int"}
    with MDSWriter(out=str(data / f"mosaic-{storage}"), columns=columns, size_limit=1 << 26) as writer:
        for number in range(len(mel)):
            shown = strips[number] if storage == "jpeg" else np.array(frames[number])
            writer.write({"mel": np.array(mel[number]), "frames": shown, "label": number % 10})


def mosaic_loader(data: Path, storage: str, workers: int, order: str) -> Iterable[Any]:
    from streaming import StreamingDataset

    class Set(StreamingDataset):
        def __getitem__(self, at: int) -> Sample:
            row = super().__getitem__(at)
            shown = decoded(row["frames"], 5) if storage == "jpeg" else row["frames"]
            return row["mel"], shown, row["label"]

    made = Set(local=str(data / f"mosaic-{storage}"), shuffle=order == "random", batch_size=BATCH)
    return DataLoader(made, batch_size=BATCH, num_workers=workers, collate_fn=collate)


# -- litdata ---------------------------------------------------------------------------------------------


def litdata_write(data: Path, storage: str) -> None:
    from litdata.streaming.writer import BinaryWriter

    mel, frames, strips = arrays(data)
    writer = BinaryWriter(str(data / f"litdata-{storage}"), chunk_bytes=1 << 26)
    for number in range(len(mel)):
        shown: Any = strips[number] if storage == "jpeg" else np.array(frames[number])
        writer[number] = {"mel": np.array(mel[number]), "frames": shown, "label": number % 10}
    writer.done()
    writer.merge(num_workers=1)


def litdata_loader(data: Path, storage: str, workers: int, order: str) -> Iterable[Any]:
    from litdata import StreamingDataLoader, StreamingDataset

    class Set(StreamingDataset):
        def __getitem__(self, at: Any) -> Sample:
            row = super().__getitem__(at)
            shown = decoded(row["frames"], 5) if storage == "jpeg" else row["frames"]
            return row["mel"], shown, row["label"]

    made = Set(str(data / f"litdata-{storage}"), shuffle=order == "random")
    return StreamingDataLoader(made, batch_size=BATCH, num_workers=workers, collate_fn=collate)


# -- datasets --------------------------------------------------------------------------------------------


def datasets_loader(data: Path, storage: str, workers: int, order: str) -> Iterable[Any]:
    import datasets

    datasets.disable_progress_bars()
    files = {"train": str(data / f"ours-{storage}" / "train" / "*.tar")}
    stream = datasets.load_dataset("webdataset", data_files=files, streaming=True)["train"]
    picture = "frames.npy" if storage == "npy" else "frames.jpg"
    stream = stream.select_columns(["mel.npy", picture, "cls"])
    if storage == "jpeg":
        stream = stream.cast_column(picture, datasets.Image(decode=False))
    if order == "random":
        stream = stream.shuffle(seed=0, buffer_size=100)

    def gathered(rows: list[dict[str, Any]]) -> Any:
        return collate(
            [
                (
                    np.asarray(row["mel.npy"], np.float16),
                    decoded(row[picture]["bytes"], 5)
                    if storage == "jpeg"
                    else np.asarray(row[picture], np.uint8),
                    row["cls"],
                )
                for row in rows
            ]
        )

    return DataLoader(stream, batch_size=BATCH, num_workers=workers, collate_fn=gathered)


# -- a folder of files -----------------------------------------------------------------------------------


def folder_write(data: Path, storage: str) -> None:
    mel, frames, strips = arrays(data)
    root = data / f"folder-{storage}"
    root.mkdir()
    for number in range(len(mel)):
        np.save(root / f"{number:06d}.mel.npy", mel[number])
        if storage == "npy":
            np.save(root / f"{number:06d}.frames.npy", frames[number])
        else:
            (root / f"{number:06d}.jpg").write_bytes(strips[number])
    (root / "labels.json").write_text(json.dumps([number % 10 for number in range(len(mel))]))


class Folder(Dataset[Sample]):
    """Map-style, a file a modality."""

    def __init__(self, root: Path, storage: str) -> None:
        self.root, self.storage = root, storage
        self.labels = json.loads((root / "labels.json").read_text())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, at: int) -> Sample:
        mel = np.load(self.root / f"{at:06d}.mel.npy")
        if self.storage == "npy":
            return mel, np.load(self.root / f"{at:06d}.frames.npy"), self.labels[at]
        return mel, decoded((self.root / f"{at:06d}.jpg").read_bytes(), 5), self.labels[at]


def folder_loader(data: Path, storage: str, workers: int, order: str) -> Iterable[Any]:
    made = Folder(data / f"folder-{storage}", storage)
    return DataLoader(
        made, batch_size=BATCH, num_workers=workers, collate_fn=collate, shuffle=order == "random"
    )


Write = Callable[[Path, str], None]
Load = Callable[[Path, str, int, str], Iterable[Any]]
PEERS: dict[str, tuple[Write | None, Load, str]] = {
    "webdataset": (None, webdataset_loader, "ours"),
    "mosaicml-streaming": (mosaic_write, mosaic_loader, "mosaic"),
    "litdata": (litdata_write, litdata_loader, "litdata"),
    "datasets": (None, datasets_loader, "ours"),
    "folder": (folder_write, folder_loader, "folder"),
}


def count(batch: Any) -> int:
    """Samples of a batch."""
    return len(batch[2])


def files_of(name: str, data: Path, storage: str) -> Iterator[Path]:
    """The files a contender reads."""
    prefix = PEERS[name][2] if name in PEERS else "ours"
    for folder, _, names in os.walk(data / f"{prefix}-{storage}"):
        for one in names:
            yield Path(folder, one)
