"""Copy the shards of a remote dataset to a repository, without a complete copy on this machine.

The Hub copies the shards of another repository itself. Others are downloaded one at a time, uploaded and
removed; several of them are one commit, and a killed run repeats at most these.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from avdata.errors import AvdataError, error_message
from avdata.hub.client import REPO_TYPE, call_hub, redact_tokens, shard_metadata
from avdata.shards.dataset_files import RemoteDataset
from avdata.storage.atomic import check_space, write_errors
from avdata.storage.backends import find_backend
from avdata.storage.paths import cache_dir
from avdata.storage.remote_files import open_remote, read_chunks

COMMIT_SHARDS = 32

log = logging.getLogger(__name__)


def copy_shards(api: Any, files: RemoteDataset, repo: str, branch: str, paths: Sequence[str]) -> None:
    """Copy shards of a remote dataset to a branch.

    Args:
        api: client of the Hub.
        files: the dataset.
        repo: repository as `user/name`.
        branch: branch, which exists.
        paths: paths of the shards.

    Raises:
        AvdataError: a shard cannot be read, or changed since its verification.
    """
    if find_backend(files.url).schemes[0] == "hf" and _copy_on_hub(api, files, repo, branch, paths):
        return
    for start in range(0, len(paths), COMMIT_SHARDS):
        _upload(api, files, repo, branch, paths[start : start + COMMIT_SHARDS])


def _copy_on_hub(api: Any, files: RemoteDataset, repo: str, branch: str, paths: Sequence[str]) -> bool:
    """Let the Hub copy shards by reference; return False if it cannot, as between storage regions."""
    from huggingface_hub import CommitOperationCopy  # noqa: PLC0415

    place = open_remote(files.url)[0].resolve_path(files.url)
    if getattr(place, "repo_type", None) != REPO_TYPE:
        return False
    prefix = f"{place.path_in_repo}/" if place.path_in_repo else ""
    origin = {"src_revision": place.revision, "src_repo_id": place.repo_id, "src_repo_type": REPO_TYPE}
    try:
        # The client adds facts to the operations, so each attempt needs new ones.
        call_hub(
            lambda: api.create_commit(
                repo, [CommitOperationCopy(prefix + path, path, **origin) for path in paths],
                repo_type=REPO_TYPE, revision=branch, commit_message="Copy shards",
            )
        )  # fmt: skip
    except Exception as error:  # of the client: its version, the region, or no permission
        reason = redact_tokens(error_message(error))
        log.warning("The Hub cannot copy the shards of %s itself (%s); uploading them", files.name, reason)
        return False
    return True


def _upload(api: Any, files: RemoteDataset, repo: str, branch: str, paths: Sequence[str]) -> None:
    from huggingface_hub import CommitOperationAdd  # noqa: PLC0415

    scratch = cache_dir() / "publish"
    with write_errors(scratch):
        scratch.mkdir(parents=True, exist_ok=True)
    operations = []
    with TemporaryDirectory(dir=scratch) as folder:
        for path in paths:
            local = Path(folder, path.replace("/", "_"))
            _download(files, path, shard_metadata(files.info)[path], local)
            operation = CommitOperationAdd(path, local)
            send = partial(api.preupload_lfs_files, repo, [operation], repo_type=REPO_TYPE, revision=branch)
            call_hub(send)
            operations.append(operation)
            if not operation.path_or_fileobj:  # otherwise the commit uploads it
                local.unlink()
        call_hub(
            lambda: api.create_commit(
                repo, operations, repo_type=REPO_TYPE, revision=branch, commit_message="Upload shards"
            )
        )


def _download(files: RemoteDataset, path: str, shard: Mapping[str, Any], local: Path) -> None:
    digest = hashlib.sha256()
    check_space(local.parent, shard["bytes"])
    with write_errors(local, shard["bytes"]), local.open("wb") as stream:
        for chunk in read_chunks(f"{files.url}/{path}", shard["bytes"]):
            digest.update(chunk)
            stream.write(chunk)
    if digest.hexdigest() != shard["sha256"]:
        msg = f"Checksum mismatch of {files.name}/{path}: it changed after its verification."
        raise AvdataError(msg, hint="Run the same command again: it does not repeat finished uploads")
