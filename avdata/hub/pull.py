"""Download a published dataset: one commit, every checksum verified, dataset.json written last."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.errors import AvdataError
from avdata.hub.client import (
    REPO_TYPE,
    active_token,
    call_hub,
    check_reachable,
    check_repo,
    hub_errors,
    is_same,
    list_repo_files,
    shard_metadata,
)
from avdata.shards.dataset_info import check_shard_paths, parse_info
from avdata.shards.format import METADATA_FILES
from avdata.shards.reader import read_info
from avdata.storage.atomic import atomic_write, check_space, remove_stale_parts
from avdata.storage.locks import lock_folder
from avdata.storage.paths import check_no_symlinks, local_path

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

STAGING_DIR = ".avdata-pull"

_OWNED = "files.json"
"""File in the staging folder with the files that an interrupted call may replace or remove."""


def pull(repo: str, output: str | Path, *, revision: str = "main", token: str | None = None) -> Path:
    """Download a dataset from the Hugging Face Hub.

    After an interruption, the same call resumes.

        avdata.verify(avdata.pull("me/cremad-av", "out/cremad"))

    Args:
        repo: Repository as `user/name`, or as the URL for `avdata.open`.
        output: Folder to write: new, empty, or with an earlier version of the same dataset. Only files that
            the earlier dataset.json names are replaced or removed.
        revision: Branch, tag or commit.
        token: Hub token (default: from `hf auth login` or `HF_TOKEN`).

    Returns:
        The folder, with the same bytes as the published dataset.

    Raises:
        UsageError: Invalid repository name.
        AvdataError: The repository is not a prepared dataset or not reachable, a checksum differs, or
            another run downloads to the folder.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415

    repo, root = check_repo(repo), local_path(output)
    for name in METADATA_FILES:
        remove_stale_parts(root, name)
    _owned_files(root)  # checked before anything is requested
    api = HfApi(token=token, library_name="avdata")
    secret = active_token(token)
    with hub_errors(repo, secret):
        check_reachable(api, repo)
        # One commit for all files, because a new version may be published meanwhile.
        commit = str(call_hub(lambda: api.repo_info(repo, repo_type=REPO_TYPE, revision=revision)).sha)
        remote = list_repo_files(api, repo, commit)
        if "dataset.json" not in remote:
            msg = f"Not a prepared dataset: {repo} at revision {revision} has no dataset.json."
            raise AvdataError(msg, hint="Check the name; `avdata publish` creates such repositories")
        common: dict[str, Any] = {"repo_id": repo, "repo_type": REPO_TYPE, "revision": commit, "token": token}
        conflict = AvdataError(
            f"Another run is downloading to {root}.", hint="Wait for it to end, or choose another --output"
        )
        with lock_folder(root / STAGING_DIR, conflict):
            _fetch(root, repo, remote, common)
    return root


def _fetch(root: Path, repo: str, remote: dict[str, RepoFile], common: dict[str, Any]) -> None:
    """Download the files that differ, remove those of an earlier version, and write dataset.json."""
    from huggingface_hub import hf_hub_download, snapshot_download  # noqa: PLC0415

    staging, owned = root / STAGING_DIR, _owned_files(root)
    description = call_hub(lambda: hf_hub_download(filename="dataset.json", local_dir=staging, **common))
    text = Path(description).read_bytes()
    if not is_same(remote["dataset.json"], text):
        msg = f"Checksum mismatch of downloaded dataset.json from {repo}."
        raise AvdataError(msg, hint="Run the same command again")
    info = parse_info(text, f"dataset.json of {repo}")
    names = _files_to_fetch(info, repo, remote)
    _check_same(root, info, repo)
    _check_targets(root, names, owned)
    missing = [name for name in names if not _is_present(root, name, remote)]
    if missing:
        check_space(root, sum(remote[name].size for name in missing))
        # Without dataset.json the folder counts as incomplete until all files are in place.
        atomic_write(staging / _OWNED, json.dumps(sorted(owned | set(names))).encode())
        (root / "dataset.json").unlink(missing_ok=True)
        call_hub(lambda: snapshot_download(local_dir=staging, allow_patterns=missing, **common))
    for name in missing:
        _move_into_place(staging / name, root / name, remote[name], repo)
    for obsolete in owned - {*names, *METADATA_FILES}:
        (root / obsolete).unlink(missing_ok=True)
    atomic_write(root / "dataset.json", text)
    shutil.rmtree(staging)


