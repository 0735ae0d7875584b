"""Putting a prepared set on the Hugging Face Hub: checked first, only what changed, and all of it at once.

    avdata.publish("out/cremad", "me/cremad-av")

Shards go to a branch of their own first, in as many commits as the client likes; one further commit then
takes them over, together with the index, dataset.json and the card, and drops the shards that are no more.
So a reader of the published branch sees the whole old set or the whole new one. A run that was killed left
the work branch behind: the same call goes on from it and uploads nothing twice.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdata.errors import AvdataError, UsageError
from avdata.hub.client import (
    REPO_TYPE,
    HubUnreachableError,
    RemoteFile,
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
from avdata.progress import Progress
from avdata.shards.card import CARD_MARKER, HUB_SPLITS, PERMISSION, dataset_card
from avdata.shards.format import METADATA_FILES
from avdata.shards.reader import read_info
from avdata.shards.verify import verify
from avdata.storage.atomic import atomic_write

WORK_BRANCH = "avdata-upload"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PublishResult:
    """What a publication did, or with `dry_run` would do.

    `compared` is false for a dry run that could not see what lies on the Hub: it lists every file.
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


@dataclass(frozen=True)
class _LocalDataset:
    """A set as it is to lie in the repository."""

    root: Path
    info: Mapping[str, Any]
    card: bytes

    @property
    def shards(self) -> dict[str, Mapping[str, Any]]:
        return shard_metadata(self.info)

    @property
    def metadata_files(self) -> dict[str, bytes]:
        there = {name: self.root / name for name in METADATA_FILES if (self.root / name).is_file()}
        return {**{name: path.read_bytes() for name, path in there.items()}, "README.md": self.card}

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
    dry_run: bool = False,
    token: str | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> PublishResult:
    """Publish a prepared set as a dataset repository.

    Args:
        dataset: the set's folder.
        repo: `user/name`; made if it is not there.
        private: make the repository one that only its owners see.
        revision: branch to publish on; made if it is not there.
        i_have_permission: the owners of the media allowed it, though the license does not allow everybody;
            the card says so.
        dry_run: find out what would be uploaded, and change nothing; without a network, as if nothing of the
            set were on the Hub.
        token: instead of the one that `hf auth login` or `HF_TOKEN` gives.
        progress: called with ("verify", done, total), in samples.

    Raises:
        UsageError: `repo` is not a name, or `revision` the branch that uploads go through.
        AvdataError: the set is not whole, its license does not allow it, or the Hub refuses or fails.
    """
    from huggingface_hub import HfApi  # noqa: PLC0415

    repo, dataset = check_repo(repo), Path(dataset)
    if revision == WORK_BRANCH:
        msg = f"the branch {WORK_BRANCH} is where shards wait, and is removed when they are published"
        raise UsageError(msg, hint="choose another --revision")
    info = read_info(dataset)
    _check_license(info, allowed=i_have_permission)
    api, secret = HfApi(token=token, library_name="avdata"), active_token(token)
    with hub_errors(repo, secret):
        compared = _is_reachable(api, repo, dry_run=dry_run)
    _check_complete(dataset, progress)
    permission = i_have_permission and not _is_publishable(info)
    ours = _LocalDataset(dataset, info, _card(dataset, info, repo, permission=permission))
    _check_secrets(ours, secret)
    with hub_errors(repo, secret):
        _check_card(ours.card)
        return _publish_changes(
            api, ours, repo, revision, private=private, dry_run=dry_run, compared=compared
        )


def _is_reachable(api: Any, repo: str, *, dry_run: bool) -> bool:
    """Whether the Hub answers; only a dry run goes on without."""
    try:
        check_reachable(api, repo)
    except HubUnreachableError as error:
        if not dry_run:
            raise
        log.warning("%s: every file is listed, whether it is there already or not", error.message)
        return False
    return True


def _is_publishable(info: Mapping[str, Any]) -> bool:
    return bool(info["license"]) and info["license"]["publish"] == "yes"


