"""Encoding of samples and writing of deterministic tar shards (format: `avdata.shards.format`)."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from avdata.shards.format import IndexRow

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from avdata.config.schema import Config
    from avdata.features.extract import Features


def encode_members(
    features: Features, label: int, metadata: Mapping[str, Any], config: Config
) -> dict[str, bytes]:
    """Encode the members of a sample.

    Args:
        features: mel float16 [T, F, L], frames uint8 [T, H, W, C] or None, waveform float32 [n] or None.
        label: index of the label.
        metadata: content of the JSON member.
        config: `video.storage` sets the encoding of frames, `audio.flac` whether the waveform is stored.

    Returns:
        Bytes of each member by extension.
    """
    members = {"mel.npy": _npy(features.mel)}
    if features.frames is None:
        pass
    elif config.video.storage == "jpeg":
        members["frames.jpg"] = _strip(features.frames, "JPEG", quality=config.video.quality)
    elif config.video.storage == "png":
        members["frames.png"] = _strip(features.frames, "PNG")
    else:
        members["frames.npy"] = _npy(features.frames)
    members["cls"] = str(label).encode()
    members["json"] = json.dumps(metadata, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    if config.audio.flac:
        assert features.waveform is not None
        members["flac"] = _flac(features.waveform, config.audio.sample_rate)
    return members


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _strip(frames: np.ndarray, kind: str, **options: int) -> bytes:
    # Pillow, not torchvision's encoder: importing torchvision takes seconds in every worker.
    from PIL import Image  # noqa: PLC0415

    # [T, H, W, C] -> [H, T·W, C]
    steps, height, width, channels = frames.shape
    strip = np.ascontiguousarray(frames.transpose(1, 0, 2, 3).reshape(height, steps * width, channels))
    buffer = io.BytesIO()
    image = Image.fromarray(strip[..., 0] if channels == 1 else strip)
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _flac(waveform: np.ndarray, rate: int) -> bytes:
    import soundfile  # noqa: PLC0415

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(waveform, -1, 1), rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


class ShardWriter:
    """Writer of samples to one deterministic tar shard. Collects their index rows in `rows`.

    >>> import io
    >>> writer = ShardWriter(io.BytesIO(), "train/x-train-00000-of-00001.tar")
    >>> writer.add("a", {"cls": b"0"}, {})["nbytes"]
    1024
    """

    def __init__(self, stream: BinaryIO, shard: str) -> None:
        self.shard = shard
        self.rows: list[IndexRow] = []
        self._stream = _HashingStream(stream)
        self._tar = tarfile.TarFile(fileobj=self._stream, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, key: str, members: Mapping[str, bytes], row: IndexRow) -> IndexRow:
        """Append a sample.

        Args:
            key: the sample's key.
            members: bytes of each member by extension.
            row: the sample's index row without its position.

        Returns:
            The row with key, shard, offset, nbytes and sha256.

        Raises:
            ValueError: USTAR cannot store the name (over 100 bytes) or the size (8 GiB or more) of a member.
        """
        offset = self._stream.tell()
        self._stream.sha256 = hashlib.sha256()
        for extension, data in sorted(members.items()):
            header = tarfile.TarInfo(f"{key}.{extension}")
            header.size, header.mode = len(data), 0o444
            self._tar.addfile(header, io.BytesIO(data))
        index_row = {
            **row,
            "key": key,
            "shard": self.shard,
            "offset": offset,
            "nbytes": self._stream.tell() - offset,
            "sha256": self._stream.sha256.hexdigest(),
        }
        self.rows.append(index_row)
        return index_row

    def close(self) -> None:
        """Write the end of the archive. The stream stays open."""
        self._tar.close()


class _HashingStream(io.BufferedIOBase):
    """Stream that counts the bytes written to another one and hashes them."""

    def __init__(self, stream: BinaryIO) -> None:
        self.sha256 = hashlib.sha256()
        self._stream = stream
        self._position = 0

    def write(self, data: ReadableBuffer) -> int:
        self.sha256.update(data)
        size = self._stream.write(data)
        self._position += size
        return size

    def tell(self) -> int:
        return self._position
