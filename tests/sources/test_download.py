"""Choice of files, plan, report and layout on disk of a download."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
from support.http_server import reply_status
from support.tiny_dataset import make_files, make_manifest, make_recipe

from avdata.errors import AvdataError, SourceError, UsageError
from avdata.manifest import Source
from avdata.sources.download import DownloadProgress, download
from avdata.sources.download_plan import DownloadPlan
from avdata.storage.atomic import DiskError


def test_download_writes_the_served_files(tiny):
    report = tiny.download()
    assert tiny.tree() == tiny.files
    assert report.fetched == 12
    assert report.received == sum(map(len, tiny.files.values()))
    assert report.failed_attempts == 0


def test_download_sends_no_request_if_all_files_are_present(tiny):
    tiny.download()
    tiny.server.requests.clear()
    report = tiny.download()
    assert tiny.server.requests == []
    assert (report.fetched, report.present) == (0, 12)


def test_download_reads_only_changed_files_again(tiny, monkeypatch):
    tiny.download()
    read = []
    monkeypatch.setattr(
        "avdata.sources.checksums.hash_file", lambda path, algorithm: read.append(path.name) or "sha256:0"
    )
    tiny.download()
    assert read == []
    changed = tiny.root / "wav/c0001.wav"
    content = changed.read_bytes()
    changed.unlink()
    changed.write_bytes(content)
    os.utime(changed, ns=(1, 1))
    tiny.download()
    assert read == ["c0001.wav"]


def test_download_replaces_changed_files_with_rehash(tiny):
    tiny.download()
    victim = tiny.root / "flv/c0002.flv"
    stat = victim.stat()
    victim.write_bytes(bytes(stat.st_size))
    os.utime(victim, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert tiny.download().fetched == 0
    report = tiny.download(rehash=True)
    assert (report.fetched, report.present) == (1, 11)
    assert tiny.tree() == tiny.files


def test_download_verifies_and_keeps_existing_files(tiny):
    path, content = next(iter(tiny.files.items()))
    (tiny.root / path).parent.mkdir(parents=True)
    (tiny.root / path).write_bytes(content)
    report = tiny.download()
    assert (report.fetched, report.present) == (11, 1)
    assert tiny.server.range_starts("/" + path) == []


def test_download_limit_fetches_only_the_files_of_chosen_clips(tiny):
    report = tiny.download(limit=3)
    stems = {Path(path).stem for path in tiny.tree()}
    assert len(stems) == 3
    assert report.fetched == 6
    assert set(tiny.tree().items()) <= set(tiny.files.items())


def test_download_split_fetches_only_its_clips(tiny):
    tiny.download(split="test")
    assert {Path(path).stem for path in tiny.tree()} == {"c0000", "c0005"}


def test_download_keys_fetch_only_their_clips(tiny):
    tiny.download(keys={"c0003"})
    assert set(tiny.tree()) == {"wav/c0003.wav", "flv/c0003.flv"}


def test_download_limit_does_not_count_excluded_clips(tiny):
    def listed(root, paths, split_by, usual=tiny.recipe.clips_from_paths):
        return [
            replace(clip, excluded="broken") if clip.key < "c0003" else clip
            for clip in usual(root, paths, "")
        ]

    tiny.recipe = make_recipe(clips_from_paths=listed)
    tiny.download(limit=3)
    assert {Path(path).stem for path in tiny.tree()} == {"c0003", "c0004", "c0005"}


def test_download_rejects_a_choice_without_clips(tiny):
    with pytest.raises(UsageError, match="No clip") as caught:
        tiny.download(split="validation")
    assert "test, train" in caught.value.hint


def test_download_fetches_the_files_of_a_clip_together(tiny):
    arrived = []
    tiny.download(connections=1, arrived=lambda path: arrived.append(path.stem))
    assert arrived == sorted(arrived)


def test_download_fetches_metadata_files_with_every_choice(tiny, serve, tmp_path):
    files = {**tiny.files, "labels.csv": b"a,b\n"}
    server = serve(files)
    manifest = make_manifest([Source(name="media", urls=(server.url + "/{path}",))], files)
    download(tiny.recipe, manifest=manifest, output=tmp_path / "r", limit=1, connections=1)
    assert server.requests[0].path == "/labels.csv"
    assert len(server.requests) == 3


def test_download_dry_run_returns_the_plan_and_changes_nothing(tiny):
    plan = tiny.download(dry_run=True)
    assert isinstance(plan, DownloadPlan)
    assert len(plan.files) == 12
    assert plan.bytes == sum(map(len, tiny.files.values()))
    assert plan.free > 0
    assert plan.license.id == "odbl"
    assert plan.sources == ("media",)
    assert plan.hosts == (tiny.server.url.removeprefix("http://"),)
    assert tiny.server.requests == []
    assert not tiny.root.exists()


def test_download_report_and_plan_have_a_short_repr(tiny):
    size = sum(map(len, tiny.files.values()))
    plan, report = tiny.download(dry_run=True), tiny.download()
    where = f"root={str(tiny.root)!r})"
    assert repr(plan) == f"DownloadPlan(tiny: 12 files to fetch, 0 present, {size:,} bytes, {where}"
    assert (
        repr(report) == f"DownloadReport(tiny: 12 files fetched, 0 present, {size:,} bytes received, {where}"
    )


def test_download_dry_run_counts_only_missing_files(tiny):
    tiny.download(limit=2)
    plan = tiny.download(dry_run=True)
    assert (len(plan.files), plan.present) == (8, 4)


def test_download_progress_grows_to_the_total(tiny):
    moments: list[DownloadProgress] = []
    tiny.download(progress=moments.append)
    total = sum(map(len, tiny.files.values()))
    host = tiny.server.url.removeprefix("http://")
    assert moments[-1] == DownloadProgress("fetching", 12, 12, total, total, host, 0)
    assert moments[-1].detail == f"12/12 files from {host}"
    done = [moment.bytes_done for moment in moments]
    assert done == sorted(done)


def test_download_keeps_the_bandwidth_limit(tiny):
    report = tiny.download(limit=6, bandwidth=60_000)
    assert report.seconds >= 0.8 * report.received / 60_000


def test_download_waits_for_a_slow_consumer(serve, tmp_path):
    files = make_files(200, size=200)
    server = serve(files)
    manifest = make_manifest([Source(name="media", urls=(server.url + "/{path}",))], files)
    ahead = []

    def use(path: Path) -> None:
        path.unlink()
        server.closing.wait(0.7 if not ahead else 0)
        ahead.append(len(server.requests) - len(ahead))

    download(make_recipe(), manifest=manifest, output=tmp_path / "r", connections=4, arrived=use)
    assert len(ahead) == 200
    assert max(ahead) <= 32 + 4 + 4


def test_download_tries_mirrors_in_order(tiny, serve):
    mirror = serve(tiny.files)
    tiny.server.files.pop("/wav/c0001.wav")
    source = Source(name="media", urls=(tiny.server.url + "/{path}", mirror.url + "/{path}"))
    tiny.manifest = make_manifest([source], tiny.files)
    tiny.download()
    assert tiny.tree() == tiny.files
    assert [request.path for request in mirror.requests] == ["/wav/c0001.wav"]
    assert [(line["path"], line["status"]) for line in tiny.log()] == [("wav/c0001.wav", 404)]


def test_download_skips_a_mirror_after_repeated_failures(serve, tmp_path):
    files = make_files(60, size=100)
    dead, alive = serve(), serve(files)
    source = Source(name="media", urls=(dead.url + "/{path}", alive.url + "/{path}"))
    download(make_recipe(), manifest=make_manifest([source], files), output=tmp_path / "r", connections=2)
    assert len(dead.requests) < 12


def test_download_names_the_cause_the_counts_and_examples_of_failed_files(tiny):
    missing = [f"wav/c000{number}.wav" for number in range(4)]
    for path in missing:
        del tiny.server.files["/" + path]
    host = tiny.server.url.removeprefix("http://")
    with pytest.raises(SourceError) as caught:
        tiny.download()
    assert re.fullmatch(
        rf"HTTP 404 Not Found \({host}\)\. 4 of 12 files of tiny could not be downloaded:"
        r"( wav/c000\d\.wav,){2} wav/c000\d\.wav and others\.",
        caught.value.message,
    )
    assert f"avdata download tiny --failed --output {tiny.root}\n" in caught.value.hint
    assert "attempts.jsonl" in caught.value.hint
    assert tiny.tree() == {path: data for path, data in tiny.files.items() if path not in missing}


def test_download_counts_each_cause_of_failed_files(tiny):
    del tiny.server.files["/wav/c0001.wav"]
    for path in ("flv/c0001.flv", "flv/c0002.flv"):
        tiny.server.faults["/" + path].append(reply_status(410))
    with pytest.raises(
        SourceError, match=r"^HTTP 410 Gone .*\(files: 2\); HTTP 404 .*\(files: 1\)\. 3 of 12"
    ):
        tiny.download()


def test_download_fetches_only_failed_files(tiny):
    contents = {path: tiny.server.files.pop("/" + path) for path in ("wav/c0001.wav", "flv/c0003.flv")}
    with pytest.raises(SourceError):
        tiny.download()
    (tiny.root / "wav/c0000.wav").unlink()
    tiny.server.files.update({"/" + path: content for path, content in contents.items()})
    tiny.server.requests.clear()
    assert tiny.download(failed=True).fetched == 2
    assert {request.path for request in tiny.server.requests} == {"/" + path for path in contents}
    with pytest.raises(UsageError, match="No failed files"):
        tiny.download(failed=True)


def test_download_may_leave_out_missing_files(tiny):
    del tiny.server.files["/wav/c0001.wav"]
    report = tiny.download(allow_missing=True)
    assert list(report.failed) == ["wav/c0001.wav"]
    assert "HTTP 404" in report.failed["wav/c0001.wav"]
    assert len(tiny.tree()) == 11


def test_download_locks_its_folder(tiny):
    def again(path: Path) -> None:
        with pytest.raises(SourceError, match="Another download is writing"):
            tiny.download()

    tiny.download(keys={"c0000"}, arrived=again)


def test_download_rejects_a_generated_dataset(tiny):
    tiny.recipe, tiny.manifest = make_recipe(generated=True), make_manifest([])
    with pytest.raises(UsageError, match="no sources"):
        tiny.download()


def test_download_rejects_paths_outside_the_folder(tiny):
    files = {"../evil": b"x"}
    tiny.manifest = make_manifest([Source(name="media", urls=(tiny.server.url + "/{path}",))], files)
    with pytest.raises(AvdataError, match="not below the dataset's folder"):
        tiny.download()


def test_download_checks_disk_space_before_fetching(tiny, monkeypatch):
    monkeypatch.setattr("avdata.sources.download_run.free_bytes", lambda folder: 1000)
    with pytest.raises(DiskError, match="1,000 free") as caught:
        tiny.download()
    assert tiny.server.requests == []
    assert "AVDATA_CACHE" in caught.value.hint


def test_download_writes_to_the_cache_by_default(tiny, cache):
    report = download(tiny.recipe, manifest=tiny.manifest)
    assert report.root == cache / "sources" / "tiny"


def test_download_skips_sources_of_other_split_schemes(tiny, serve):
    other = serve({"folds.csv": b"1"})
    media = tiny.manifest.sources[0]
    extra = Source(name="folds", urls=(other.url + "/folds.csv",), splits=("fold",))
    tiny.manifest = make_manifest([media, extra], tiny.files)
    tiny.recipe = make_recipe(splits={"official": "one", "fold:1": "two"})
    tiny.download()
    assert other.requests == []
    tiny.download(split_by="fold:1")
    assert (tiny.root / "folds.csv").read_bytes() == b"1"


def test_download_quotes_special_characters_in_paths(serve, tmp_path):
    files = {"wav/a b#c?d%20&é.wav": b"x" * 50, "wav/--12UOz.wav": b"y" * 50}
    server = serve(files)
    manifest = make_manifest([Source(name="media", urls=(server.url + "/{path}",))], files)
    download(make_recipe(clips_from_paths=None), manifest=manifest, output=tmp_path / "r")
    assert (tmp_path / "r" / "wav/a b#c?d%20&é.wav").read_bytes() == b"x" * 50


def test_attempt_log_states_time_url_and_error(tiny):
    tiny.server.faults["/wav/c0001.wav"].append(reply_status(503))
    tiny.download()
    (line,) = tiny.log()
    assert set(line) == {"time", "path", "url", "attempt", "status", "error", "wait"}
    assert (line["path"], line["url"]) == ("wav/c0001.wav", tiny.server.url + "/wav/c0001.wav")
    assert (line["attempt"], line["status"]) == (1, 503)
    assert "503" in line["error"]
    assert line["wait"] > 0


def test_download_fetches_split_lists_before_it_chooses_clips(tiny, serve):
    held_out = serve({"held_out.txt": b"c0002 c0004"})

    def by_list(root, paths, split_by, usual=tiny.recipe.clips_from_paths):
        path = root / "lists/held_out.txt"
        if not path.is_file():
            raise SourceError(f"{path} is needed")
        stems = path.read_text().split()
        return [
            replace(clip, split="test" if clip.key in stems else "train") for clip in usual(root, paths, "")
        ]

    lists = Source(name="lists", urls=(held_out.url + "/held_out.txt",), into="lists/")
    tiny.manifest = make_manifest([tiny.manifest.sources[0], lists], tiny.files)
    tiny.recipe = make_recipe(clips_from_paths=by_list)
    plan = tiny.download(dry_run=True, split="test")
    assert (len(plan.files), plan.partial) == (1, True)
    report = tiny.download(split="test")
    assert {Path(path).stem for path in tiny.tree()} == {"held_out", "c0002", "c0004"}
    assert report.fetched == 5
    assert report.received == sum(map(len, tiny.tree().values()))


def test_download_raises_the_recipes_error_about_a_list(tiny):
    def never(root, paths, split_by):
        raise SourceError("the list is not the published one")

    tiny.recipe = make_recipe(clips_from_paths=never)
    with pytest.raises(SourceError, match="not the published one"):
        tiny.download(split="test")
    tiny.download()
    assert tiny.tree() == tiny.files


def test_download_plan_of_cremad_needs_no_files_on_disk(tmp_path):
    plan = download("cremad", output=tmp_path / "r", limit=100, dry_run=True)
    assert len(plan.files) == 200
    assert len({Path(request.path).stem for request in plan.files}) == 100
    complete = download("cremad", output=tmp_path / "r", dry_run=True)
    assert (len(complete.files), complete.bytes) == (14_884, 3_048_921_077)
    assert complete.files[0].path.split("/")[1][:-4] == complete.files[1].path.split("/")[1][:-4]


def test_source_dir_lock_is_released_although_a_fork_has_the_file_open(tmp_path, monkeypatch):
    import fcntl

    from avdata.sources.source_dir import lock_source_dir

    copies = []
    flock = fcntl.flock

    def copying(file, how):
        flock(file, how)
        if how & fcntl.LOCK_EX:
            # What a fork does between its start and its exec.
            copies.append(os.dup(file))

    monkeypatch.setattr(fcntl, "flock", copying)
    for _ in range(2):
        with lock_source_dir(tmp_path):
            pass
    for copy in copies:
        os.close(copy)


def test_download_checks_single_files_before_it_fetches_other_sources(tiny):
    """The archive is refused, for example without a login: no other file is fetched."""
    media = tiny.manifest.sources[0]
    archive = Source(name="archive", urls=(tiny.server.url + "/none.zip",), unpack="zip", bytes=10**9)
    tiny.manifest = make_manifest([media, archive], tiny.files)
    with pytest.raises(SourceError, match=r"^HTTP 404 .*1 of 13 files"):
        tiny.download()
    assert [request.path for request in tiny.server.requests] == ["/none.zip"]
    tiny.server.files["/none.zip"] = b"PK"
    with pytest.raises(SourceError, match="2 bytes on the server"):
        tiny.download()
    assert tiny.tree() == tiny.files
