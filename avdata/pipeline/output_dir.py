"""What an output folder holds, and whether a preparation may use it: nothing there is harmed unasked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from avdata.config.overrides import diff_settings
from avdata.errors import AvdataError
from avdata.pipeline.journal import STATE_DIR, Journal
from avdata.shards.format import METADATA_FILES
from avdata.shards.reader import read_info


def check_output_dir(root: Path, identity: Mapping[str, Any], *, overwrite: bool) -> None:
    """See that a folder is new, holds an unfinished run of the same preparation, or the finished set.

    Args:
        root: the folder, which need not exist.
        identity: `name` and `version` of the recipe, and the dumped `config`.
        overwrite: a prepared set with other settings may be replaced; anything else may not.

    Raises:
        AvdataError: it holds something else.
    """
    if not root.exists():
        return
    if not root.is_dir():
        msg = f"the output {root} is a file"
        raise AvdataError(msg, hint="give a folder with --out")
    there = _describe_contents(root)
    if there is None or overwrite:
        return
    replace = "choose another --out, or --overwrite to replace it"
    if there["name"] != identity["name"]:
        msg = f"{root} holds {there['name']}, not {identity['name']}"
        raise AvdataError(msg, hint=replace)
    if there["version"] != identity["version"]:
        msg = f"{root} was prepared by version {there['version']} of the recipe, not {identity['version']}"
        raise AvdataError(msg, hint=replace)
    other = diff_settings(there["config"], identity["config"])
    if other:
        shown = ", ".join(f"{name}: {old} there, {new} now" for name, old, new in other[:3])
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        msg = f"{root} was prepared with other settings ({shown}{more})"
        given = " ".join(f"--set {name}={json.dumps(old)}" for name, old, _ in other)
        as_there = f", give {given}" if len(other) <= 3 else ""
        raise AvdataError(msg, hint=f"choose another --out{as_there}, or --overwrite to replace it")


def _describe_contents(root: Path) -> dict[str, Any] | None:
    if (root / "dataset.json").is_file():
        info = read_info(root)
        return {**info["recipe"], "config": info["config"]}
    plan = Journal(root).read_plan()
    if plan is None and any(entry.name != STATE_DIR for entry in root.iterdir()):
        msg = f"the output folder {root} holds files that are not a prepared set"
        raise AvdataError(msg, hint="choose an empty or new folder for --out")
    return plan


def check_finished(
    root: Path, plan_hash: str, size_of: Callable[[str], int | None], name: str
) -> dict[str, Any]:
    """The dataset.json of a set that is finished already, made from the same plan.

    Args:
        root: the folder that holds dataset.json.
        plan_hash: of the plan now.
        size_of: bytes of a shard by its path, None when it is not there.
        name: the set as the user called it.

    Raises:
        AvdataError: the source files have changed since, or `check_complete` finds a shard amiss.
    """
    info = read_info(root)
    if info["plan"] != plan_hash:
        msg = f"{name} was prepared from other source files than are there now"
        raise AvdataError(msg, hint="choose another --out, or --overwrite to replace it")
    return check_complete(info, size_of, name)


def check_complete(info: dict[str, Any], size_of: Callable[[str], int | None], name: str) -> dict[str, Any]:
    """The dataset.json of a finished set all of whose shards are there; the arguments are `check_finished`'s.

    Raises:
        AvdataError: a shard is gone or has another size.
    """
    for split in info["splits"].values():
        for shard in split["shards"]:
            if size_of(shard["path"]) != shard["bytes"]:
                msg = f"{name} is finished, but {shard['path']} is missing or not whole"
                raise AvdataError(msg, hint="--overwrite makes the set again")
    return info


def remove_stale_shards(root: Path, name: str, keep: Collection[str]) -> None:
    """Remove the shards of a dataset that another plan left: one of fewer or other files, broken off.

    Args:
        root: the set's folder.
        name: of the recipe.
        keep: paths of the shards that stay.
    """
    for path in root.glob(f"*/{name}-*-of-*.tar"):
        if path.relative_to(root).as_posix() not in keep:
            path.unlink()


def remove_dataset_files(root: Path) -> None:
    """Remove a set's own files, dataset.json first so that a half-removed set is not taken for whole."""
    for name in (*reversed(METADATA_FILES), "report.html"):
        (root / name).unlink(missing_ok=True)
    for folder in ("train", "val", "test", f"{STATE_DIR}/done", f"{STATE_DIR}/parts"):
        if (root / folder).is_dir():
            shutil.rmtree(root / folder)
