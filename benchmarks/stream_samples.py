"""Samples of `stream.py`, raw and as a prepared dataset."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from dataset_info import write_info

STEPS, BANDS, COLUMNS, SIZE = 5, 128, 51, 224


def make_raw(data: Path, samples: int) -> None:
    """Pictures with the detail of a photograph, so that JPEG finds what it finds in one; and mels."""
    from PIL import Image

    from avdata.shards.writer import _strip

    raw = data / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    shape = (samples, STEPS, SIZE, SIZE, 3)
    frames = np.lib.format.open_memmap(raw / "frames.npy", "w+", np.uint8, shape)
    for number in range(samples):
        coarse = generator.integers(0, 255, (28, 28, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.int16)
        noise = generator.normal(0, 4, shape[1:]).astype(np.int16)
        frames[number] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
        (raw / f"{number:06d}.jpg").write_bytes(_strip(frames[number], "JPEG", quality=95))
    frames.flush()
    mel = generator.normal(-4, 2, (samples, STEPS, BANDS, COLUMNS)).astype(np.float16)
    np.save(raw / "mel.npy", mel)


def make_ours(
    data: Path, storage: str, shard_samples: int = 100, *, name: str = "", size: int = SIZE, samples: int = 0
) -> None:
    """The samples as a prepared set; with `samples`, so many, of frames cropped to `size`."""
    from avdata.shards.format import index_schema, parquet_bytes, shard_name
    from avdata.shards.writer import ShardWriter, _npy

    root = data / f"ours-{name or storage}"
    (root / "train").mkdir(parents=True)
    mel, frames = (np.load(data / "raw" / f"{array}.npy", mmap_mode="r") for array in ("mel", "frames"))
    rows, shards, count = [], [], samples or len(mel)
    total = -(-count // shard_samples)
    for shard in range(total):
        path = shard_name("bench", "train", shard, total)
        with (root / path).open("wb") as stream:
            writer = ShardWriter(stream, path)
            for number in range(shard * shard_samples, min((shard + 1) * shard_samples, count)):
                members = {"mel.npy": _npy(mel[number % len(mel)])}
                if storage == "npy":
                    members["frames.npy"] = _npy(frames[number % len(mel), :, :size, :size])
                else:
                    members["frames.jpg"] = (data / "raw" / f"{number:06d}.jpg").read_bytes()
                members |= {"cls": str(number % 10).encode(), "json": b'{"label_name":"x"}'}
                facts = {"split": "train", "label": number % 10, "label_name": "x", "group": "g", "flags": []}
                writer.add(f"{number:06d}", members, facts)
            writer.close()
        blob = (root / path).read_bytes()
        shards.append(
            {
                "path": path,
                "bytes": len(blob),
                "sha256": hashlib.sha256(blob).hexdigest(),
                "samples": len(writer.rows),
            }
        )
        rows += writer.rows
    (root / "index.parquet").write_bytes(parquet_bytes(rows, index_schema()))
    shape = {"mel": [STEPS, BANDS, COLUMNS], "frames": [STEPS, size, size, 3]}
    write_info(root, shards, shape, labels=10, storage=storage)
