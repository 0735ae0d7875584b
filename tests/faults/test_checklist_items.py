"""Items of `test_checklist` that no other file tests: 4, 6, 8, 11, 15, 17, 18, 20 to 23 and 25."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import shutil
import subprocess
from collections import Counter
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from support.damaged_sets import READERS, replace_member
from support.http_server import Handler, running_server
from support.hub_fixtures import hub, own_set, slept
from support.hub_server import TOKEN, HubServer
from support.processes import wait_until
from support.tiny_dataset import SINGLE_FILE, make_manifest, make_recipe
from support.trees import digest_tree
from torch.utils.data import DataLoader

import avdata
from avdata.config.schema import QualityConfig, build_config
from avdata.errors import AvdataError, MediaError, QuarantineReason
from avdata.features.extract import extract_features
from avdata.hub import pull
from avdata.hub.client import active_token
from avdata.manifest import Source
from avdata.media.audio import decode_audio
from avdata.media.video import read_frame_times
from avdata.recipe import Clip, load_recipe
from avdata.shards.reader import read_index, read_info
from avdata.sources.download import download
from avdata.streaming.shard_cache import ShardCache
from avdata.subprocesses import python_command, python_environment

__all__ = ["hub", "own_set", "slept"]


@pytest.mark.parametrize("place", ["member", "header", "data", "sample", "end"])
def test_verify_and_loader_name_a_shard_cut_anywhere(place: str, synthetic_set: Path, tmp_path: Path) -> None:
    """webdataset reads four of these five cuts without an error."""
    root = Path(shutil.copytree(synthetic_set, tmp_path / "set"))
    shard = read_info(root)["splits"]["train"]["shards"][0]
    rows = read_index(root).to_pylist()
    row = next(row for row in rows if row["shard"] == shard["path"] and row["offset"])
    size = {
        "member": row["offset"] + 1024, "header": row["offset"] + 100, "data": row["offset"] + 600,
        "sample": row["offset"], "end": shard["bytes"] - 512,
    }[place]  # fmt: skip
    os.truncate(root / shard["path"], size)
    problems = {problem.where: problem.what for problem in avdata.verify(root).problems}
    assert problems[shard["path"]] == f"has {size:,} bytes, not {shard['bytes']:,}"
    with pytest.raises(AvdataError, match=f"{shard['path']}.*{size:,} bytes, expected {shard['bytes']:,}"):
        list(avdata.open(root, "train"))


@pytest.mark.exhaustive
def test_prepare_is_independent_of_the_environment(
    cremad_mock: Path, cremad_set: Path, tmp_path: Path
) -> None:
    code = (
        "import os, sys, avdata; os.umask(0o077); avdata.prepare('cremad', source=sys.argv[1],"
        " output=sys.argv[2], config={'video': {'size': 48}, 'shards': {'samples_per_shard': 4}}, workers=2)"
    )
    changed = {"PYTHONHASHSEED": "7", "TZ": "Asia/Kathmandu", "LC_ALL": "tr_TR.UTF-8", "USER": "nobody"}
    subprocess.run(
        python_command("-c", code, str(cremad_mock), str(tmp_path / "out")),
        env=python_environment(**changed),
        check=True,
    )
    assert digest_tree(tmp_path / "out") == digest_tree(cremad_set)


def test_prepare_refuses_a_folder_that_another_run_prepares(synthetic_mock: Path, tmp_path: Path) -> None:
    hints = []

    def prepare(progress: Any = lambda *_: None) -> None:
        avdata.prepare(
            "synthetic", source=synthetic_mock, output=tmp_path / "out", workers=0, progress=progress
        )

    def second_run(stage: str, done: int, total: int) -> None:
        if stage == "prepare" and not hints:
            with pytest.raises(AvdataError, match=r"Another run is preparing .*/out") as caught:
                prepare()
            hints.append(caught.value.hint)

    prepare(second_run)
    assert hints == ["Wait for it to end, or use another --output."]
    assert avdata.verify(tmp_path / "out").ok


def test_export_refuses_a_folder_that_another_run_exports_to(synthetic_set: Path, tmp_path: Path) -> None:
    out, reference, refused = tmp_path / "out", tmp_path / "reference", []

    def second_run(stage: str, done: int, total: int) -> None:
        if not refused:
            with pytest.raises(AvdataError, match=r"Another run is exporting to .*/out") as caught:
                avdata.export(synthetic_set, out)
            refused.append(caught.value)

    avdata.export(synthetic_set, out, progress=second_run)
    assert refused
    avdata.export(synthetic_set, reference)
    assert digest_tree(out) == digest_tree(reference)


def test_pull_refuses_a_folder_that_another_run_downloads_to(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, refused, move = tmp_path / "out", [], pull._move_into_place

    def second_run(*arguments: Any) -> None:
        if not refused:
            refused.append(None)
            with pytest.raises(AvdataError, match=r"Another run is downloading to .*/out"):
                avdata.pull("me/set", out)
        move(*arguments)

    avdata.publish(own_set, "me/set")
    monkeypatch.setattr(pull, "_move_into_place", second_run)
    avdata.pull("me/set", out)
    assert refused
    assert digest_tree(out) == digest_tree(own_set)


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "evil\\..\\evil", "C:evil"])
def test_download_ignores_the_file_name_of_the_server(name: str, tmp_path: Path) -> None:
    content = b"A" * 100

    def answer(handler: Handler) -> None:
        handler.reply(200, content, {"Content-Disposition": f'attachment; filename="{name}"'})

    with running_server() as server:
        server.pages["/a"] = answer
        source = Source(name="media", urls=(f"{server.url}/a",), into=SINGLE_FILE)
        manifest = make_manifest([source], {SINGLE_FILE: content})
        download(make_recipe(), output=tmp_path / "in" / "raw", manifest=manifest)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert {file for file in files if "/.avdata/" not in file and "cache" not in file} == {
        f"in/raw/{SINGLE_FILE}"
    }
    assert not [file for file in files if "evil" in file]


PLAYLISTS = {
    "ffconcat": "ffconcat version 1.0\nfile {url}\n",
    "concat script": "file '{url}'\n",
    "HLS": "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{url}\n#EXT-X-ENDLIST\n",
    "HLS after an ID3 tag": "ID3\x04\0\0\0\0\0\x0a" + "\0" * 10 + "#EXTM3U\n#EXTINF:2,\n{url}\n",
    "HLS after a byte-order mark": "\ufeff#EXTM3U\n#EXTINF:2,\n{url}\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet><Representation id="1" mimeType="video/mp4"><BaseURL>{url}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{url}\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "ASX": '<asx version="3.0"><entry><ref href="{url}"/></entry></asx>',
    "ASF redirect": "[Reference]\nRef1={url}\n",
    "RTSP redirect": "RTSPtext {url}\n",
}


@pytest.mark.parametrize("decoder", ["pyav", "ffmpeg"])
@pytest.mark.parametrize("kind", PLAYLISTS)
def test_disguised_playlist_is_refused_without_a_request(kind: str, decoder: str, tmp_path: Path) -> None:
    quality = QualityConfig()
    with running_server({"a.mp4": b"x"}) as server:
        for suffix in ("mp4", "mkv", "ts", "wav", "mp3"):
            path = tmp_path / f"clip.{suffix}"
            path.write_text(PLAYLISTS[kind].format(url=f"{server.url}/a.mp4"), encoding="utf-8")
            readers = [lambda path=path: decode_audio(path, quality, decoder=decoder)]
            if decoder == "pyav":  # which finds the times for every decoder
                readers.append(lambda path=path: read_frame_times(path, quality))
            for read in readers:
                with pytest.raises(MediaError) as caught:
                    read()
                assert caught.value.reason in (QuarantineReason.NOT_MEDIA, QuarantineReason.UNREADABLE)
        assert server.requests == []


PICKLE = b"cos\nsystem\n(S'touch %s'\ntR."


@pytest.mark.parametrize("name", ["pkl", "pickle", "pyd", "pth", "pt", "npz", "tenbin", "x.pyd"])
def test_no_reader_unpickles_a_member(name: str, synthetic_set: Path, tmp_path: Path) -> None:
    """The members are those that webdataset and `datasets` unpickle, or did."""
    root, trace = Path(shutil.copytree(synthetic_set, tmp_path / "set")), tmp_path / "executed"
    for shard in [shard["path"] for split in read_info(root)["splits"].values() for shard in split["shards"]]:
        replace_member(root, shard, name, lambda _: PICKLE % bytes(trace))
    assert not avdata.verify(root).ok
    readers = {**READERS, "webdataset": lambda root: list(avdata.webdataset(root))}
    for read in readers.values():
        with suppress(AvdataError):
            read(root)
    assert not trace.exists()


def test_loader_resumes_twice_at_every_step(synthetic_set: Path) -> None:
    """At the last step, the state is that of the next epoch's start."""

    def loader(state: Any = None) -> Any:
        result = avdata.open(synthetic_set, "train", shuffle=True, seed=1).loader(6, num_workers=0)
        if state is not None:
            result.load_state_dict(state)
        return result

    undisturbed = loader()
    expected = [batch.key for _ in range(3) for batch in undisturbed]
    for step in range(len(undisturbed) + 1):
        first = loader()
        keys = [batch.key for batch in islice(first, step)]
        second = loader(first.state_dict())
        assert second.state_dict() == first.state_dict()
        keys += [batch.key for batch in islice(second, 1)]
        third = loader(second.state_dict())
        keys += [batch.key for _ in range(2) for batch in third]
        assert keys == expected[: len(keys)]
        assert len(keys) >= 2 * len(undisturbed)


