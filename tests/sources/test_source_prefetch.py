"""Preparing a dataset while its files arrive: the same bytes, in little disk, however the run ends."""

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
    """A small CREMA-D behind a server: its manifest, and the set that it makes."""

    def __init__(self, world, folder: Path, manifest: Path, reference: Path, cache: Path) -> None:
        self.world = world
        self.folder = folder
        self.manifest = manifest
        self.reference = reference
        self.root = cache / "sources" / "cremad"

    def prepare(self, out: Path, **options):
        options = {"config": SETTINGS, "workers": 0, **options}
        return avdata.prepare("cremad", manifest=self.manifest, output=out, **options)

    def media(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.suffix in {".wav", ".flv"}]

    def asked(self) -> list[str]:
        return [one.path for one in self.world.asked if one.path.endswith((".wav", ".flv"))]

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
    """The set made from the files on disk, without a server."""
    return once(
        "arriving",
        lambda out: avdata.prepare("cremad", source=cremad_mock, output=out, config=SETTINGS, workers=0),
    )


@pytest.fixture
def served(serve, cremad_mock, reference, tmp_path, cache):
    files = {
        path.relative_to(cremad_mock).as_posix(): path.read_bytes()
        for path in cremad_mock.rglob("*")
        if path.is_file()
    }
    world = serve(files)
    facts = json.loads((cremad_mock / "manifest.json").read_text())
    facts["sources"] = [{"name": "media", "urls": [world.url + "/{path}"]}]
    manifest = tmp_path / "served.json"
    manifest.write_text(json.dumps(facts))
    return Served(world, cremad_mock, manifest, reference, cache)


def shards(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.tar")}


def same(out: Path, reference: Path) -> bool:
    """Whether two sets are equal but for the server's address in dataset.json and the card."""
    index = (out / "index.parquet").read_bytes() == (reference / "index.parquet").read_bytes()
    return index and shards(out) == shards(reference)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", [True, False])
def test_a_set_prepared_while_its_files_arrive_is_the_same_to_the_byte(served, tmp_path, workers, keep):
    done = served.prepare(tmp_path / "out", workers=workers, keep_sources=keep)
    assert done.samples == 14
    assert same(tmp_path / "out", served.reference)
    assert len(served.media()) == (28 if keep else 0)


def test_clips_are_decoded_before_the_last_file_has_arrived(served, tmp_path):
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    last = planned.jobs[-1][1][-1].video.path
    begun = threading.Event()
    waited = []

    def hold(handler, content):
        waited.append(begun.wait(300))
        return False

    served.world.faults["/" + last].append(hold)

    def watch(stage, done, total):
        if stage == "prepare" and done:
            begun.set()

    served.prepare(tmp_path / "out", progress=watch)
    assert waited == [True]


def test_sources_that_are_not_kept_take_the_disk_of_one_shard_at_a_time(served, tmp_path):
    most = 0

    def watch(stage, done, total):
        nonlocal most
        most = max(most, len(served.media()))

    served.prepare(tmp_path / "out", keep_sources=False, progress=watch)
    # A shard holds three clips, of two files each.
    assert 0 < most <= 6
    assert same(tmp_path / "out", served.reference)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_at_random_points_ends_in_the_same_set_and_fetches_no_finished_shard_again(
    served, tmp_path, workers
):
    rng = random.Random(workers)
    out = tmp_path / "out"
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    of_shard = {name: {"/" + one.video.path for one in held} for name, held in planned.jobs}
    for _ in range(4):
        finished = [name for name in of_shard if (out / name).is_file()]
        served.world.asked.clear()
        process = served.start(out, workers)
        target = len(served.asked()) + rng.randint(1, 9)
        while len(served.asked()) < target and process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.002)
        process.kill()
        process.communicate()
        assert not set(served.asked()) & {path for name in finished for path in of_shard[name]}
    process = served.start(out, workers)
    said, complaint = process.communicate()
    assert said == "done\n", complaint
    assert same(out, served.reference)
    assert served.media() == []
    assert not Journal(out).folder.exists()


def test_ctrl_c_stops_while_files_arrive_and_the_next_run_goes_on(served, faults, tmp_path):
    stalled = [path for path in sorted(served.world.files) if path.endswith(".flv")][-3:]
    for path in stalled:
        served.world.faults[path].append(faults["stall_after"](100))
    process = served.start(tmp_path / "out")
    while len(served.asked()) < 6 and process.poll() is None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.005)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)  # a stalled server would be waited for ten minutes
    assert process.returncode != 0
    served.world.faults.clear()
    served.prepare(tmp_path / "out", keep_sources=False)
    assert same(tmp_path / "out", served.reference)


