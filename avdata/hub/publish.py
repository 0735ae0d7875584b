"""Publish a prepared dataset on the Hugging Face Hub, atomically and incrementally.

    avdata.publish("out/cremad", "me/cremad-av")

Shards are uploaded to a work branch first. One commit on the published branch then copies them, adds index,
dataset.json and card, and deletes obsolete shards, so readers see either the old or the new dataset. After an
interruption, the same call resumes from the work branch and repeats no finished upload.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avdata.errors import AvdataError, UsageError
from avdata.hub.client import (
    REPO_TYPE,
    HubUnreachableError,
    active_token,
    call_hub,
    check_reachable,
    check_repo,
    contains_token,
    hub_errors,
    is_same,
    list_repo_files,
    shard_metadata,
)
from avdata.hub.copy import copy_shards
from avdata.progress import Progress
from avdata.shards.card import CARD_MARKER, HUB_SPLITS, PERMISSION, dataset_card, is_mock
from avdata.shards.dataset_files import DatasetFiles, RemoteDataset, open_dataset_files
from avdata.shards.format import METADATA_FILES
from avdata.shards.verify import verify_dataset
from avdata.storage.atomic import atomic_write, remove_stale_parts

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

WORK_BRANCH = "avdata-upload"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishResult:
    """Changes that `publish` made, or with `dry_run` would make.

    Attributes:
        repo: Repository as `user/name`.
        url: Address of the repository.
        revision: Branch.
        tag: Tag of format version and config hash.
        commit: ID of the commit, None if nothing changed or with `dry_run`.
        uploaded: Paths of uploaded files.
        removed: Paths of removed shards.
        bytes: Size of the uploaded files.
        dry_run: Whether the Hub was left unchanged.
        compared: Whether the files were compared with the Hub; False for a dry run without network, which
            lists every file.
    """

    repo: str
    url: str
    revision: str
    tag: str
    commit: str | None
    uploaded: tuple[str, ...]
    removed: tuple[str, ...]
    bytes: int
    dry_run: bool
    compared: bool

    def __repr__(self) -> str:
        counts = f"{len(self.uploaded)} files uploaded ({self.bytes:,} bytes), {len(self.removed)} removed"
        dry_run = ", dry_run=True" if self.dry_run else ""
        return (
            f"PublishResult({self.repo!r}, revision={self.revision!r}, tag={self.tag!r}, {counts}{dry_run})"
        )


@dataclass(frozen=True)
class _OwnDataset:
    """Files of the dataset to publish."""

    files: DatasetFiles
    card: bytes

    @property
    def info(self) -> Mapping[str, Any]:
        return self.files.info

    @property
    def root(self) -> Path:
        return self.files.root

    @property
    def shards(self) -> dict[str, Mapping[str, Any]]:
        return shard_metadata(self.info)

    @property
    def metadata_files(self) -> dict[str, bytes]:
        paths = {name: self.root / name for name in METADATA_FILES if (self.root / name).is_file()}
        return {**{name: path.read_bytes() for name, path in paths.items()}, "README.md": self.card}

    @property
    def tag(self) -> str:
        return f"v{self.info['format']}-{self.info['config_hash'][:12]}"


def publish(
    dataset: str | Path,
    repo: str,
    *,
    private: bool = False,
    revision: str = "main",
    i_have_permission: bool = False,
    allow_mock: bool = False,
    dry_run: bool = False,
    token: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> PublishResult:
    """Publish a prepared dataset as a dataset repository on the Hugging Face Hub.

    Args:
        dataset: Folder or URL of the dataset. Shards of a URL are copied one at a time.
        repo: Repository as `user/name`; created if it does not exist.
        private: Create a private repository.
        revision: Branch to publish on; created if it does not exist.
        i_have_permission: Confirm that the rights holder permits redistribution where the license does not.
            The card records it.
        allow_mock: Permit generated media, which are not the dataset. Title, tags and license of the card
            state it.
        dry_run: List the changes without making them; without network, list every file.
        token: Hub token (default: from `hf auth login` or `HF_TOKEN`).
        progress: Called with ("verify", done, total), in samples.

    Returns:
        The changes.

    Raises:
        UsageError: Invalid repository name, or `revision` is the work branch.
        AvdataError: The dataset is incomplete or damaged, its media are generated, its license does not
            permit redistribution, or the Hub is not reachable or refuses the request.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415

    repo = check_repo(repo)
    if revision == WORK_BRANCH:
        msg = f"Invalid revision {WORK_BRANCH}: it is the work branch of uploads."
        raise UsageError(msg, hint="Choose another --revision")
    files = open_dataset_files(dataset, *METADATA_FILES[:-1])
    info = files.info
    _check_not_mock(info, allowed=allow_mock)
    _check_license(info, allowed=i_have_permission)
    api, secret = HfApi(token=token, library_name="avdata"), active_token(token)
    with hub_errors(repo, secret):
        compared = _is_reachable(api, repo, dry_run=dry_run)
    _check_complete(files, progress)
    permission = i_have_permission and not _is_publishable(info)
    ours = _OwnDataset(files, _card(files.root, info, repo, permission=permission))
    _check_secrets(ours, secret)
    with hub_errors(repo, secret):
        _check_card(ours.card)
        return _publish_changes(
            api, ours, repo, revision, private=private, dry_run=dry_run, compared=compared
        )


