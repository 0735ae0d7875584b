"""Merging of parts: one dataset.json, index and card above the folders of the parts. No shard is copied.

parts/dataset.json  index.parquet  …                       of all parts, written here
parts/part-001/dataset.json  index.parquet  train/….tar    each written by `prepare --part 1/N`
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.errors import AvdataError
from avdata.pipeline.finalize import write_descriptions
from avdata.pipeline.output_store import ObjectStoreOutput
from avdata.pipeline.prepare import PreparedSet
from avdata.progress import Progress
from avdata.shards.dataset_info import is_part_name
from avdata.shards.format import METADATA_FILES, index_schema, quarantine_schema, write_table
from avdata.shards.parts import merge_infos, missing_parts
from avdata.shards.reader import read_index, read_info, read_quarantine
from avdata.storage.hashing import hash_file
from avdata.storage.remote import is_url

if TYPE_CHECKING:
    import pyarrow as pa

PART_FILES = ("dataset.json", "index.parquet", "quarantine.parquet")


def merge(parts: str | Path, *, progress: Progress = lambda stage, done, total: None) -> PreparedSet:
    """Make one dataset of the parts in a folder, without copying their shards.

        for number in (1, 2):
            avdata.prepare("cremad", source="raw", output=f"parts/{number}",
                           config={"select": {"part": f"{number}/2"}})
        avdata.merge("parts")

    Args:
        parts: Folder or URL whose subfolders are the parts of `prepare` with `select.part`.
        progress: called with ("merge", done, total), in parts.

    Returns:
        The merged dataset, whose location is `parts`.

    Raises:
        AvdataError: the folder holds no parts, a part is missing, or they differ in recipe, settings or
            source.
    """
    if is_url(parts):
        return _merge_stored(str(parts), progress)
    root = Path(parts)
    names = [path.parent.name for path in root.glob("*/dataset.json")]
    return PreparedSet(root, _merge_folder(root, root, _checked_names(parts, names), progress), 1.0)


def _merge_stored(url: str, progress: Progress) -> PreparedSet:
    """Merge parts in object storage: only their metadata files are downloaded."""
    store = ObjectStoreOutput(url)
    found = [name.split("/") for name in store.file_sizes() if name.endswith("/dataset.json")]
    names = _checked_names(url, [path[0] for path in found if len(path) == 2])
    try:
        for name in names:
            for file in PART_FILES:
                store.fetch(f"{name}/{file}", store.root / name / file)
        info = _merge_folder(store.root, url, names, progress)
        for file in METADATA_FILES:
            store.upload(store.root / file, file)
    finally:
        shutil.rmtree(store.root, ignore_errors=True)
    return PreparedSet(store.url, info, 1.0)


def _checked_names(location: str | Path, names: list[str]) -> list[str]:
    if not names:
        msg = f"{location} holds no parts: no subfolder has a dataset.json."
        raise AvdataError(msg, hint="Prepare them with: avdata prepare RECIPE --part I/N --output DIR/part-I")
    if invalid := [name for name in names if not is_part_name(name)]:
        msg = f"Invalid name of a part: {invalid[0]!a} in {location}."
        raise AvdataError(msg, hint="Use A-Z a-z 0-9 . _ - = and none of train, val and test.")
    # In the order of the shards' paths, by which an index is sorted.
    return sorted(names, key=lambda name: f"{name}/")


def _merge_folder(root: Path, location: str | Path, names: list[str], progress: Progress) -> dict[str, Any]:
    infos = {name: read_info(root / name) for name in names}
    info = merge_infos(infos)
    if missing := missing_parts(infos.values()):
        listed = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        msg = f"{len(missing)} parts are missing in {location}: {listed}."
        raise AvdataError(msg, hint="Prepare them with: avdata prepare RECIPE --part I/N")
    (root / "dataset.json").unlink(missing_ok=True)
    write_table(root / "index.parquet", _indexes(root, infos, progress), index_schema())
    write_table(root / "quarantine.parquet", [_quarantine(root, names)], quarantine_schema())
    index = root / "index.parquet"
    info["index"] = {"bytes": index.stat().st_size, "sha256": hash_file(index)}
    write_descriptions(root, info)
    return info


def _indexes(root: Path, infos: Mapping[str, Mapping[str, Any]], progress: Progress) -> Iterator[pa.Table]:
    """Yield the index of each part, with the paths of the shards below `root`."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    for done, (name, info) in enumerate(infos.items()):
        progress("merge", done, len(infos))
        index = read_index(root / name, info=info)
        shards = pc.binary_join_element_wise(pa.scalar(f"{name}/"), index["shard"], "")
        yield index.set_column(index.schema.get_field_index("shard"), "shard", shards)
    progress("merge", len(infos), len(infos))


def _quarantine(root: Path, names: list[str]) -> pa.Table:
    import pyarrow as pa  # noqa: PLC0415

    return pa.concat_tables([read_quarantine(root / name) for name in names]).sort_by("key")