def _owned_files(root: Path) -> set[str]:
    """Return the files of an earlier version of a dataset in a folder, finished or interrupted.

    Only these may be replaced or removed.

    Raises:
        AvdataError: the folder contains other files and no dataset, or a symbolic link.
    """
    if root.exists() and not root.is_dir():
        msg = f"Output {root} is a file."
        raise AvdataError(msg, hint="Choose a folder for --output")
    staged = (path.relative_to(root).as_posix() for path in (root / STAGING_DIR).rglob("*"))
    check_no_symlinks(root, ("dataset.json", STAGING_DIR, *staged))
    owned: set[str] = set()
    with suppress(FileNotFoundError, ValueError, TypeError):
        owned |= _checked_names(json.loads((root / STAGING_DIR / _OWNED).read_bytes()))
    if (root / "dataset.json").exists():
        owned |= {*shard_metadata(read_info(root)), *METADATA_FILES}
    other = (
        sorted(entry.name for entry in root.iterdir() if entry.name != STAGING_DIR) if root.exists() else []
    )
    if other and not owned:
        msg = f"Output {root} contains {other[0]}, which is not part of a prepared dataset."
        raise AvdataError(msg, hint="Choose an empty or new folder for --output")
    check_no_symlinks(root, owned)
    return owned


def _checked_names(names: list[str]) -> set[str]:
    check_shard_paths((name for name in names if name not in METADATA_FILES), _OWNED)
    return set(names)


def _check_same(root: Path, info: dict[str, Any], repo: str) -> None:
    """Refuse a folder with another dataset, which would be overwritten."""
    if not (root / "dataset.json").exists():
        return
    name = read_info(root)["name"]
    if name != info["name"]:
        shutil.rmtree(root / STAGING_DIR, ignore_errors=True)
        msg = f"Output {root} contains dataset {name}, but {repo} is {info['name']}."
        raise AvdataError(msg, hint="Choose an empty or new folder for --output")


def _check_targets(root: Path, names: list[str], owned: set[str]) -> None:
    """Refuse to replace a file that belongs to no dataset, and to write through a symbolic link."""
    check_no_symlinks(root, names)
    if foreign := [name for name in names if name not in owned and (root / name).exists()]:
        msg = f"Output {root} contains {foreign[0]}, which no dataset.json there names."
        raise AvdataError(msg, hint="Move the file away, or choose an empty or new folder for --output")


def _files_to_fetch(info: dict[str, Any], repo: str, remote: dict[str, RepoFile]) -> list[str]:
    """Return the files of the dataset except dataset.json."""
    names = [name for name in METADATA_FILES[:-1] if name in remote] + list(shard_metadata(info))
    missing = [name for name in names if name not in remote]
    if missing:
        msg = f"Incomplete repository {repo}: {missing[0]} is missing."
        raise AvdataError(msg, hint="Ask its owner to publish it again")
    return names


def _is_present(root: Path, name: str, remote: dict[str, RepoFile]) -> bool:
    return (root / name).is_file() and is_same(remote[name], root / name)


def _move_into_place(partial: Path, final: Path, remote: RepoFile, repo: str) -> None:
    if not is_same(remote, partial):
        partial.unlink(missing_ok=True)
        msg = f"Checksum mismatch of downloaded {final.name} from {repo}."
        raise AvdataError(msg, hint="Run the same command again; complete files are kept")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)
