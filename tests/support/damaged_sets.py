"""Random damage to prepared datasets and stored networks, and the readers that must report it."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

import avdata
from avdata.shards.format import METADATA_FILES, index_schema, parquet_bytes, quarantine_schema
from avdata.shards.members import read_members
from avdata.shards.sample import load_sample
from avdata.shards.writer import ShardWriter

VALUES: tuple[Any, ...] = (
    None, "", 0, -1, 1 << 62, 1e308, [], {}, "x", True, [None], {"a": None}, "../../x", float("nan"),
    "\ud800", "x" * 100_000, [[[]]] * 3, -0.5,
)  # fmt: skip

CELLS: dict[str, tuple[Any, ...]] = {
    "string": (None, "", "../../../etc/passwd", "/etc/passwd", "x\0y", "train", "\x1b[2J"),
    "int64": (None, -1, -(1 << 62), 1 << 62, 511, 0, 1, 512),
    "int32": (None, -1, 99, 1 << 30),
    "double": (None, float("nan"), float("inf"), -1e308),
}


def npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    """Return an npy file with any header."""
    size = (len(header) + 1).to_bytes(2 if version == (1, 0) else 4, "little")
    return b"\x93NUMPY" + bytes(version) + size + header.encode() + b"\n" + data


def plain_npy(shape: str, kind: str = "<f2") -> bytes:
    return npy(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}", bytes(64))


def png(width: int, height: int) -> bytes:
    """Return a small PNG of black pixels of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(min(height * (1 + width * 3), 1 << 20)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def jpeg(width: int, height: int, mode: str = "RGB", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.new(mode, (width, height)).save(stream, "JPEG", **options)
    return stream.getvalue()


def declared(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose header declares another size."""
    start = data.index(b"\xff\xc0") + 5
    return data[:start] + struct.pack(">HH", height, width) + data[start + 4 :]


NPY_SHAPES = (
    "(1<<40,)", "(1099511627776,)", "(4611686018427387904, 4)", "(-1, 4)", "(0, 0, 0)", "(True,)", "()",
    "(8, 2, 2)", "7", "None",
)  # fmt: skip

NPY_FILES = (
    *map(plain_npy, NPY_SHAPES),
    *(plain_npy("(8,)", kind) for kind in ("|V8", "|O", "<U0", ">f2", "<M8[s]", "<f8")),
    npy("{'descr': [('a', '<f2')], 'fortran_order': False, 'shape': (8,)}", bytes(64)),
    npy("(" * 3000 + ")" * 3000, bytes(64)),
    npy("{}", bytes(64), (9, 9)),
    npy("{'descr': '<f2', 'fortran_order': False, 'shape': open('x')}"),
    b"",
)

IMAGES = (
    png(10_000, 10_000), jpeg(1, 1), jpeg(65_000, 1), declared(jpeg(8, 8), 65_000, 65_000),
    jpeg(64, 64, progressive=True), jpeg(64, 16, "CMYK"), b"hello",
)  # fmt: skip

JSON_TEXTS = (
    b"[1]", b"null", b"[" * 100_000, b"\xff\xfe", b'{"window_start":NaN}', b'{"step_labels":"abc"}',
    b'{"step_labels":[' + b"9" * 5000 + b"]}", b'{"flags":3}', b'{"media":[]}', b"", b"{}",
    b'{"group":"\\ud800"}', b'{"group":"\xed\xa0\x80"}', b'{"media":{"fps":"x"}}', b'{"event":[1]}',
    b'{"step_times":["x"]}', b'{"key":null}',
)  # fmt: skip

CLASSES = (b"abc", b"9" * 5000, b"-1", b"", b" 1", b"1_0")


def always(data: bytes) -> Callable[[bytes], bytes]:
    return lambda _: data


def with_nan(mel: bytes) -> bytes:
    return mel[:128] + np.full(len(mel[128:]) // 2, np.nan, np.float16).tobytes()


MEMBERS: tuple[tuple[str, Callable[[bytes], bytes | None]], ...] = (
    *(("mel.npy", always(data)) for data in NPY_FILES),
    *(("frames.jpg", always(data)) for data in IMAGES),
    *(("json", always(data)) for data in JSON_TEXTS),
    *(("cls", always(data)) for data in CLASSES),
    ("mel.npy", lambda data: data[:8]), ("mel.npy", with_nan), ("frames.jpg", lambda data: data[:400]),
    *((name, lambda _: None) for name in ("mel.npy", "frames.jpg", "json", "cls")),
    ("pickle", always(b"cos\nsystem\n(S'true'\ntR.")),
)  # fmt: skip
"""Name of a member and its replacement; None removes it."""


def json_paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value of a JSON document, of lists the first three."""
    items = (
        value.items() if isinstance(value, dict) else enumerate(value[:3] if isinstance(value, list) else ())
    )
    for key, item in items:
        yield (*path, key)
        yield from json_paths(item, (*path, key))


def mutate_json(document: Any, rng: random.Random) -> tuple[Any, str]:
    """Return a document with one value replaced or removed, and what was done."""
    changed = copy.deepcopy(document)
    path = rng.choice(list(json_paths(document)))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    where = ".".join(map(str, path))
    if rng.random() < 0.4:
        del parent[path[-1]]
        return changed, f"{where} removed"
    parent[path[-1]] = value = rng.choice(VALUES)
    return changed, f"{where} = {value!r:.40}"


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with some of them changed, a part cut out, or the end cut off."""
    changed = bytearray(data)
    kind = rng.random()
    if kind < 0.6 and changed:
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
    elif kind < 0.8:
        del changed[rng.randrange(len(changed) + 1) :]
    else:
        start = rng.randrange(len(changed) + 1)
        del changed[start : start + rng.randint(1, 600)]
    return bytes(changed)


def write_info(root: Path, info: Any) -> None:
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8")


def write_index(root: Path, data: bytes) -> None:
    """Write an index whose checksum dataset.json records."""
    info = json.loads((root / "dataset.json").read_bytes())
    (root / "index.parquet").write_bytes(data)
    write_info(root, {**info, "index": {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}})


def replace_member(root: Path, shard: str, name: str, change: Callable[[bytes], bytes | None]) -> None:
    """Replace a member of all samples of a shard, with checksums that match."""
    info = json.loads((root / "dataset.json").read_bytes())
    rows = pq.read_table(root / "index.parquet").to_pylist()
    data, stream = (root / shard).read_bytes(), io.BytesIO()
    writer = ShardWriter(stream, shard)
    for row in [row for row in rows if row["shard"] == shard]:
        members = {
            key: bytes(view) for key, view in read_members(data[row["offset"] :][: row["nbytes"]]).items()
        }
        content = change(members.get(name, b""))
        members.pop(name, None)
        if content is not None:
            members[name] = content
        row.update(writer.add(row["key"], members, row))
    writer.close()
    (root / shard).write_bytes(stream.getvalue())
    entry = next(
        entry for split in info["splits"].values() for entry in split["shards"] if entry["path"] == shard
    )
    entry.update(bytes=len(stream.getvalue()), sha256=hashlib.sha256(stream.getvalue()).hexdigest())
    write_info(root, info)
    write_index(root, parquet_bytes(rows, index_schema()))


def _info_value(root: Path, rng: random.Random) -> str:
    info, what = mutate_json(json.loads((root / "dataset.json").read_bytes()), rng)
    write_info(root, info)
    return what


def _info_bytes(root: Path, rng: random.Random) -> str:
    path = root / "dataset.json"
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return "bytes"


def _table_value(root: Path, rng: random.Random, name: str, schema: pa.Schema) -> str:
    rows = pq.read_table(root / name).to_pylist() or [dict.fromkeys(schema.names, "x")]
    column = rng.choice(schema.names)
    value = rng.choice(CELLS.get(str(schema.field(column).type), (None, ["a", None], [])))
    rng.choice(rows)[column] = value
    data = parquet_bytes(rows, schema)
    if name == "index.parquet":
        write_index(root, data)
    else:
        (root / name).write_bytes(data)
    return f"{column} = {value!r}"


def _index_value(root: Path, rng: random.Random) -> str:
    return _table_value(root, rng, "index.parquet", index_schema())


def _quarantine_value(root: Path, rng: random.Random) -> str:
    return _table_value(root, rng, "quarantine.parquet", quarantine_schema())


def _index_bytes(root: Path, rng: random.Random) -> str:
    write_index(root, mutate_bytes((root / "index.parquet").read_bytes(), rng))
    return "bytes"


def _index_columns(root: Path, rng: random.Random) -> str:
    table = pq.read_table(root / "index.parquet")
    column = rng.choice(table.column_names)
    number = table.column_names.index(column)
    if rng.random() < 0.5:
        table = table.remove_column(number)
    else:
        table = table.set_column(number, column, pa.array([1.5] * len(table)))
    sink = io.BytesIO()
    pq.write_table(table, sink)
    write_index(root, sink.getvalue())
    return f"type of {column}"


def _column_name(root: Path, rng: random.Random) -> str:
    """Replace the first byte of a column's name, which is then not UTF-8."""
    name = rng.choice(("index.parquet", "quarantine.parquet"))
    data = (root / name).read_bytes()
    column = rng.choice(pq.read_schema(root / name).names)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    start = data.index(column.encode(), footer)
    data = data[:start] + b"\xab" + data[start + 1 :]
    if name == "index.parquet":
        write_index(root, data)
    else:
        (root / name).write_bytes(data)
    return f"{column} in {name}"


def _quarantine_bytes(root: Path, rng: random.Random) -> str:
    path = root / "quarantine.parquet"
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return "bytes"


def _shards(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.tar"))


def _member(root: Path, rng: random.Random) -> str:
    name, change = rng.choice(MEMBERS)
    shard = rng.choice(_shards(root))
    replace_member(root, shard, name, change)
    return f"{name} in {shard}"


def _member_bytes(root: Path, rng: random.Random) -> str:
    name = rng.choice(("mel.npy", "frames.jpg", "json", "cls"))
    replace_member(root, rng.choice(_shards(root)), name, lambda data: mutate_bytes(data, rng))
    return f"bytes of {name}"


def _shard_bytes(root: Path, rng: random.Random) -> str:
    path = root / rng.choice(_shards(root))
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    return "bytes"


def _file(root: Path, rng: random.Random) -> str:
    name = rng.choice([*METADATA_FILES, *_shards(root)])
    (root / name).unlink()
    if kind := rng.choice(("", "folder", "empty", "link")):
        {"folder": Path.mkdir, "empty": Path.touch, "link": lambda path: path.symlink_to("/dev/null")}[kind](
            root / name
        )
    return f"{name} {kind or 'missing'}"


MUTATIONS: dict[str, Callable[[Path, random.Random], str]] = {
    "dataset.json": _info_value, "dataset.json bytes": _info_bytes, "index": _index_value,
    "index bytes": _index_bytes, "index columns": _index_columns, "column name": _column_name,
    "quarantine": _quarantine_value, "quarantine bytes": _quarantine_bytes, "member": _member,
    "member bytes": _member_bytes, "shard bytes": _shard_bytes, "file": _file,
}  # fmt: skip


def read_batches(root: Path) -> None:
    for split in ("train", "val"):
        for _ in avdata.open(root, split).loader(batch_size=3, num_workers=0):
            pass


def read_samples(root: Path) -> None:
    dataset = avdata.open(root, "train")
    for number in range(min(4, len(dataset))):
        repr(dataset[number])


READERS: dict[str, Callable[[Path], object]] = {
    "verify": avdata.verify,
    "loader": read_batches,
    "samples": read_samples,
    "inspect": load_sample,
    "export": lambda root: avdata.export(root, root.with_name("exported")),
    "report": lambda root: avdata.report(root, root.with_name("report.html")),
}


def copy_set(source: Path, root: Path) -> Path:
    """Copy a dataset over an earlier copy."""
    shutil.rmtree(root, ignore_errors=True)
    return Path(shutil.copytree(source, root))