def _is_reachable(api: Any, repo: str, *, dry_run: bool) -> bool:
    """Return whether the Hub responds; raise an error unless it is a dry run."""
    try:
        check_reachable(api, repo)
    except HubUnreachableError as error:
        if not dry_run:
            raise
        log.warning("%s; listing every file without comparison", error.message)
        return False
    return True


def _is_publishable(info: Mapping[str, Any]) -> bool:
    return bool(info["license"]) and info["license"]["publish"] == "yes"


def _check_not_mock(info: Mapping[str, Any], *, allowed: bool) -> None:
    if is_mock(info) and not allowed:
        msg = f"Cannot publish {info['title']}: its media are generated and not those of the dataset."
        raise AvdataError(msg, hint="Prepare the real dataset, or use --allow-mock; the card then says so")


def _check_license(info: Mapping[str, Any], *, allowed: bool) -> None:
    if allowed or _is_publishable(info):
        return
    license = info["license"]
    reason = (
        f"license {license['name']}. {license['note']}"
        if license
        else "it was prepared with checksums off, so its sources are not verified."
    )
    msg = f"Cannot publish {info['title']}: {reason}"
    hint = "With the rights holder's permission, use --i-have-permission; the card records it"
    raise AvdataError(msg, hint=hint)


def _check_complete(files: DatasetFiles, progress: Progress) -> None:
    result = verify_dataset(files, progress=progress)
    if not result.ok:
        first, count, name = result.problems[0], len(result.problems), files.name
        msg = f"Verification of {name} failed: {first.where}: {first.what} (problem 1 of {count:,})"
        raise AvdataError(msg, hint=f"avdata verify {name} lists all; prepare it again with --overwrite")


def _card(root: Path, info: Mapping[str, Any], repo: str, *, permission: bool) -> bytes:
    """Return the card to publish: regenerated, or the user's own card with the permission appended."""
    path = root / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else CARD_MARKER
    if CARD_MARKER in text:
        return dataset_card(info, repo=repo, permission=permission).encode()
    return (f"{text.rstrip()}\n\n{PERMISSION}\n" if permission and PERMISSION not in text else text).encode()


def _check_card(card: bytes) -> None:
    from huggingface_hub import DatasetCard  # noqa: PLC0415

    try:
        data: dict[str, Any] = vars(DatasetCard(card.decode()).data)
    except Exception as error:  # yaml's errors and the client's own
        msg = f"Invalid metadata header in README.md: {str(error).splitlines()[0]}"
        raise AvdataError(msg, hint="Correct it, or delete README.md to regenerate it") from error
    missing = [name for name in ("license", "configs") if not data.get(name)]
    if missing:
        msg = f"Missing {' and '.join(missing)} in the metadata header of README.md."
        raise AvdataError(msg, hint="Correct it, or delete README.md to regenerate it")


def _check_secrets(ours: _OwnDataset, token: str | None) -> None:
    for name, data in ours.metadata_files.items():
        if name.endswith(".parquet"):
            continue
        if contains_token(data.decode(errors="replace"), token):
            msg = f"Access token found in {ours.root / name}."
            raise AvdataError(msg, hint="Remove it, and revoke the token if the file was ever shared")


def _publish_changes(
    api: Any, ours: _OwnDataset, repo: str, revision: str, *, private: bool, dry_run: bool, compared: bool
) -> PublishResult:
    # A new branch starts from main.
    remote = (list_repo_files(api, repo, revision) or list_repo_files(api, repo, "main")) if compared else {}
    _check_same_dataset(repo, remote, ours.info)
    shards, small = _changed(ours, remote)
    obsolete = [path for path in remote if _is_shard(path, ours.info) and path not in ours.shards]
    commit = None
    if not dry_run:
        _create_repo(api, repo, revision, private=private)
        if not isinstance(ours.files, RemoteDataset) and ours.card != _read(ours.root / "README.md"):
            remove_stale_parts(ours.root, "README.md")
            atomic_write(ours.root / "README.md", ours.card)
        if shards:
            _stage(api, ours, repo, revision, shards)
        if shards or small or obsolete:
            commit = _commit_dataset(api, ours, repo, revision, shards, small, obsolete)
        _tag_and_clean_up(api, ours, repo, revision)
    sizes = [ours.shards[path]["bytes"] for path in shards] + [
        len(ours.metadata_files[name]) for name in small
    ]
    return PublishResult(
        repo, f"{api.endpoint}/datasets/{repo}", revision, ours.tag, commit, (*shards, *small),
        tuple(obsolete), sum(sizes), dry_run, compared,
    )  # fmt: skip