def held_by_process() -> tuple[int, set[str], set[str]]:
    """Return the number of open files, the child processes, and the shared memory of this process."""
    gc.collect()
    children = {
        pid for task in Path("/proc/self/task").glob("*/children") for pid in task.read_text().split()
    }
    shared = {path.name for path in Path("/dev/shm").iterdir() if f"_{os.getpid()}_" in path.name}
    return len(list(Path("/proc/self/fd").iterdir())), children, shared


@pytest.mark.parametrize(
    "start", ["fork", *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("spawn", "forkserver"))]
)
def test_epochs_that_fail_leave_no_file_process_or_shared_memory(
    start: str, synthetic_set: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(synthetic_set, tmp_path / "set"))
    shard = read_info(root)["splits"]["train"]["shards"][-1]["path"]
    replace_member(root, shard, "mel.npy", lambda _: b"")
    context = multiprocessing.get_context(start)

    def fail() -> None:
        data = avdata.open(root, "train")
        for loader in (
            data.loader(4, num_workers=2),
            DataLoader(data, 4, num_workers=2, collate_fn=avdata.collate, multiprocessing_context=context),
        ):
            with pytest.raises(AvdataError, match=shard):
                list(loader)

    fail()  # starts what serves the whole process
    before = held_by_process()
    for _ in range(2):
        fail()
    wait_until(lambda: held_by_process() == before)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def memory_growth(source: Path, decoder: str, clips: int) -> int:
    """Return by how many bytes the memory grows while clips are decoded, after a warm-up of a quarter."""
    config = build_config({"video": {"size": 48, "decoder": decoder}})
    recipe = load_recipe("cremad")
    found = recipe.clips(source, recipe.default_split)
    before = 0
    for number in range(clips + clips // 4):
        if number == clips // 4:
            before = resident_bytes()
        clip: Clip = found[number % len(found)]
        extract_features(clip, config)
    return resident_bytes() - before


def test_decoder_memory_is_flat_over_60_clips(cremad_mock: Path) -> None:
    assert memory_growth(cremad_mock, "pyav", 60) < 8 << 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("decoder", ["pyav", "decord", "ffmpeg"])
def test_decoder_memory_is_flat_over_2000_clips(decoder: str, cremad_mock: Path) -> None:
    assert memory_growth(cremad_mock, decoder, 2000) < 16 << 20


@pytest.mark.exhaustive
@pytest.mark.parametrize("world", range(1, 9))
def test_every_world_and_number_of_workers_returns_each_sample_once(world: int, synthetic_set: Path) -> None:
    keys = sorted(row["key"] for row in read_index(synthetic_set).to_pylist() if row["split"] == "train")
    for workers in range(4):
        lengths, found = set(), Counter[str]()
        for rank in range(world):
            data = avdata.open(synthetic_set, "train", shuffle=True, rank=rank, world_size=world)
            batches = list(data.loader(3, num_workers=workers))
            lengths.add(len(batches))
            for batch in batches:
                weights = np.asarray(batch.weight)
                found.update(key for key, weight in zip(batch.key, weights, strict=True) if weight)
        assert len(lengths) == 1
        assert sorted(found.elements()) == keys


def test_cache_keeps_shards_of_equal_names_apart(
    synthetic_set: Path, cremad_set: Path, tmp_path: Path
) -> None:
    cache = ShardCache(tmp_path / "cache")
    copies: dict[str, Path] = {}
    for number, root in enumerate((synthetic_set, cremad_set)):
        shard = read_info(root)["splits"]["train"]["shards"][0]
        same_name = tmp_path / str(number) / "train" / "same-train-00000-of-00001.tar"
        same_name.parent.mkdir(parents=True)
        shutil.copy(root / shard["path"], same_name)
        copies[shard["sha256"]] = same_name
    for sha256, path in copies.items():
        fetched = cache.fetch(path.as_uri(), sha256, path.stat().st_size)
        assert fetched.read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "cache").rglob("*.tar"))) == 2


def test_token_of_the_argument_precedes_environment_and_file(
    hub: HubServer, own_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = tmp_path / "token"
    stored.write_text("hf_" + "x" * 34)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(stored))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "y" * 34)
    assert active_token(TOKEN) == TOKEN
    assert active_token(None) == "hf_" + "y" * 34
    # The server accepts only this one.
    avdata.publish(own_set, "me/set", token=TOKEN)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    avdata.pull("me/set", tmp_path / "by-environment")
    monkeypatch.delenv("HF_TOKEN")
    assert active_token(None) == "hf_" + "x" * 34
    stored.write_text(TOKEN)
    avdata.pull("me/set", tmp_path / "by-file")
    for root in (own_set, tmp_path / "by-environment", tmp_path / "by-file"):
        assert not [
            path for path in root.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()
        ]
