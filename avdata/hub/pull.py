"""Fetching a published set whole: one commit of it, each file proven, dataset.json last."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError
from avdata.hub.client import (
    REPO_TYPE,
    RemoteFile,
    active_token,
    call_hub,
    check_reachable,
    check_repo,
    hub_errors,
    is_same,
    list_repo_files,
    shard_metadata,
)
from avdata.shards.format import FORMAT_VERSION, METADATA_FILES
from avdata.storage.atomic import atomic_write
from avdata.storage.paths import is_safe_relative_path


def pull(repo: str, output: str | Path, *, revision: str = "main", token: str | None = None) -> Path:
    """Fetch a set from the Hub; interrupted, the same call goes on.

        avdata.verify(avdata.pull("me/cremad-av", "out/cremad"))

    Args:
        repo: `user/name`, or the URL that `avdata.open` takes.
        output: folder to write: new, empty, or that of the same set.
        revision: branch, tag or commit.
        token: instead of the one that `hf auth login` or `HF_TOKEN` gives.

    Returns:
        The folder, which holds the set byte for byte as it was published.

    Raises:
        UsageError: `repo` is not a name.
        AvdataError: it is not a set, cannot be reached, or what arrives is not what the Hub lists.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download  # noqa: PLC0415

    repo, root = check_repo(repo), Path(output)
    _check_folder(root)
    api = HfApi(token=token, library_name="avdata")
    secret = active_token(token)
    with hub_errors(repo, secret):
        check_reachable(api, repo)
        # One commit for all files: somebody may publish a new set meanwhile.
        commit = str(call_hub(lambda: api.repo_info(repo, repo_type=REPO_TYPE, revision=revision)).sha)
        there = list_repo_files(api, repo, commit)
        if "dataset.json" not in there:
            msg = f"{repo} at {revision} is not a prepared set: it has no dataset.json"
            raise AvdataError(msg, hint="check the name; `avdata publish` makes such repositories")
        common: dict[str, Any] = {"repo_id": repo, "repo_type": REPO_TYPE, "revision": commit, "token": token}
        staging = root / ".avdata-pull"
        description = call_hub(lambda: hf_hub_download(filename="dataset.json", local_dir=staging, **common))
        text = Path(description).read_bytes()
        if not is_same(there["dataset.json"], text):
            msg = f"dataset.json of {repo} did not arrive as the Hub lists it"
            raise AvdataError(msg, hint="give the same command again")
        wanted = _files_to_fetch(text, repo, there)
        _check_same(root, json.loads(text), repo)
        left = [name for name in wanted if not _is_present(root, name, there)]
        if left:
            # From here on the folder is not a finished set, until dataset.json stands in it again.
            (root / "dataset.json").unlink(missing_ok=True)
            call_hub(lambda: snapshot_download(local_dir=staging, allow_patterns=left, **common))
        for name in left:
            _move_into_place(staging / name, root / name, there[name], repo)
    for stray in set(root.glob("*/*.tar")) - {root / name for name in wanted}:
        stray.unlink()
    atomic_write(root / "dataset.json", text)
    shutil.rmtree(staging)
    return root


def _check_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        msg = f"the output {root} is a file"
        raise AvdataError(msg, hint="give a folder with --into")
    ours = {*METADATA_FILES, "train", "val", "test", ".avdata-pull"}
    if root.is_dir() and (other := sorted({entry.name for entry in root.iterdir()} - ours)):
        msg = f"{root} holds {other[0]}, which is no part of a prepared set"
        raise AvdataError(msg, hint="choose an empty or new folder for --into")


def _check_same(root: Path, info: dict[str, Any], repo: str) -> None:
    """Refuse a folder that holds the set of another dataset, which would be lost."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        held = json.loads((root / "dataset.json").read_bytes())["name"]
        if held != info["name"]:
            shutil.rmtree(root / ".avdata-pull", ignore_errors=True)
            msg = f"{root} holds another set, {held}; {repo} is {info['name']}"
            raise AvdataError(msg, hint="choose an empty or new folder for --into")


def _files_to_fetch(text: bytes, repo: str, there: dict[str, RemoteFile]) -> list[str]:
    """The files that make the set, but for dataset.json."""
    try:
        info = json.loads(text)
        known, shards = info["format"], list(shard_metadata(info))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"dataset.json of {repo} is not that of a prepared set ({error!r})"
        raise AvdataError(msg) from error
    if known != FORMAT_VERSION:
        msg = f"{repo} is of format {known!r}, and this version reads format {FORMAT_VERSION}"
        raise AvdataError(msg, hint="install the avdata that wrote it")
    wanted = [name for name in METADATA_FILES[:-1] if name in there] + shards
    bad = [name for name in wanted if not is_safe_relative_path(name) or name not in there]
    if bad:
        msg = f"{repo} is not whole: {bad[0]} is in its dataset.json, but not in the repository"
        raise AvdataError(msg, hint="ask its owner to publish it again")
    return wanted


def _is_present(root: Path, name: str, there: dict[str, RemoteFile]) -> bool:
    return (root / name).is_file() and is_same(there[name], root / name)


def _move_into_place(part: Path, final: Path, there: RemoteFile, repo: str) -> None:
    if not is_same(there, part):
        part.unlink(missing_ok=True)
        msg = f"{final.name} of {repo} did not arrive as the Hub lists it"
        raise AvdataError(msg, hint="give the same command again; what arrived whole is kept")
    final.parent.mkdir(parents=True, exist_ok=True)
    part.replace(final)
