"""Tests of preparation during the download: identical bytes, limited disk space, resuming."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest
from support.http_server import reply_status, running_server, stall_after

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.pipeline.journal import Journal
from avdata.pipeline.planning import plan_preparation

SETTINGS = {"video": {"size": 32}, "shards": {"samples_per_shard": 3}}

SCRIPT = """
import json, sys
from avdata.sources import fetcher as fetch
from avdata.sources import http as connection
fetch.backoff = lambda attempt: 0.02
connection.READ_TIMEOUT_S = 600
import avdata
manifest, out, workers = sys.argv[1:]
print("ready", flush=True)
avdata.prepare("cremad", manifest=manifest, output=out, config=json.loads(sys.stdin.readline()),
               workers=int(workers), keep_sources=False)
print("done", flush=True)
"""


class Served:
    """Small CREMA-D on an HTTP server, its manifest and a reference prepared from local files."""

    def __init__(self, server, folder: Path, manifest: Path, reference: Path, cache: Path) -> None:
        self.server = server
        self.folder = folder
        self.manifest = manifest
        self.reference = reference
        self.root = cache / "sources" / "cremad"

    def prepare(self, out: Path, **options):
        options = {"config": SETTINGS, "workers": 0, **options}
        return avdata.prepare("cremad", manifest=self.manifest, output=out, **options)

    def media(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.suffix in {".wav", ".flv"}]

    def requested_media(self) -> list[str]:
        return [request.path for request in self.server.requests if request.path.endswith((".wav", ".flv"))]

    def start(self, out: Path, workers: int = 1) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, self.manifest, out, str(workers)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        process.stdin.write(json.dumps(SETTINGS) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ready\n"
        return process


@pytest.fixture(scope="session")
def reference(cremad_mock, once):
    """Prepare the reference dataset from local files, without a server."""
    return once(
        "arriving",
        lambda out: avdata.prepare("cremad", source=cremad_mock, output=out, config=SETTINGS, workers=0),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Create a cache folder for each test and shorten the delay between retries."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("AVDATA_CACHE", str(folder))
    monkeypatch.setattr("avdata.sources.fetcher.backoff", lambda attempt: 0.01)
    return folder


@pytest.fixture
def served(cremad_mock, reference, tmp_path, cache):
    files = {
        path.relative_to(cremad_mock).as_posix(): path.read_bytes()
        for path in cremad_mock.rglob("*")
        if path.is_file()
    }
    with running_server(files) as server:
        facts = json.loads((cremad_mock / "manifest.json").read_text())
        facts["sources"] = [{"name": "media", "urls": [server.url + "/{path}"]}]
        manifest = tmp_path / "served.json"
        manifest.write_text(json.dumps(facts))
        yield Served(server, cremad_mock, manifest, reference, cache)


def shards(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.tar")}


def same(out: Path, reference: Path) -> bool:
    """Return whether two datasets are equal, ignoring the URLs in dataset.json and the card."""
    index = (out / "index.parquet").read_bytes() == (reference / "index.parquet").read_bytes()
    return index and shards(out) == shards(reference)


@pytest.mark.parametrize(
    ("workers", "keep"),
    [
        (0, True),
        (2, False),
        pytest.param(0, False, marks=pytest.mark.exhaustive),
        pytest.param(2, True, marks=pytest.mark.exhaustive),
    ],
)
def test_prefetch_sources_results_in_an_identical_dataset(served, tmp_path, workers, keep):
    done = served.prepare(tmp_path / "out", workers=workers, keep_sources=keep)
    assert done.samples == 14
    assert same(tmp_path / "out", served.reference)
    assert len(served.media()) == (28 if keep else 0)


def test_prefetch_sources_decodes_clips_before_the_last_download(served, tmp_path):
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    last = planned.jobs[-1][1][-1].video.path
    begun = threading.Event()
    waited = []

    def hold(handler, content):
        waited.append(begun.wait(300))
        return False

    served.server.faults["/" + last].append(hold)

    def watch(stage, done, total):
        if stage == "prepare" and done:
            begun.set()

    served.prepare(tmp_path / "out", progress=watch)
    assert waited == [True]


def test_prefetch_sources_keeps_the_files_of_one_shard_at_a_time(served, tmp_path):
    most = 0

    def watch(stage, done, total):
        nonlocal most
        most = max(most, len(served.media()))

    served.prepare(tmp_path / "out", keep_sources=False, progress=watch)
    # A shard has three clips of two files each.
    assert 0 < most <= 6
    assert same(tmp_path / "out", served.reference)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_prefetch_sources_resumes_after_random_kills_without_finished_shards(served, tmp_path, workers):
    rng = random.Random(workers)
    out = tmp_path / "out"
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    paths_of_shard = {name: {"/" + clip.video.path for clip in clips} for name, clips in planned.jobs}
    for _ in range(2):
        finished = [name for name in paths_of_shard if (out / name).is_file()]
        served.server.requests.clear()
        process = served.start(out, workers)
        target = len(served.requested_media()) + rng.randint(1, 9)
        while len(served.requested_media()) < target and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        process.kill()
        process.communicate()
        assert not set(served.requested_media()) & {
            path for name in finished for path in paths_of_shard[name]
        }
    process = served.start(out, workers)
    stdout, stderr = process.communicate()
    assert stdout == "done\n", stderr
    assert same(out, served.reference)
    assert served.media() == []
    assert not Journal(out).folder.exists()


def test_prefetch_sources_stops_on_ctrl_c_and_resumes(served, tmp_path):
    stalled = [path for path in sorted(served.server.files) if path.endswith(".flv")][-3:]
    for path in stalled:
        served.server.faults[path].append(stall_after(100))
    process = served.start(tmp_path / "out")
    while len(served.requested_media()) < 6 and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)  # the read timeout for a stalled server is ten minutes
    assert process.returncode != 0
    served.server.faults.clear()
    served.prepare(tmp_path / "out", keep_sources=False)
    assert same(tmp_path / "out", served.reference)


def test_prefetch_sources_stops_on_a_failed_file_and_resumes(served, tmp_path):
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    broken = "/" + planned.jobs[1][1][0].video.path
    content = served.server.files.pop(broken)
    for workers in (0, 1):
        with pytest.raises(AvdataError, match="could not be downloaded"):
            served.prepare(tmp_path / "out", keep_sources=False, workers=workers)
    first = {"/" + clip.video.path for clip in planned.jobs[0][1]}
    served.server.files[broken] = content
    served.server.requests.clear()
    served.prepare(tmp_path / "out", keep_sources=False)
    assert not first & set(served.requested_media())
    assert same(tmp_path / "out", served.reference)


def test_prefetch_sources_refetches_a_corrupt_file(served, tmp_path):
    wrong = served.root / "VideoFlash" / sorted(path.name for path in served.folder.rglob("*.flv"))[0]
    wrong.parent.mkdir(parents=True)
    size = (served.folder / "VideoFlash" / wrong.name).stat().st_size
    wrong.write_bytes(b"x" * size)
    served.prepare(tmp_path / "out")
    assert same(tmp_path / "out", served.reference)


def test_prefetch_sources_limit_fetches_only_the_files_of_chosen_clips(served, tmp_path):
    settings = {**SETTINGS, "select": {"limit": 5, "seed": 3}}
    done = served.prepare(tmp_path / "out", config=settings)
    assert (done.samples, len(set(served.requested_media()))) == (5, 10)


def test_plan_preparation_fetches_no_media(served):
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    assert (len(planned.clips), served.requested_media()) == (14, [])


def test_prepare_finds_a_finished_dataset_without_its_sources(served, tmp_path):
    served.prepare(tmp_path / "out", keep_sources=False)
    served.server.requests.clear()
    assert served.prepare(tmp_path / "out", keep_sources=False).samples == 14
    assert served.requested_media() == []


def test_prepare_rejects_a_dataset_prepared_from_an_incomplete_folder(served, tmp_path):
    some = tmp_path / "some"
    for path in sorted(served.folder.rglob("1001*")):
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        (some / path.parent.name / path.name).write_bytes(path.read_bytes())
    assert served.prepare(tmp_path / "out", source=some).samples < 14
    with pytest.raises(AvdataError, match="Source files changed"):
        served.prepare(tmp_path / "out")


def test_prepare_rejects_keep_sources_false_for_a_local_source(served, tmp_path):
    with pytest.raises(UsageError, match="were not downloaded"):
        avdata.prepare("cremad", source=served.folder, output=tmp_path / "out", keep_sources=False)


def test_plan_preparation_reads_verified_files_only_with_rehash(cremad_mock, tmp_path, monkeypatch):
    from avdata.pipeline import validation

    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "one", config=SETTINGS)
    read = []
    hash_file = validation.hash_file
    monkeypatch.setattr(validation, "hash_file", lambda path: (read.append(path), hash_file(path))[1])
    plan_preparation("cremad", source=cremad_mock, config=SETTINGS)
    assert read == []
    plan_preparation("cremad", source=cremad_mock, config=SETTINGS, rehash=True)
    assert len(read) == 28


@pytest.fixture(scope="session")
def ave_zip(once):
    """Create a small AVE archive with the layout of the published one."""

    def make(folder):
        source = avdata.mock("ave", folder / "AVE_Dataset", clips=4)
        with zipfile.ZipFile(folder / "AVE_Dataset.zip", "w") as packed:
            for path in sorted(source.rglob("*")):
                packed.write(path, path.relative_to(source))

    return once("ave-zip", make) / "AVE_Dataset.zip"


def test_prepare_accepts_an_archive_as_source_and_keeps_it(ave_zip, tmp_path):
    settings = {"video": {"size": 32}}
    done = avdata.prepare("ave", source=ave_zip, output=tmp_path / "packed", config=settings)
    avdata.prepare("ave", source=ave_zip.with_suffix(""), output=tmp_path / "open", config=settings)
    assert done.samples == 4
    assert same(tmp_path / "packed", tmp_path / "open")
    assert ave_zip.is_file()


def test_prepare_removes_a_downloaded_archive_with_its_sources(ave_zip, tmp_path, cache):
    with running_server({"AVE_Dataset.zip": ave_zip.read_bytes()}) as server:
        facts = json.loads((ave_zip.with_suffix("") / "manifest.json").read_text())
        facts["sources"] = [{"name": "all", "urls": [server.url + "/AVE_Dataset.zip"], "unpack": "zip"}]
        manifest = tmp_path / "served.json"
        manifest.write_text(json.dumps(facts))
        for _ in range(2):
            done = avdata.prepare(
                "ave",
                manifest=manifest,
                output=tmp_path / "out",
                config={"video": {"size": 32}},
                keep_sources=False,
            )
            assert done.samples == 4
            assert not (cache / "sources" / "ave").exists()
        assert len(server.requests) == 1


def test_prepare_quarantines_clips_whose_files_are_missing_on_request(served, tmp_path, caplog):
    path = next(path for path in served.server.files if path.endswith(".wav"))
    content = served.server.files.pop(path)
    with pytest.raises(AvdataError, match="HTTP 404") as caught:
        served.prepare(tmp_path / "out")
    assert "--allow-missing" in caught.value.hint
    assert "avdata download cremad --failed" in caught.value.hint
    assert f"--manifest {served.manifest}\n" in caught.value.hint
    done = served.prepare(tmp_path / "out", allow_missing=True)
    assert (done.samples, done.quarantined["not_downloaded"]) == (13, 1)
    served.server.files[path] = content
    assert served.prepare(tmp_path / "out").samples == 13
    assert f"Clips without downloaded files in {tmp_path / 'out'}: 1." in caplog.text
    assert served.prepare(tmp_path / "out", overwrite=True).samples == 14
    assert same(tmp_path / "out", served.reference)


def test_prepare_counts_the_bytes_of_the_download(served, tmp_path):
    class Watch:
        def __init__(self):
            self.counts, self.details = [], []

        def __call__(self, stage, done, total):
            if stage == "fetching":
                self.counts.append((done, total))

        def describe(self, stage, detail):
            self.details.append(detail)

    watch = Watch()
    served.prepare(tmp_path / "out", progress=watch, keep_sources=False)
    media = sum(
        len(content) for path, content in served.server.files.items() if path[-4:] in (".wav", ".flv")
    )
    assert watch.counts[-1] == (media, media)
    assert [done for done, _ in watch.counts if done] == sorted(done for done, _ in watch.counts if done)
    assert served.server.url.removeprefix("http://") in watch.details[-1]


def test_prepare_gives_up_a_host_after_the_given_time(served, tmp_path):
    served.server.always = reply_status(500)
    with pytest.raises(AvdataError, match="HTTP 500"):
        served.prepare(tmp_path / "out", give_up_after=0)
