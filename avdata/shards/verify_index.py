"""Checks of the index and the quarantine of a prepared dataset, batch by batch.

A million rows as Python objects take 2 GB, and their columns 0.3 GB. The memory of the checks grows only with
the quarantine and with the problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avdata.shards.index_texts import count_groups, repeated_keys
from avdata.shards.reader import index_batches, read_index, read_quarantine
from avdata.storage.hashing import hash_file

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Problem:
    """A difference between the dataset's files and its metadata.

    Attributes:
        where: path of the file, split, or key of the sample.
        what: the difference.
    """

    where: str
    what: str


class IndexCheck:
    """Checks of the index and the quarantine, without reading a shard.

    Attributes:
        rows: number of rows of the index.
        is_sorted: whether the rows are sorted by shard and offset.
        problems: the differences.

    Args:
        root: folder of the dataset.
        info: content of dataset.json.

    Raises:
        AvdataError: a table cannot be read.
    """

    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        self.rows = 0
        self.is_sorted = True
        wrong_labels = list(self._read(root, info))
        self.problems = [*_check_counts(info, self._labels), *wrong_labels]
        for key, count in repeated_keys(root).items():
            self.problems.append(Problem(key, f"occurs {count} times in the index"))
        if not self.is_sorted:
            self.problems.append(Problem("index.parquet", "is not sorted by shard and offset"))
        # No shard stores the times, groups and flags of the index: only this checksum covers them.
        entry = info.get("index")
        if entry and hash_file(root / "index.parquet") != entry["sha256"]:
            self.problems.append(Problem("index.parquet", "checksum mismatch with dataset.json"))
        self.problems += _check_quarantine(root, info)
        self.problems += _check_leaks(info, count_groups(root)[1])

    def _read(self, root: Path, info: Mapping[str, Any]) -> Iterator[Problem]:
        """Count the rows by split and label, check their order, and yield the problems of labels."""
        import pyarrow as pa  # noqa: PLC0415

        known = dict(enumerate(info["labels"]))
        self._labels: Counter[tuple[str, str]] = Counter()
        last: pa.Table | None = None
        for batch in index_batches(root):
            rows = pa.Table.from_batches([batch])
            self.rows += rows.num_rows
            self._labels.update(_counts(rows, "split", "label_name"))
            yield from _check_labels(known, rows)
            places = rows.select(["shard", "offset"])
            self.is_sorted &= _is_sorted(pa.concat_tables([last, places]) if last else places)
            last = places.slice(max(rows.num_rows - 1, 0)).take([0]) if rows.num_rows else last


def rows_by_shard(root: Path, columns: list[str], *, is_sorted: bool) -> Iterator[tuple[str, pa.Table]]:
    """Yield the shards of the index with their rows, in the order of the index.

    Only an index that is not sorted is read completely.
    """
    import pyarrow as pa  # noqa: PLC0415

    if not is_sorted:
        yield from _group(read_index(root, [*columns, "shard"]))
        return
    pending: list[tuple[str, pa.Table]] = []
    for batch in index_batches(root, [*columns, "shard"]):
        for shard, rows in _group(pa.Table.from_batches([batch])):
            if pending and pending[0][0] != shard:
                yield pending[0][0], pa.concat_tables([rows for _, rows in pending])
                pending = []
            pending.append((shard, rows))
    if pending:
        yield pending[0][0], pa.concat_tables([rows for _, rows in pending])


def _group(index: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield the shards with their rows, without the column of the shards."""
    if not index.num_rows:
        return
    shards = index["shard"].combine_chunks().dictionary_encode()
    codes = shards.indices.to_numpy()
    index = index.drop_columns(["shard"])
    if (np.diff(codes) < 0).any():
        order = np.argsort(codes, kind="stable")
        index, codes = index.take(order), codes[order]
    starts = np.searchsorted(codes, np.arange(len(shards.dictionary) + 1))
    for shard, start, end in zip(shards.dictionary.to_pylist(), starts, starts[1:], strict=False):
        yield shard, index.slice(start, end - start)


