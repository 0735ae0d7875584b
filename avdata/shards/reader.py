"""Reading of a local prepared dataset: dataset.json and the Parquet tables.

Nothing in them is trusted: what a reader returns has the types of the format, or an `AvdataError` is raised.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.errors import AvdataError, shorten
from avdata.shards.dataset_info import check_shard_paths, parse_info
from avdata.shards.format import index_schema, quarantine_schema
from avdata.storage.paths import check_path_encoding, check_regular_file

if TYPE_CHECKING:
    import pyarrow as pa


@contextmanager
def table_errors(path: Path) -> Iterator[None]:
    """Raise AvdataError in place of the errors of reading a Parquet table.

    Args:
        path: the table, for the message.

    Raises:
        AvdataError: the table is missing or cannot be read.
    """
    import pyarrow as pa  # noqa: PLC0415

    try:
        check_regular_file(path)
        yield
    except (OSError, pa.ArrowException, ValueError, OverflowError, MemoryError) as error:
        # For a missing file, pyarrow's message is only the path.
        lines = str(error).splitlines() or [type(error).__name__]
        reason = "no such file" if isinstance(error, FileNotFoundError) else shorten(lines[0])
        msg = f"{path} cannot be read ({reason})"
        raise AvdataError(msg, hint="Prepare the dataset again with --overwrite.") from error


_BATCH_ROWS = 65_536

NULLABLE = frozenset({"av_offset", "av_peak", "duration_audio", "duration_video"})
"""Columns of the index without a value where it was not measured."""


def read_index(
    root: str | Path, columns: list[str] | None = None, info: Mapping[str, Any] | None = None
) -> pa.Table:
    """Read the index of a prepared dataset.

    Args:
        root: folder of the dataset.
        columns: columns to read (default: all).
        info: content of dataset.json, to compare labels and positions of the samples with.

    Raises:
        AvdataError: the index is missing, cannot be read, or holds an invalid value or an unsafe path.
    """
    path = Path(root) / "index.parquet"
    index = _read_parquet(path, columns)
    check_index(index, path, columns)
    if info is not None:
        _position_check(path, info)(index)
    return index


def index_batches(
    root: str | Path, columns: list[str] | None = None, info: Mapping[str, Any] | None = None
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the index in batches, so that the complete columns are never in memory.

    Args:
        root: folder of the dataset.
        columns: columns to read (default: all).
        info: content of dataset.json, to compare labels and positions of the samples with.

    Raises:
        AvdataError: the index is missing, cannot be read, or holds an invalid value or an unsafe path.
    """
    import pyarrow.parquet as pq  # noqa: PLC0415

    path = Path(root) / "index.parquet"
    check = None if info is None else _position_check(path, info)
    with table_errors(path):
        file = pq.ParquetFile(path)
        schema = file.schema_arrow
        batches = file.iter_batches(_BATCH_ROWS, columns=columns, use_threads=False)
        names = schema.names
        present = names if columns is None else [name for name in columns if name in names]
        head = schema.empty_table().select(present)
    expected = index_schema()
    fields = expected if columns is None else [expected.field(name) for name in columns]
    _check_columns(head, path, fields)
    while True:
        with table_errors(path):
            batch = next(batches, None)
        if batch is None:
            return
        check_index(batch, path, columns)
        if check is not None:
            check(batch)
        yield batch


def check_index(index: pa.Table | pa.RecordBatch, path: Path, columns: list[str] | None = None) -> None:
    """Check types and values of the index, or of some of its columns.

    Args:
        index: rows of the index.
        path: the file, for messages.
        columns: expected columns (default: all).

    Raises:
        AvdataError: a column is missing or of another type, or a value is missing, not finite or negative.
    """
    import pyarrow.compute as pc  # noqa: PLC0415

    schema = index_schema()
    _check_columns(index, path, schema if columns is None else [schema.field(name) for name in columns])
    for name in index.schema.names:
        column = index.column(name)
        values = pc.list_flatten(column) if name == "flags" else column
        if (name not in NULLABLE and column.null_count) or (values.null_count and name == "flags"):
            raise _invalid_value(path, name, "a missing value")
        if schema.field(name).type == "double" and pc.all(pc.is_finite(column)).as_py() is False:
            raise _invalid_value(path, name, "a value that is not finite")
        if name in ("offset", "nbytes") and len(column) and pc.min(column).as_py() < 0:
            raise _invalid_value(path, name, "a negative value")
    if "shard" in index.schema.names:
        check_shard_paths(index.column("shard").unique().to_pylist(), path)