def _check_license(info: Mapping[str, Any], *, allowed: bool) -> None:
    if allowed or _is_publishable(info):
        return
    license = info["license"]
    why = (
        f"license {license['name']}. {license['note']}"
        if license
        else "it was prepared with checksums off, so nobody knows what it was made from"
    )
    msg = f"{info['title']} may not be published: {why}"
    hint = "with the owners' permission: --i-have-permission, which the card will record"
    raise AvdataError(msg, hint=hint)


def _check_complete(root: Path, progress: Progress) -> None:
    verdict = verify(root, progress=progress)
    if not verdict.ok:
        first, count = verdict.problems[0], len(verdict.problems)
        msg = f"{root} is not as it was prepared: {first.where}: {first.what} ({count:,} found)"
        raise AvdataError(msg, hint=f"avdata verify {root} lists all; prepare it again with --overwrite")


def _card(root: Path, info: Mapping[str, Any], repo: str, *, permission: bool) -> bytes:
    """The card to publish: ours made anew, somebody's own as it is but for the permission."""
    path = root / "README.md"
    held = path.read_text(encoding="utf-8") if path.is_file() else CARD_MARKER
    if CARD_MARKER in held:
        return dataset_card(info, repo=repo, permission=permission).encode()
    return (f"{held.rstrip()}\n\n{PERMISSION}\n" if permission and PERMISSION not in held else held).encode()


def _check_card(card: bytes) -> None:
    from huggingface_hub import DatasetCard  # noqa: PLC0415

    try:
        data: dict[str, Any] = vars(DatasetCard(card.decode()).data)
    except Exception as error:  # yaml's errors and the client's own
        msg = f"the head of README.md cannot be read: {str(error).splitlines()[0]}"
        raise AvdataError(msg, hint="mend it, or delete the file to have it written anew") from error
    missing = [name for name in ("license", "configs") if not data.get(name)]
    if missing:
        msg = f"the head of README.md lacks {' and '.join(missing)}"
        raise AvdataError(msg, hint="mend it, or delete the file to have it written anew")


def _check_secrets(ours: _LocalDataset, token: str | None) -> None:
    for name, data in ours.metadata_files.items():
        if name.endswith(".parquet"):
            continue
        if contains_token(data.decode(errors="replace"), token):
            msg = f"{ours.root / name} holds what looks like an access token"
            raise AvdataError(msg, hint="take it out, and revoke the token if the file was ever shared")


def _publish_changes(
    api: Any, ours: _LocalDataset, repo: str, revision: str, *, private: bool, dry_run: bool, compared: bool
) -> PublishResult:
    # A branch that is not there yet is made of main, and begins with what main holds.
    there = (list_repo_files(api, repo, revision) or list_repo_files(api, repo, "main")) if compared else {}
    _check_same_dataset(repo, there, ours.info)
    shards, small = _changed(ours, there)
    gone = [path for path in there if _is_shard(path, ours.info) and path not in ours.shards]
    commit = None
    if not dry_run:
        _make_repo(api, repo, revision, private=private)
        if ours.card != _read(ours.root / "README.md"):
            atomic_write(ours.root / "README.md", ours.card)
        if shards:
            _stage(api, ours, repo, revision, shards)
        if shards or small or gone:
            commit = _commit_dataset(api, ours, repo, revision, shards, small, gone)
        _tag_and_clean_up(api, ours, repo, revision)
    sizes = [ours.shards[path]["bytes"] for path in shards] + [
        len(ours.metadata_files[name]) for name in small
    ]
    return PublishResult(
        repo, f"{api.endpoint}/datasets/{repo}", revision, ours.tag, commit, (*shards, *small), tuple(gone),
        sum(sizes), dry_run, compared,
    )  # fmt: skip


def _changed(ours: _LocalDataset, there: Mapping[str, RemoteFile]) -> tuple[list[str], list[str]]:
    """The shards and the small files that are not there as they are here."""
    shards = [
        path
        for path, shard in ours.shards.items()
        if not is_same(there.get(path), ours.root / path, shard["sha256"])
    ]
    return shards, [name for name, data in ours.metadata_files.items() if not is_same(there.get(name), data)]