def _changed(ours: _OwnDataset, remote: Mapping[str, RepoFile]) -> tuple[list[str], list[str]]:
    """Return the shards and the metadata files that are missing in the repository or differ."""
    shards = [path for path in ours.shards if not _is_same_shard(remote.get(path), ours, path)]
    return shards, [name for name, data in ours.metadata_files.items() if not is_same(remote.get(name), data)]


def _check_same_dataset(repo: str, remote: Mapping[str, RepoFile], info: Mapping[str, Any]) -> None:
    """Refuse a repository with another dataset: the patterns in the card would match the shards of both."""
    for path in remote:
        if path.partition("/")[0] in HUB_SPLITS and path.endswith(".tar") and not _is_shard(path, info):
            msg = f"Repository {repo} contains another dataset than {info['name']}: {path}."
            raise AvdataError(msg, hint="Publish to another repository, or remove its files first")


def _is_shard(path: str, info: Mapping[str, Any]) -> bool:
    """Return whether a file in the repository is a shard of this dataset, of any preparation."""
    folder, _, name = path.partition("/")
    return folder in HUB_SPLITS and name.startswith(f"{info['name']}-{folder}-")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _create_repo(api: Any, repo: str, revision: str, *, private: bool) -> None:
    call_hub(lambda: api.create_repo(repo, repo_type=REPO_TYPE, private=private or None, exist_ok=True))
    if private and not call_hub(lambda: api.repo_info(repo, repo_type=REPO_TYPE)).private:
        msg = f"Repository {repo} already exists and is public."
        raise AvdataError(msg, hint="Choose another name, or make it private in its settings first")
    if revision != "main":
        call_hub(lambda: api.create_branch(repo, branch=revision, repo_type=REPO_TYPE, exist_ok=True))


def _stage(api: Any, ours: _OwnDataset, repo: str, revision: str, shards: list[str]) -> None:
    """Upload shards to the work branch, except those that an earlier run uploaded."""
    call_hub(
        lambda: api.create_branch(
            repo, branch=WORK_BRANCH, revision=revision, repo_type=REPO_TYPE, exist_ok=True
        )
    )
    remote = list_repo_files(api, repo, WORK_BRANCH)
    missing = [path for path in shards if not _is_same_shard(remote.get(path), ours, path)]
    if not missing:
        return
    if isinstance(ours.files, RemoteDataset):
        copy_shards(api, ours.files, repo, WORK_BRANCH, missing)
        return
    call_hub(
        lambda: api.upload_folder(
            repo_id=repo, repo_type=REPO_TYPE, folder_path=ours.root, revision=WORK_BRANCH,
            allow_patterns=missing, commit_message="Upload shards",
        )
    )  # fmt: skip


def _is_same_shard(file: RepoFile | None, ours: _OwnDataset, path: str) -> bool:
    """Return whether a file in the repository is this shard; its bytes are read only if it is no LFS file."""
    if file is None or file.size != ours.shards[path]["bytes"]:
        return False
    content = b"" if file.lfs else ours.files.read(path)
    return file.lfs.sha256 == ours.shards[path]["sha256"] if file.lfs else is_same(file, content)


def _commit_dataset(
    api: Any,
    ours: _OwnDataset,
    repo: str,
    revision: str,
    shards: list[str],
    small: list[str],
    obsolete: list[str],
) -> str:
    """Create the commit on the published branch; shards are copied from the work branch by reference."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete  # noqa: PLC0415

    def create() -> str:
        head = api.repo_info(repo, repo_type=REPO_TYPE, revision=revision).sha
        operations = [
            *(CommitOperationCopy(path, path, src_revision=WORK_BRANCH) for path in shards),
            *(CommitOperationAdd(name, ours.metadata_files[name]) for name in small),
            *(CommitOperationDelete(path) for path in obsolete),
        ]
        commit = api.create_commit(
            repo, operations, repo_type=REPO_TYPE, revision=revision, parent_commit=head,
            commit_message=f"{ours.info['title']}: {ours.tag}",
        )  # fmt: skip
        return str(commit.oid)

    return call_hub(create)


def _tag_and_clean_up(api: Any, ours: _OwnDataset, repo: str, revision: str) -> None:
    """Tag the published commit and remove the work branch."""
    refs = call_hub(lambda: api.list_repo_refs(repo, repo_type=REPO_TYPE))
    exists = ours.tag in {tag.name for tag in refs.tags}
    # Compare the content: an earlier run may have been killed before it moved the tag.
    is_stale = exists and any(_changed(ours, list_repo_files(api, repo, ours.tag)))
    if is_stale:
        call_hub(lambda: api.delete_tag(repo, tag=ours.tag, repo_type=REPO_TYPE))
    if is_stale or not exists:
        call_hub(
            lambda: api.create_tag(repo, tag=ours.tag, revision=revision, repo_type=REPO_TYPE, exist_ok=True)
        )
    if WORK_BRANCH in {branch.name for branch in refs.branches}:
        # If the deletion fails, the next publication removes the branch.
        with suppress(OSError):
            api.delete_branch(repo, branch=WORK_BRANCH, repo_type=REPO_TYPE)
