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
from avdata.shards.format import FORMAT_VERSION, METADATA_FILES
from avdata.storage.atomic import atomic_write
from avdata.storage.paths import is_safe_relative_path

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile


def pull(repo: str, output: str | Path, *, revision: str = "main", token: str | None = None) -> Path:
    """Download a dataset from the Hugging Face Hub.

    After an interruption, the same call resumes.

        avdata.verify(avdata.pull("me/cremad-av", "out/cremad"))

    Args:
        repo: Repository as `user/name`, or as the URL for `avdata.open`.
        output: Folder to write: new, empty, or with an earlier version of the same dataset.
        revision: Branch, tag or commit.
        token: Hub token (default: from `hf auth login` or `HF_TOKEN`).

    Returns:
        The folder, with the same bytes as the published dataset.

    Raises:
        UsageError: Invalid repository name.
        AvdataError: The repository is not a prepared dataset or not reachable, or a checksum differs.
    """
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download  # noqa: PLC0415

    repo, root = check_repo(repo), Path(output)
    _check_folder(root)
    api = HfApi(token=token, library_name="avdata")
    secret = active_token(token)
    with hub_errors(repo, secret):
        check_reachable(api, repo)
        # One commit for all files, because a new version may be published meanwhile.
        commit = str(call_hub(lambda: api.repo_info(repo, repo_type=REPO_TYPE, revision=revision)).sha)
        remote = list_repo_files(api, repo, commit)
        if "dataset.json" not in remote:
            msg = f"Not a prepared dataset: {repo} at revision {revision} has no dataset.json."
            raise AvdataError(msg, hint="check the name; `avdata publish` creates such repositories")
        common: dict[str, Any] = {"repo_id": repo, "repo_type": REPO_TYPE, "revision": commit, "token": token}
        staging = root / ".avdata-pull"
        description = call_hub(lambda: hf_hub_download(filename="dataset.json", local_dir=staging, **common))
        text = Path(description).read_bytes()
        if not is_same(remote["dataset.json"], text):
            msg = f"Checksum mismatch of downloaded dataset.json from {repo}."
            raise AvdataError(msg, hint="run the same command again")
        names = _files_to_fetch(text, repo, remote)
        _check_same(root, json.loads(text), repo)
        missing = [name for name in names if not _is_present(root, name, remote)]
        if missing:
            # Without dataset.json the folder counts as incomplete until all files are in place.
            (root / "dataset.json").unlink(missing_ok=True)
            call_hub(lambda: snapshot_download(local_dir=staging, allow_patterns=missing, **common))
        for name in missing:
            _move_into_place(staging / name, root / name, remote[name], repo)
    for obsolete in set(root.glob("*/*.tar")) - {root / name for name in names}:
        obsolete.unlink()
    atomic_write(root / "dataset.json", text)
    shutil.rmtree(staging)
    return root


def _check_folder(root: Path) -> None:
    if root.exists() and not root.is_dir():
        msg = f"Output {root} is a file."
        raise AvdataError(msg, hint="choose a folder for --output")
    ours = {*METADATA_FILES, "train", "val", "test", ".avdata-pull"}
    if root.is_dir() and (other := sorted({entry.name for entry in root.iterdir()} - ours)):
        msg = f"Output {root} contains {other[0]}, which is not part of a prepared dataset."
        raise AvdataError(msg, hint="choose an empty or new folder for --output")


def _check_same(root: Path, info: dict[str, Any], repo: str) -> None:
    """Refuse a folder with another dataset, which would be overwritten."""
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        name = json.loads((root / "dataset.json").read_bytes())["name"]
        if name != info["name"]:
            shutil.rmtree(root / ".avdata-pull", ignore_errors=True)
            msg = f"Output {root} contains dataset {name}, but {repo} is {info['name']}."
            raise AvdataError(msg, hint="choose an empty or new folder for --output")


def _files_to_fetch(text: bytes, repo: str, remote: dict[str, RepoFile]) -> list[str]:
    """Return the files of the dataset except dataset.json."""
    try:
        info = json.loads(text)
        version, shards = info["format"], list(shard_metadata(info))
    except (ValueError, KeyError, TypeError) as error:
        msg = f"Invalid dataset.json in {repo}: {error!r}"
        raise AvdataError(msg) from error
    if version != FORMAT_VERSION:
        msg = f"Unsupported format version {version!r} of {repo}: this avdata reads version {FORMAT_VERSION}."
        raise AvdataError(msg, hint="install the avdata version that wrote it")
    names = [name for name in METADATA_FILES[:-1] if name in remote] + shards
    missing = [name for name in names if not is_safe_relative_path(name) or name not in remote]
    if missing:
        msg = f"Incomplete repository {repo}: {missing[0]} is missing."
        raise AvdataError(msg, hint="ask its owner to publish it again")
    return names


def _is_present(root: Path, name: str, remote: dict[str, RepoFile]) -> bool:
    return (root / name).is_file() and is_same(remote[name], root / name)


def _move_into_place(partial: Path, final: Path, remote: RepoFile, repo: str) -> None:
    if not is_same(remote, partial):
        partial.unlink(missing_ok=True)
        msg = f"Checksum mismatch of downloaded {final.name} from {repo}."
        raise AvdataError(msg, hint="run the same command again; complete files are kept")
    final.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(final)
