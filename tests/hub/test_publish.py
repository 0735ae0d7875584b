"""`avdata.publish` and `avdata.pull` with the real client against a Hub on loopback."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from huggingface_hub import constants
from support.hub_server import TOKEN, Fault, HubServer
from support.trees import digest_tree
from typer.testing import CliRunner

import avdata
from avdata.cli.main import app
from avdata.errors import AvdataError, UsageError
from avdata.hub import copy
from avdata.hub.client import call_hub
from avdata.manifest import load_manifest
from avdata.shards.card import PERMISSION
from avdata.shards.reader import read_info
from avdata.streaming import shard_reader

REPO = "me/cremad-av"


def writes(hub: HubServer) -> list[str]:
    reading = ("GET", "HEAD", "POST /api/validate-yaml")
    return [
        request
        for request in hub.requests
        if not request.startswith(reading) and "/paths-info/" not in request
    ]


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def relicensed(root: Path, name: str) -> Path:
    info = read_info(root)
    info["license"] = load_manifest(name).license.model_dump()
    (root / "dataset.json").write_text(json.dumps(info), encoding="utf-8")
    return root


def shards(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.tar"))


def test_pull_returns_the_published_bytes(hub: HubServer, own_set: Path, tmp_path: Path) -> None:
    avdata.publish(own_set, REPO)
    avdata.pull(REPO, tmp_path / "pulled")
    assert digest_tree(tmp_path / "pulled") == digest_tree(own_set)
    assert avdata.verify(tmp_path / "pulled").ok


def test_open_reads_a_published_dataset_by_url(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO)
    here, there = avdata.open(own_set, "train"), avdata.open(f"hf://datasets/{REPO}", "train")
    assert there.keys == here.keys
    for number in range(len(here)):
        assert np.array_equal(there[number].mel, here[number].mel)
        assert np.array_equal(there[number].frames, here[number].frames)


def test_publish_copies_a_dataset_behind_a_url_shard_by_shard(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("avdata.hub.copy.COMMIT_SHARDS", 3)
    largest = [0]
    download = copy._download

    def measured(*args: Any) -> None:
        download(*args)
        largest.append(len(list(args[-1].parent.iterdir())))

    monkeypatch.setattr(copy, "_download", measured)
    files = fsspec.filesystem("memory")
    files.put(f"{own_set}/", "/published/set/", recursive=True)
    avdata.publish("memory://published/set", REPO)
    files.rm("/published", recursive=True)
    assert max(largest) == 1
    avdata.pull(REPO, tmp_path / "pulled")
    assert digest_tree(tmp_path / "pulled") == digest_tree(own_set) | {
        "README.md": hashlib.sha256((tmp_path / "pulled" / "README.md").read_bytes()).hexdigest()
    }


def test_publish_lets_the_hub_copy_the_shards_of_another_repository(
    hub: HubServer, own_set: Path, tmp_path: Path
) -> None:
    avdata.publish(own_set, REPO)
    uploads = len(hub.stored)
    result = avdata.publish(f"hf://datasets/{REPO}", "me/copy")
    assert set(result.uploaded) == {path.relative_to(own_set).as_posix() for path in shards(own_set)} | {
        "README.md", "croissant.json", "dataset.json", "index.parquet", "quarantine.parquet",
    }  # fmt: skip
    assert len(hub.stored) == uploads
    assert set(hub.duplicated) == {path.relative_to(own_set).as_posix() for path in shards(own_set)}
    assert avdata.verify(avdata.pull("me/copy", tmp_path / "pulled")).ok


def test_open_keeps_the_commit_that_it_found(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    avdata.publish(own_set, REPO)
    hashed: list[Path] = []
    hash_file = shard_reader.hash_file
    monkeypatch.setattr(shard_reader, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    expected = [sample.mel for sample in avdata.open(own_set, "train")]
    url = f"hf://datasets/{REPO}"
    opened = [avdata.open(f"{url}{at}", "train", cache=tmp_path / f"a{at}") for at in ("", "@main")]
    repo = hub.repos[REPO]
    repo.commit("main", {".gitattributes": ("regular", b"")})
    for dataset in opened:
        assert dataset.name.startswith(f"hf://datasets/{REPO}")
        assert np.array_equal(pickle.loads(pickle.dumps(dataset))[0].mel, expected[0])
        assert all(np.array_equal(sample.mel, mel) for sample, mel in zip(dataset, expected, strict=True))
    assert len(hashed) == len({path.parent for path in hashed}) == 3  # the local dataset and two copies
    with pytest.raises(
        AvdataError, match=r"Cannot read hf://datasets/me/cremad-av@[0-9a-f]{40}/dataset.json"
    ):
        avdata.open(f"hf://datasets/{REPO}", "train", cache=tmp_path / "b")


def test_publish_switches_between_complete_datasets(
    hub: HubServer, own_set: Path, cremad_mock: Path, tmp_path: Path
) -> None:
    other = {"video": {"size": 48}, "shards": {"samples_per_shard": 3}}
    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "other", config=other, workers=0)
    avdata.publish(own_set, REPO)
    avdata.publish(tmp_path / "other", REPO, allow_mock=True)
    repo, seen = hub.repos[REPO], 0
    for branch, sha in repo.history:
        if branch != "main":
            continue
        files = hub.content(REPO, sha)
        stored = {name: digest for name, digest in digests(files).items() if name.endswith(".tar")}
        splits = json.loads(files["dataset.json"])["splits"] if files else {}
        assert stored == {
            shard["path"]: shard["sha256"] for split in splits.values() for shard in split["shards"]
        }
        seen += bool(files)
    assert seen == 2
    assert set(repo.branches) == {"main"}


def test_publish_again_uploads_and_commits_nothing(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO)
    before = (list(hub.stored), list(hub.repos[REPO].history))
    again = avdata.publish(own_set, REPO)
    assert (hub.stored, hub.repos[REPO].history) == before
    assert again.uploaded == again.removed == ()


def test_publish_uploads_only_changed_files(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO)
    sent = len(hub.stored)
    card = own_set / "README.md"
    card.write_text(card.read_text().partition("\n# ")[0].replace("<!--", "<!-- mine ") + "\n# My words\n")
    assert avdata.publish(own_set, REPO).uploaded == ("README.md",)
    assert len(hub.stored) == sent
    assert b"# My words" in hub.content(REPO)["README.md"]


def test_publish_removes_obsolete_shards_and_no_other_files(
    hub: HubServer, own_set: Path, cremad_mock: Path, tmp_path: Path
) -> None:
    avdata.publish(own_set, REPO)
    repo = hub.repos[REPO]
    repo.commit("main", {**repo.commits[repo.branches["main"]].files, "paper.pdf": ("regular", b"%PDF")})
    other = {"video": {"size": 48}, "shards": {"samples_per_shard": 100}}
    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "other", config=other, workers=0)
    done = avdata.publish(tmp_path / "other", REPO, allow_mock=True)
    there = hub.content(REPO)
    assert "paper.pdf" in there
    assert sorted(name for name in there if name.endswith(".tar")) == [
        path.relative_to(tmp_path / "other").as_posix() for path in shards(tmp_path / "other")
    ]
    assert done.removed


def test_publish_tags_format_and_config_hash(hub: HubServer, own_set: Path) -> None:
    done = avdata.publish(own_set, REPO)
    assert done.tag == f"v2-{read_info(own_set)['config_hash'][:12]}"
    assert hub.repos[REPO].tags == {done.tag: hub.repos[REPO].branches["main"]}


def test_publish_moves_a_stale_tag_of_a_killed_run(hub: HubServer, own_set: Path) -> None:
    tag = avdata.publish(own_set, REPO).tag
    card = own_set / "README.md"
    card.write_text(card.read_text().replace("<!--", "<!-- mine ") + "\n# My words\n")
    hub.faults = [Fault("(DELETE|POST) .*/tag/", status=401, times=1000)]
    with pytest.raises(AvdataError):
        avdata.publish(own_set, REPO)
    hub.faults = []
    avdata.publish(own_set, REPO)
    assert hub.repos[REPO].tags == {tag: hub.repos[REPO].branches["main"]}


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /store", drop=True, times=2),
        Fault("PUT /store", status=503, times=2),
        Fault("POST .*/repos/create", status=429),
        Fault("GET .*/tree/", status=500, times=2),
        Fault("POST .*/preupload/", status=429),
        Fault("POST .*objects/batch", status=502),
        Fault("POST .*/branch/", status=500),
        Fault("POST .*/commit/", status=429),
        Fault("POST .*/commit/", drop=True),
        Fault("POST .*/tag/", status=503),
        Fault("GET .*/refs", drop=True),
    ],
    ids=str,
)
def test_publish_retries_transient_faults(hub: HubServer, own_set: Path, fault: Fault) -> None:
    hub.faults = [Fault(fault.pattern, fault.status, fault.drop, fault.times)]
    avdata.publish(own_set, REPO)
    assert hub.faults[0].times == 0
    assert set(Counter(hub.stored).values()) == {1}
    assert digests(hub.content(REPO)) == digest_tree(own_set)


@pytest.mark.parametrize(
    "pattern",
    ["POST .*/repos/create", "POST .*objects/batch", "PUT /store", "POST .*/commit/main", "POST .*/tag/"],
)
@pytest.mark.parametrize("status", [401, 500])
def test_publish_resumes_after_a_failure_without_repeated_uploads(
    hub: HubServer, own_set: Path, pattern: str, status: int
) -> None:
    hub.faults = [Fault(pattern, status=status, times=1000)]
    with pytest.raises(AvdataError) as raised:
        avdata.publish(own_set, REPO)
    assert raised.value.hint
    hub.faults = []
    avdata.publish(own_set, REPO)
    assert set(Counter(hub.stored).values()) == {1}
    assert set(hub.content(REPO)) == set(digest_tree(own_set))
    assert set(hub.repos[REPO].branches) == {"main"}


def test_publish_resumes_after_a_kill_without_repeated_uploads(
    hub: HubServer, own_set: Path, tmp_path: Path
) -> None:
    env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-m", "avdata.cli", "publish", str(own_set), "--repo", REPO, "-q"]
    begun = itertools.count(1)

    def kill_later() -> None:
        if next(begun) == 3:
            # Uploads are concurrent: one is complete when the client is killed during the others.
            while not hub.stored:
                threading.Event().wait(0.01)
            os.kill(client.pid, signal.SIGKILL)

    hub.faults = [Fault("PUT /store", also=kill_later, times=1000)]
    client = subprocess.Popen(command, env=env)
    assert client.wait() == -signal.SIGKILL
    hub.served()
    assert hub.stored
    hub.faults = []
    avdata.publish(own_set, REPO)
    assert set(Counter(hub.stored).values()) == {1}
    assert set(hub.content(REPO)) == set(digest_tree(own_set))


def test_dry_run_writes_nothing(hub: HubServer, own_set: Path) -> None:
    before = digest_tree(own_set)
    planned = avdata.publish(own_set, REPO, dry_run=True)
    assert writes(hub) == []
    assert digest_tree(own_set) == before
    assert set(planned.uploaded) == set(before)


@pytest.mark.parametrize(("name", "why"), [("ave", "no license"), ("urbansound8k-av", "images' origin")])
def test_publish_refuses_a_license_that_does_not_permit_it(
    hub: HubServer, own_set: Path, name: str, why: str
) -> None:
    with pytest.raises(AvdataError, match=why) as raised:
        avdata.publish(relicensed(own_set, name), REPO)
    assert "--i-have-permission" in str(raised.value.hint)
    assert hub.requests == []


def test_publish_records_a_permission_in_the_card(hub: HubServer, own_set: Path) -> None:
    avdata.publish(relicensed(own_set, "ave"), REPO, i_have_permission=True)
    assert PERMISSION in hub.content(REPO)["README.md"].decode()


def test_publish_does_not_record_an_unneeded_permission(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO, i_have_permission=True)
    assert PERMISSION not in hub.content(REPO)["README.md"].decode()


def test_publish_refuses_a_dataset_of_unverified_files(hub: HubServer, own_set: Path) -> None:
    info = read_info(own_set)
    (own_set / "dataset.json").write_text(json.dumps({**info, "license": None}))
    with pytest.raises(AvdataError, match="checksums off"):
        avdata.publish(own_set, REPO)


def test_publish_refuses_a_damaged_dataset_before_any_upload(hub: HubServer, own_set: Path) -> None:
    shard = shards(own_set)[0]
    data = bytearray(shard.read_bytes())
    data[700] ^= 1
    shard.chmod(0o644)
    shard.write_bytes(data)
    with pytest.raises(AvdataError, match=r"Verification of .* failed: .* \(problem 1 of \d+\)"):
        avdata.publish(own_set, REPO)
    assert writes(hub) == []


def test_publish_creates_a_private_repository(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO, private=True)
    assert hub.repos[REPO].private


def test_publish_refuses_private_for_a_public_repository(hub: HubServer, own_set: Path) -> None:
    avdata.publish(own_set, REPO)
    sent = len(writes(hub))
    with pytest.raises(AvdataError, match="already exists and is public"):
        avdata.publish(own_set, REPO, private=True)
    assert len(writes(hub)) == sent + 1  # the attempt to create it


def test_publish_refuses_the_work_branch_as_revision(hub: HubServer, own_set: Path) -> None:
    with pytest.raises(UsageError, match="avdata-upload"):
        avdata.publish(own_set, REPO, revision="avdata-upload")
    assert not hub.requests


def test_publish_to_a_revision_leaves_main_unchanged(hub: HubServer, own_set: Path, tmp_path: Path) -> None:
    avdata.publish(own_set, REPO, revision="next")
    assert hub.content(REPO) == {}
    avdata.pull(REPO, tmp_path / "pulled", revision="next")
    assert digest_tree(tmp_path / "pulled") == digest_tree(own_set)


@pytest.mark.parametrize("dry_run", [True, False])
def test_publish_to_a_new_revision_removes_shards_of_main(
    hub: HubServer, own_set: Path, cremad_mock: Path, tmp_path: Path, dry_run: bool
) -> None:
    avdata.publish(own_set, REPO)
    other = {"video": {"size": 48}, "shards": {"samples_per_shard": 100}}
    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "other", config=other, workers=0)
    done = avdata.publish(tmp_path / "other", REPO, allow_mock=True, revision="next", dry_run=dry_run)
    here, other_names = (
        {path.relative_to(root).as_posix() for path in shards(root)} for root in (own_set, tmp_path / "other")
    )
    assert set(done.removed) == here - other_names
    if not dry_run:
        there = hub.content(REPO, hub.repos[REPO].branches["next"])
        assert {name for name in there if name.endswith(".tar")} == other_names


def test_publish_refuses_a_repository_of_another_dataset(
    hub: HubServer, own_set: Path, synthetic_set: Path
) -> None:
    avdata.publish(own_set, REPO)
    before = hub.content(REPO)
    with pytest.raises(AvdataError, match="contains another dataset than synthetic"):
        avdata.publish(synthetic_set, REPO, allow_mock=True)
    assert hub.content(REPO) == before


def test_pull_refuses_a_folder_with_another_dataset(
    hub: HubServer, own_set: Path, synthetic_set: Path, tmp_path: Path
) -> None:
    avdata.publish(own_set, REPO)
    shutil.copytree(synthetic_set, tmp_path / "mine")
    with pytest.raises(AvdataError, match="contains dataset synthetic"):
        avdata.pull(REPO, tmp_path / "mine")
    assert digest_tree(tmp_path / "mine") == digest_tree(synthetic_set)


def test_publish_redacts_the_token_everywhere(
    hub: HubServer, own_set: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    avdata.publish(own_set, REPO)
    wrong = TOKEN[:-4] + "9999"
    monkeypatch.setenv("HF_TOKEN", wrong)
    with pytest.raises(AvdataError, match="Invalid Hub token") as raised:
        avdata.publish(own_set, REPO)
    text = "".join(traceback.format_exception(raised.value)) + caplog.text
    text += "".join(data.decode(errors="replace") for data in hub.content(REPO).values())
    assert TOKEN not in text
    assert wrong not in text


def test_publish_refuses_files_with_a_token(hub: HubServer, own_set: Path) -> None:
    card = own_set / "README.md"
    card.write_text(card.read_text().replace("<!--", "<!-- mine ") + f"\nexport HF_TOKEN={TOKEN}\n")
    with pytest.raises(AvdataError, match="Access token found in") as raised:
        avdata.publish(own_set, REPO)
    assert TOKEN not in str(raised.value)
    assert writes(hub) == []


def test_pull_discards_files_with_another_checksum(hub: HubServer, own_set: Path, tmp_path: Path) -> None:
    avdata.publish(own_set, REPO)
    oid = read_info(own_set)["splits"]["train"]["shards"][0]["sha256"]
    good, hub.objects[oid] = hub.objects[oid], bytes(len(hub.objects[oid]))
    with pytest.raises(AvdataError, match="Checksum mismatch of downloaded"):
        avdata.pull(REPO, tmp_path / "pulled")
    assert not (tmp_path / "pulled/dataset.json").exists()
    hub.objects[oid] = good
    avdata.pull(REPO, tmp_path / "pulled")
    assert digest_tree(tmp_path / "pulled") == digest_tree(own_set)


def test_pull_replaces_an_older_version_and_fetches_only_differences(
    hub: HubServer, own_set: Path, tmp_path: Path
) -> None:
    avdata.publish(own_set, REPO)
    shutil.copytree(own_set, tmp_path / "pulled")
    stale = {"path": "train/cremad-train-00007-of-00008.tar", "bytes": 5, "samples": 0, "sha256": 64 * "0"}
    (tmp_path / "pulled" / stale["path"]).write_bytes(b"stale")
    older = read_info(own_set)
    older["splits"]["train"]["shards"].append(stale)
    (tmp_path / "pulled/dataset.json").write_text(json.dumps(older), encoding="utf-8")
    shards(tmp_path / "pulled")[0].unlink()
    hub.requests.clear()
    avdata.pull(REPO, tmp_path / "pulled")
    fetched = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert fetched == {"dataset.json", shards(own_set)[0].name}
    assert digest_tree(tmp_path / "pulled") == digest_tree(own_set)


def test_pull_refuses_a_folder_with_other_files(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("\\begin{document}")
    with pytest.raises(AvdataError, match="contains thesis"):
        avdata.pull(REPO, tmp_path)


def test_publish_and_pull_name_an_unknown_repository(hub: HubServer, own_set: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Invalid repository name"):
        avdata.publish(own_set, "cremad")
    with pytest.raises(AvdataError, match="Unknown repository or revision"):
        avdata.pull("me/nothing", tmp_path / "pulled")


@pytest.mark.parametrize(
    "repo",
    [
        "cremad",
        "hf://datasets/cremad",
        "../me",
        "me/../x",
        "me/a/b",
        "me--x/y",
        "-me/x",
        "me/x.git",
        "me/x y",
    ],
)
def test_publish_refuses_a_name_that_the_hub_refuses(hub: HubServer, own_set: Path, repo: str) -> None:
    with pytest.raises(UsageError, match="Invalid repository name"):
        avdata.publish(own_set, repo)
    assert hub.requests == []


def test_publish_command_prints_the_url_and_loading_code(hub: HubServer, own_set: Path) -> None:
    result = CliRunner().invoke(app, ["publish", str(own_set), "--repo", REPO])
    assert result.exit_code == 0
    assert f"{hub.url}/datasets/{REPO}" in result.stdout
    lines = result.stdout.splitlines()[-2:]
    names: dict[str, object] = {}
    exec("\n".join(lines), names)
    assert len(names["data"]) == read_info(own_set)["splits"]["train"]["samples"]  # type: ignore[arg-type]


def test_unreachable_hub_is_reported_immediately(
    no_hub: str, slept: list[float], own_set: Path, tmp_path: Path
) -> None:
    with pytest.raises(AvdataError, match=f"Cannot reach the Hub at {no_hub}"):
        avdata.publish(own_set, REPO)
    with pytest.raises(AvdataError, match=f"Cannot reach the Hub at {no_hub}"):
        avdata.pull(REPO, tmp_path / "pulled")
    with pytest.raises(AvdataError, match="Cannot reach"):
        avdata.open(f"hf://datasets/{REPO}", "train")
    assert sum(slept) <= 2


def test_hub_timeout_is_not_retried(
    hub: HubServer, slept: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("avdata.hub.client.PING_TIMEOUT_S", 0.2)
    asked, given_up, waited = threading.Event(), threading.Event(), list[bool]()

    def keep_silent() -> None:
        asked.set()
        waited.append(given_up.wait(600))

    hub.faults = [Fault("GET", also=keep_silent, times=9)]
    with pytest.raises(AvdataError, match="Cannot reach"):
        avdata.pull(REPO, tmp_path / "pulled")
    given_up.set()
    # On a busy machine, the server may handle the request late.
    assert asked.wait(300)
    hub.served()
    assert (waited, slept) == ([True], [])


def test_dry_run_without_network_lists_every_file(
    no_hub: str, slept: list[float], own_set: Path, caplog: pytest.LogCaptureFixture
) -> None:
    planned = avdata.publish(own_set, REPO, dry_run=True)
    assert set(planned.uploaded) == set(digest_tree(own_set))
    assert not planned.compared
    assert f"Cannot reach the Hub at {no_hub}" in caplog.text
    assert sum(slept) <= 2


def test_retry_recognizes_a_wrapped_connection_error(slept: list[float]) -> None:
    class Gone(Exception):
        __module__ = "httpx._exceptions"  # of huggingface-hub 1.x; 2.x has httpx2

    attempts: list[int] = []

    def upload() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            msg = "Error while uploading 'x.tar' to the Hub."
            raise RuntimeError(msg) from Gone()
        return "there"

    assert call_hub(upload) == "there"


def test_pull_respects_offline_mode(
    hub: HubServer, slept: list[float], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AvdataError, match="offline mode"):
        avdata.pull(REPO, tmp_path / "pulled")
    assert slept == hub.requests == []


def test_publish_result_repr_is_one_short_line(hub: HubServer, own_set: Path) -> None:
    result = avdata.publish(own_set, REPO)
    counts = f"{len(result.uploaded)} files uploaded ({result.bytes:,} bytes), 0 removed"
    assert repr(result) == f"PublishResult('{REPO}', revision='main', tag='{result.tag}', {counts})"
    assert repr(avdata.publish(own_set, REPO, dry_run=True)).endswith(", dry_run=True)")