def _check_columns(table: pa.Table | pa.RecordBatch, path: Path, fields: Any) -> None:
    expected, present = {field.name: field.type for field in fields}, table.schema
    with table_errors(path):
        names = present.names  # of a damaged file, perhaps not UTF-8
    wrong = [name for name in expected if name not in names or present.field(name).type != expected[name]]
    if wrong := [*wrong, *(name for name in names if name not in expected)]:
        msg = f"Schema of {path} does not match the format: {shorten(', '.join(wrong))}."
        raise AvdataError(msg, hint=_PREPARE_AGAIN)
    with table_errors(path):
        table.validate(full=True)


def _position_check(path: Path, info: Mapping[str, Any]) -> Callable[[pa.Table | pa.RecordBatch], None]:
    """Return a check that labels are those of dataset.json, and that samples lie inside its shards."""
    sizes = {shard["path"]: shard["bytes"] for split in info["splits"].values() for shard in split["shards"]}

    def check(index: pa.Table | pa.RecordBatch) -> None:
        names = set(index.schema.names)
        if "label" in names and len(index):
            labels = index["label"].to_numpy()
            if labels.min() < 0 or labels.max() >= len(info["labels"]):
                what = f"a value that is no index of {len(info['labels'])} labels"
                raise _invalid_value(path, "label", what)
        if names >= {"shard", "offset", "nbytes"} and len(index):
            column = index["shard"]
            shards = getattr(column, "combine_chunks", lambda: column)().dictionary_encode()
            known = np.array([sizes.get(shard, 0) for shard in shards.dictionary.to_pylist()], np.int64)
            size = known[shards.indices.to_numpy()]
            if np.any(index["offset"].to_numpy() > size - index["nbytes"].to_numpy()):
                raise _invalid_value(path, "offset", "a position outside the shards of dataset.json")

    return check


def _invalid_value(path: Path, column: str, what: str) -> AvdataError:
    return AvdataError(f"Column {column} of {path} has {what}.", hint=_PREPARE_AGAIN)


_PREPARE_AGAIN = "Prepare the dataset again with --overwrite, or download it again."


def read_quarantine(root: str | Path) -> pa.Table:
    """Read the quarantined clips of a prepared dataset: key, reason, detail, kept.

    Raises:
        AvdataError: the table is missing, cannot be read, or holds an invalid value.
    """
    path = Path(root) / "quarantine.parquet"
    table = _read_parquet(path)
    check_quarantine(table, path)
    return table


def check_quarantine(table: pa.Table | pa.RecordBatch, path: Path) -> None:
    """Check types and values of the table of quarantined clips.

    Raises:
        AvdataError: a column is missing or of another type, or a value is missing.
    """
    _check_columns(table, path, quarantine_schema())
    for name in table.schema.names:
        if table.column(name).null_count:
            raise _invalid_value(path, name, "a missing value")


def _read_parquet(path: Path, columns: list[str] | None = None) -> pa.Table:
    import pyarrow.parquet as pq  # noqa: PLC0415

    with table_errors(path):
        return pq.read_table(path, columns=columns)


def read_info(root: str | Path) -> dict[str, Any]:
    """Read and parse the dataset.json of a prepared dataset.

    Raises:
        AvdataError: the file is missing, is not JSON, has another format version, or holds an unsafe name.
    """
    check_path_encoding(root)
    path = Path(root) / "dataset.json"
    try:
        check_regular_file(path)
        data = path.read_bytes()
    except FileNotFoundError as error:
        reason = "dataset.json is missing" if Path(root).is_dir() else "the folder does not exist"
        msg = f"{root} is not a prepared dataset: {reason}."
        raise AvdataError(msg, hint=_missing_info_hint(Path(root))) from error
    except NotADirectoryError as error:
        msg = f"{root} is not a prepared dataset: it is a file."
        raise AvdataError(msg, hint="Pass the folder that contains dataset.json.") from error
    except OSError as error:
        msg = f"{path} cannot be read ({error.strerror})"
        raise AvdataError(msg, hint="Check the permissions of the folder and its files.") from error
    return parse_info(data, path)


def _missing_info_hint(root: Path) -> str:
    if (root / ".avdata").is_dir():
        return "Run the same prepare command again to finish it."
    if re.match(r"\w+:/", str(root)):
        return "Pass the URL as text: a path has one slash less."
    if not root.exists():
        close = difflib.get_close_matches(root.name, _sibling_datasets(root), n=1)
        return (
            f"Did you mean {root.parent / close[0]}?" if close else "Prepare a dataset with: avdata prepare"
        )
    subfolder = next(root.glob("*/dataset.json"), None)
    return (
        "Prepare a dataset with: avdata prepare" if subfolder is None else f"Did you mean {subfolder.parent}?"
    )


def _sibling_datasets(root: Path) -> list[str]:
    """Return the names of the prepared datasets beside a folder that does not exist."""
    return sorted(path.parent.name for path in root.parent.glob("*/dataset.json"))