def _check_same_dataset(repo: str, there: Mapping[str, RemoteFile], info: Mapping[str, Any]) -> None:
    """Refuse a repository of another dataset: the card's patterns would take in the shards of both."""
    for path in there:
        if path.partition("/")[0] in HUB_SPLITS and path.endswith(".tar") and not _is_shard(path, info):
            msg = f"{repo} holds {path}, which is of another dataset than {info['name']}"
            raise AvdataError(msg, hint="publish to a repository of its own, or remove what is there first")


def _is_shard(path: str, info: Mapping[str, Any]) -> bool:
    """Whether a file of the repository is a shard of this dataset, in this preparation or an earlier one."""
    folder, _, name = path.partition("/")
    return folder in HUB_SPLITS and name.startswith(f"{info['name']}-{folder}-")


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _make_repo(api: Any, repo: str, revision: str, *, private: bool) -> None:
    call_hub(lambda: api.create_repo(repo, repo_type=REPO_TYPE, private=private or None, exist_ok=True))
    if private and not call_hub(lambda: api.repo_info(repo, repo_type=REPO_TYPE)).private:
        msg = f"{repo} is there already and everybody can see it"
        raise AvdataError(msg, hint="choose another name, or make it private in its settings first")
    if revision != "main":
        call_hub(lambda: api.create_branch(repo, branch=revision, repo_type=REPO_TYPE, exist_ok=True))


def _stage(api: Any, ours: _LocalDataset, repo: str, revision: str, shards: list[str]) -> None:
    """Bring shards to the work branch, those that an earlier run brought there left out."""
    call_hub(
        lambda: api.create_branch(
            repo, branch=WORK_BRANCH, revision=revision, repo_type=REPO_TYPE, exist_ok=True
        )
    )
    there = list_repo_files(api, repo, WORK_BRANCH)
    needed = [path for path in shards if not _is_staged(there, ours, path)]
    if needed:
        call_hub(
            lambda: api.upload_folder(
                repo_id=repo, repo_type=REPO_TYPE, folder_path=ours.root, revision=WORK_BRANCH,
                allow_patterns=needed, commit_message="Shards on their way",
            )
        )  # fmt: skip


def _is_staged(there: Mapping[str, RemoteFile], ours: _LocalDataset, path: str) -> bool:
    return is_same(there.get(path), ours.root / path, ours.shards[path]["sha256"])


def _commit_dataset(
    api: Any,
    ours: _LocalDataset,
    repo: str,
    revision: str,
    shards: list[str],
    small: list[str],
    gone: list[str],
) -> str:
    """The one commit that a reader sees; shards come from the work branch, by reference."""
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete  # noqa: PLC0415

    def commit() -> str:
        head = api.repo_info(repo, repo_type=REPO_TYPE, revision=revision).sha
        operations = [
            *(CommitOperationCopy(path, path, src_revision=WORK_BRANCH) for path in shards),
            *(CommitOperationAdd(name, ours.metadata_files[name]) for name in small),
            *(CommitOperationDelete(path) for path in gone),
        ]
        made = api.create_commit(
            repo, operations, repo_type=REPO_TYPE, revision=revision, parent_commit=head,
            commit_message=f"{ours.info['title']}: {ours.tag}",
        )  # fmt: skip
        return str(made.oid)

    return call_hub(commit)


def _tag_and_clean_up(api: Any, ours: _LocalDataset, repo: str, revision: str) -> None:
    """Tag what is published, and remove the work branch."""
    refs = call_hub(lambda: api.list_repo_refs(repo, repo_type=REPO_TYPE))
    has = ours.tag in {one.name for one in refs.tags}
    # Looked at, not remembered: an earlier run may have been killed before it moved the tag.
    stale = has and any(_changed(ours, list_repo_files(api, repo, ours.tag)))
    if stale:
        call_hub(lambda: api.delete_tag(repo, tag=ours.tag, repo_type=REPO_TYPE))
    if stale or not has:
        call_hub(
            lambda: api.create_tag(repo, tag=ours.tag, revision=revision, repo_type=REPO_TYPE, exist_ok=True)
        )
    if WORK_BRANCH in {one.name for one in refs.branches}:
        # Left behind it harms nobody, and the next publication removes it.
        with suppress(OSError):
            api.delete_branch(repo, branch=WORK_BRANCH, repo_type=REPO_TYPE)