def test_a_file_that_cannot_be_had_ends_the_run_and_the_next_one_goes_on(served, tmp_path):
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    broken = "/" + planned.jobs[1][1][0].video.path
    content = served.world.files.pop(broken)
    for workers in (0, 1):
        with pytest.raises(AvdataError, match="could not be downloaded"):
            served.prepare(tmp_path / "out", keep_sources=False, workers=workers)
    first = {"/" + one.video.path for one in planned.jobs[0][1]}
    served.world.files[broken] = content
    served.world.asked.clear()
    served.prepare(tmp_path / "out", keep_sources=False)
    assert not first & set(served.asked())
    assert same(tmp_path / "out", served.reference)


def test_a_wrong_file_on_disk_is_not_decoded_but_fetched_again(served, tmp_path):
    wrong = served.root / "VideoFlash" / sorted(path.name for path in served.folder.rglob("*.flv"))[0]
    wrong.parent.mkdir(parents=True)
    size = (served.folder / "VideoFlash" / wrong.name).stat().st_size
    wrong.write_bytes(b"x" * size)
    served.prepare(tmp_path / "out")
    assert same(tmp_path / "out", served.reference)


def test_a_limit_fetches_the_files_of_so_many_clips_and_nothing_else(served, tmp_path):
    settings = {**SETTINGS, "select": {"limit": 5, "seed": 3}}
    done = served.prepare(tmp_path / "out", config=settings)
    assert (done.samples, len(set(served.asked()))) == (5, 10)


def test_a_plan_fetches_no_media(served):
    planned = plan_preparation("cremad", manifest=served.manifest, config=SETTINGS)
    assert (len(planned.clips), served.asked()) == (14, [])


def test_a_finished_set_is_found_without_its_sources(served, tmp_path):
    served.prepare(tmp_path / "out", keep_sources=False)
    served.world.asked.clear()
    assert served.prepare(tmp_path / "out", keep_sources=False).samples == 14
    assert served.asked() == []


def test_a_set_of_a_folder_that_lacks_clips_is_not_the_whole_one(served, tmp_path):
    some = tmp_path / "some"
    for path in sorted(served.folder.rglob("1001*")):
        (some / path.parent.name).mkdir(parents=True, exist_ok=True)
        (some / path.parent.name / path.name).write_bytes(path.read_bytes())
    assert served.prepare(tmp_path / "out", source=some).samples < 14
    with pytest.raises(AvdataError, match="Source files changed"):
        served.prepare(tmp_path / "out")


def test_what_the_user_gave_is_never_removed(served, tmp_path):
    with pytest.raises(UsageError, match="were not downloaded"):
        avdata.prepare("cremad", source=served.folder, output=tmp_path / "out", keep_sources=False)


def test_proven_files_are_not_read_again_unless_told_so(cremad_mock, tmp_path, monkeypatch):
    from avdata.pipeline import validation as survey

    avdata.prepare("cremad", source=cremad_mock, output=tmp_path / "one", config=SETTINGS)
    read = []
    hash_file = survey.hash_file
    monkeypatch.setattr(survey, "hash_file", lambda path: (read.append(path), hash_file(path))[1])
    plan_preparation("cremad", source=cremad_mock, config=SETTINGS)
    assert read == []
    plan_preparation("cremad", source=cremad_mock, config=SETTINGS, rehash=True)
    assert len(read) == 28


@pytest.fixture(scope="session")
def ave_zip(once):
    """A small AVE as the authors pack it."""

    def make(folder):
        source = avdata.mock("ave", folder / "AVE_Dataset", clips=4)
        with zipfile.ZipFile(folder / "AVE_Dataset.zip", "w") as packed:
            for path in sorted(source.rglob("*")):
                packed.write(path, path.relative_to(source))

    return once("ave-zip", make) / "AVE_Dataset.zip"


def test_an_archive_can_be_given_as_the_source_and_stays_where_it_is(ave_zip, tmp_path):
    settings = {"video": {"size": 32}}
    done = avdata.prepare("ave", source=ave_zip, output=tmp_path / "packed", config=settings)
    avdata.prepare("ave", source=ave_zip.with_suffix(""), output=tmp_path / "open", config=settings)
    assert done.samples == 10
    assert same(tmp_path / "packed", tmp_path / "open")
    assert ave_zip.is_file()


def test_an_archive_that_was_downloaded_is_gone_in_the_end_when_sources_are_not_kept(
    serve, ave_zip, tmp_path, cache
):
    world = serve({"AVE_Dataset.zip": ave_zip.read_bytes()})
    facts = json.loads((ave_zip.with_suffix("") / "manifest.json").read_text())
    facts["sources"] = [{"name": "all", "urls": [world.url + "/AVE_Dataset.zip"], "unpack": "zip"}]
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
        assert done.samples == 10
        assert not (cache / "sources" / "ave").exists()
    assert len(world.asked) == 1