def _counts(table: pa.Table, *columns: str) -> dict[Any, int]:
    """Return the number of rows of each value of one column, or of each tuple of values of several."""
    counted = table.group_by(list(columns)).aggregate([([], "count_all")])
    values = [counted[column].to_pylist() for column in columns]
    keys = values[0] if len(columns) == 1 else list(zip(*values, strict=True))
    return dict(zip(keys, counted["count_all"].to_pylist(), strict=True))


def _check_counts(info: Mapping[str, Any], labeled: Counter[tuple[str, str]]) -> Iterator[Problem]:
    samples: Counter[str] = Counter()
    for (split, _), count in labeled.items():
        samples[split] += count
    for name, split in info["splits"].items():
        count = samples[name]
        if count != split["samples"]:
            yield Problem(name, f"the index has {count} samples, dataset.json has {split['samples']}")
        for label, expected in split["labels"].items():
            count = labeled[name, label]
            if count != expected:
                yield Problem(name, f"the index has {count} samples of {label}, dataset.json has {expected}")
    for name in samples.keys() - info["splits"].keys():
        what = f"has {samples[name]} samples of split {name}, missing in dataset.json"
        yield Problem("index.parquet", what)


def _check_labels(known: Mapping[int, str], index: pa.Table) -> Iterator[Problem]:
    import pyarrow.compute as pc  # noqa: PLC0415

    for label, name in _counts(index, "label", "label_name"):
        if label in known and known[label] == name:
            continue
        rows = index.filter(pc.and_(pc.equal(index["label"], label), pc.equal(index["label_name"], name)))
        for key in rows["key"].to_pylist():
            yield Problem(key, f"label {label} is not {name} in dataset.json")


def _is_sorted(index: pa.Table) -> bool:
    """Return whether rows are sorted by shard and offset."""
    import pyarrow.compute as pc  # noqa: PLC0415

    before, after = index.slice(0, max(index.num_rows - 1, 0)), index.slice(1)
    is_less = pc.or_(
        pc.less(after["shard"], before["shard"]),
        pc.and_(pc.equal(after["shard"], before["shard"]), pc.less(after["offset"], before["offset"])),
    )
    return not pc.any(is_less).as_py()


def _check_quarantine(root: Path, info: Mapping[str, Any]) -> Iterator[Problem]:
    import pyarrow.compute as pc  # noqa: PLC0415

    quarantined = read_quarantine(root)
    counts = dict(sorted(_counts(quarantined, "reason").items()))
    if counts != info["quarantine"]:
        yield Problem("quarantine.parquet", f"has counts {counts}, dataset.json has {info['quarantine']}")
    is_sample = np.zeros(quarantined.num_rows, np.bool_)
    for batch in index_batches(root, ["key"]) if quarantined.num_rows else ():
        is_sample |= pc.is_in(quarantined["key"], value_set=batch["key"]).to_numpy()
    for key in quarantined.filter(is_sample)["key"].unique().to_pylist():
        yield Problem(key, "is both a sample and quarantined")


def _check_leaks(info: Mapping[str, Any], owners: Mapping[str, set[str]]) -> Iterator[Problem]:
    """Compare groups in several splits with the number recorded in dataset.json."""
    leaking = sorted(owners)
    if len(leaking) != info["leaks"]:
        examples = ", ".join(leaking[:5])
        yield Problem(
            "splits",
            f"{len(leaking)} groups are in several splits ({examples}), dataset.json has {info['leaks']}",
        )
    if info["config"]["select"]["group_leakage"] == "drop-train":
        remaining = next((group for group in leaking if "train" in owners[group]), None)
        if remaining is not None:
            yield Problem("splits", f"group {remaining} is in train and in another split, despite drop-train")
