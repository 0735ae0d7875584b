"""Damaged datasets: every reader ends with one sentence. `benchmarks/fuzz_sets.py` tries thousands."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.damaged_sets import (
    MEMBERS,
    MUTATIONS,
    READERS,
    copy_set,
    declared,
    jpeg,
    json_paths,
    mutate_bytes,
    png,
    replace_member,
)

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.pipeline import prepare as preparation
from avdata.pipeline.journal import Journal
from avdata.shards.dataset_info import parse_info
from avdata.shards.members import (
    check_strip,
    decode_frames,
    decode_label,
    decode_mel,
    decode_metadata,
    decode_npy,
    parse_metadata,
    read_members,
)
from avdata.shards.reader import read_index, read_info

SETTINGS = {
    "audio": {"n_mels": 16, "hop_length": 320},
    "video": {"size": 32, "storage": "jpeg"},
    "shards": {"samples_per_shard": 5},
}


def prepare(source: Path, output: Path) -> None:
    avdata.prepare("synthetic", source=source, output=output, config=SETTINGS, workers=0)


@pytest.fixture(scope="session")
def small_source(once: Callable[..., Path]) -> Path:
    return once("small-mock", lambda out: avdata.mock("synthetic", out, clips=16))


@pytest.fixture(scope="session")
def small_set(small_source: Path, once: Callable[..., Path]) -> Path:
    return once("small", lambda out: prepare(small_source, out))


@pytest.fixture(autouse=True)
def _limit() -> Iterator[None]:
    """A reader that takes 60 s of CPU time hangs, or one that waits for 300 s."""

    def hang(number: int, frame: object) -> None:
        raise TimeoutError

    limits = {signal.SIGPROF: (signal.ITIMER_PROF, 60), signal.SIGALRM: (signal.ITIMER_REAL, 300)}
    before = {number: signal.signal(number, hang) for number in limits}
    for timer, seconds in limits.values():
        signal.setitimer(timer, seconds)
    yield
    for timer, _ in limits.values():
        signal.setitimer(timer, 0)
    for number, handler in before.items():
        signal.signal(number, handler)


def error_of(action: Callable[[], object]) -> AvdataError | None:
    """Run a function and return the error that it may raise."""
    try:
        action()
    except AvdataError as error:
        return error
    return None


def check_readers(root: Path, names: tuple[str, ...]) -> None:
    for name in names:
        error = error_of(lambda name=name: READERS[name](root))
        if error is not None:
            assert "\n" not in error.message
            # A split that dataset.json no longer lists was asked for.
            assert not isinstance(error, UsageError) or error.message.startswith("Unknown split")


@pytest.mark.parametrize("kind", MUTATIONS)
def test_every_reader_reports_damage_in_one_sentence(kind: str, small_set: Path, tmp_path: Path) -> None:
    root = copy_set(small_set, tmp_path / "set")
    MUTATIONS[kind](root, random.Random(1))
    check_readers(root, ("verify", "loader", "inspect", "export"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("kind", MUTATIONS)
def test_every_reader_reports_more_damage_in_one_sentence(
    kind: str, seed: int, small_set: Path, tmp_path: Path
) -> None:
    root = copy_set(small_set, tmp_path / "set")
    MUTATIONS[kind](root, random.Random(seed))
    check_readers(root, tuple(READERS))


@pytest.fixture(scope="module")
def sample(small_set: Path) -> dict[str, memoryview]:
    row = read_index(small_set).to_pylist()[0]
    return dict(read_members((small_set / row["shard"]).read_bytes()[row["offset"] :][: row["nbytes"]]))


@pytest.mark.parametrize("number", range(len(MEMBERS)))
def test_a_hostile_member_is_refused(number: int, sample: dict[str, memoryview], info: dict) -> None:
    name, change = MEMBERS[number]
    content, shape = change(bytes(sample.get(name, b""))), info["shape"]
    members = {key: view for key, view in sample.items() if key != name}
    members |= {} if content is None else {name: memoryview(content)}

    def check() -> None:
        """Do what `verify` does with a sample."""
        decode_label(members)
        decode_frames(members, shape["frames"])
        metadata, mel = decode_metadata(members, shape["mel"][0]), decode_mel(members, shape["mel"])
        if metadata.get("key") is None or not np.isfinite(mel).all() or set(members) != set(sample):
            raise AvdataError("refused by verify")

    assert error_of(check) is not None


@pytest.mark.parametrize("name", ["mel.npy", "frames.jpg", "json", "cls", "pickle"])
def test_verify_and_loader_report_a_hostile_member(name: str, small_set: Path, tmp_path: Path) -> None:
    root = copy_set(small_set, tmp_path / "set")
    (shard, *_) = sorted(path.relative_to(root).as_posix() for path in root.glob("val/*.tar"))
    replace_member(root, shard, name, next(change for member, change in MEMBERS if member == name))
    assert not avdata.verify(root).ok
    error = error_of(lambda: list(avdata.open(root, "val").loader(3, num_workers=0)))
    assert (error is not None) == (name in ("mel.npy", "frames.jpg"))  # the index holds the label


def test_report_lists_damage(small_set: Path, tmp_path: Path) -> None:
    root = copy_set(small_set, tmp_path / "set")
    (shard, *_) = sorted(path.relative_to(root).as_posix() for path in root.glob("train/*.tar"))
    replace_member(root, shard, "json", lambda _: b"[1]")
    page = avdata.report(root, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "json is not an object" in page


@pytest.fixture(scope="module")
def info(small_set: Path) -> dict:
    return json.loads((small_set / "dataset.json").read_bytes())


def test_parse_info_returns_what_was_written(info: dict, small_set: Path) -> None:
    assert read_info(small_set) == info


def test_parse_info_refuses_every_missing_or_wrong_field(info: dict) -> None:
    """A removed setting has its default, which changes no shape here; all else is required."""
    optional = ("config", "index", "mel_sums", "source", "license.link")
    for path in json_paths(info):
        where = ".".join(map(str, path))
        changed = json.loads(json.dumps(info))
        parent = changed
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = ["?"] if isinstance(parent[path[-1]], dict) else {"?": -1}
        if not where.startswith(("extras", "config.select.task_options", "source.commit")):
            with pytest.raises(AvdataError, match=r"in set|of set"):
                parse_info(json.dumps(changed).encode(), "set")
        if isinstance(parent, dict) and not where.startswith((*optional, "extras", "label_orders")):
            del parent[path[-1]]
            if len(path) == 1 or path[0] in ("recipe", "shape", "mel_stats"):
                with pytest.raises(AvdataError, match=r"in set|of set"):
                    parse_info(json.dumps(changed).encode(), "set")


@pytest.mark.parametrize("value", [b'"\\ud800"', b'"\xed\xa0\x80"', b"1e400", b"NaN", b"[" * 40 + b"]" * 40])
@pytest.mark.parametrize("field", ["title", "new"])
def test_parse_info_refuses_what_no_file_can_hold(field: str, value: bytes, info: dict) -> None:
    text = json.dumps(info).encode()[:-1] + b', "%s": %s}' % (field.encode(), value)
    with pytest.raises(AvdataError, match=r"set cannot be read"):
        parse_info(text, "set")


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")], ids=["pipe", "device"]
)
def test_readers_refuse_a_pipe_or_device(
    make: Callable[[Path], None], small_set: Path, tmp_path: Path
) -> None:
    """The limit of this file ends a reader that waits for data, or reads without end."""
    shard = next(small_set.glob("train/*.tar")).relative_to(small_set)
    for name in ("dataset.json", "index.parquet", "quarantine.parquet", shard):
        root = copy_set(small_set, tmp_path / "set")
        (root / name).unlink()
        make(root / name)
        names = ("verify", "loader") if name == shard else ("verify",)
        for reader in names:
            result = error_of(lambda reader=reader, root=root: READERS[reader](root))
            assert result is not None or not READERS["verify"](root).ok


def test_parse_info_fills_in_settings_of_a_newer_version_and_keeps_unknown_ones(info: dict) -> None:
    changed = json.loads(json.dumps(info))
    del changed["config"]["quality"]["timeout"]
    changed["config"]["video"]["stabilize"] = True
    changed["new"] = 1
    parsed = parse_info(json.dumps(changed).encode(), "set")
    assert parsed["config"]["quality"]["timeout"] == 120.0
    assert parsed["config"]["video"]["stabilize"] is True
    assert parsed["new"] == 1


@given(st.binary(max_size=300))
def test_decoders_of_members_refuse_any_bytes(data: bytes) -> None:
    for decode in (
        lambda: decode_npy(memoryview(data)),
        lambda: decode_npy(memoryview(b"\x93NUMPY\x01\x00" + data)),
        lambda: parse_metadata(data, 4),
        lambda: check_strip({"frames.jpg": memoryview(data)}, (1, 8, 8, 3)),
        lambda: check_strip({"frames.jpg": memoryview(b"\xff\xd8\xff" + data)}, (1, 8, 8, 3)),
        lambda: check_strip({"frames.png": memoryview(png(8, 8)[:16] + data)}, (1, 8, 8, 3)),
    ):
        error_of(decode)  # any other exception fails the test


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_check_strip_reads_the_size_that_pillow_reads(mode: str, kind: str, tmp_path: Path) -> None:
    name = "frames.jpg" if kind == "JPEG" else "frames.png"
    Image.new(mode, (24, 8)).save(tmp_path / name, kind)
    members = {name: memoryview((tmp_path / name).read_bytes())}
    shape = (3, 8, 8, 3 if mode == "RGB" else 1)
    assert check_strip(members, shape) == name
    assert decode_frames(members, shape).shape == shape
    with pytest.raises(AvdataError, match="has the shape"):
        check_strip(members, (2, 8, 8, shape[3]))


def test_a_strip_larger_than_declared_is_refused_before_it_is_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    for data in (jpeg(10_000, 1000), declared(jpeg(8, 8), 65_000, 65_000), jpeg(8, 8, progressive=True)):
        with pytest.raises(AvdataError, match=r"frames\.jpg"):
            decode_frames({"frames.jpg": memoryview(data)}, (1, 8, 8, 3))


def test_decode_npy_reads_what_numpy_writes(tmp_path: Path) -> None:
    for array in (
        np.arange(24, dtype=np.float16).reshape(2, 3, 4),
        np.zeros((0, 3), np.uint8),
        np.float32(3),
    ):
        np.save(tmp_path / "a.npy", array)
        assert np.array_equal(decode_npy(memoryview((tmp_path / "a.npy").read_bytes())), array)


@pytest.fixture(scope="session")
def stopped_set(small_source: Path, once: Callable[..., Path]) -> Path:
    """A preparation that ended after its last shard."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def stop(out: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(preparation, "finalize_dataset", interrupt)
            with pytest.raises(KeyboardInterrupt):
                prepare(small_source, out)

    return once("small-stopped", stop)


@pytest.mark.parametrize("seed", range(2))
def test_a_damaged_journal_entry_is_prepared_again(
    seed: int, stopped_set: Path, small_set: Path, small_source: Path, tmp_path: Path
) -> None:
    root, rng = copy_set(stopped_set, tmp_path / "set"), random.Random(seed)
    path = rng.choice(sorted((root / ".avdata" / "done").iterdir()))
    path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    prepare(small_source, root)
    assert (root / "dataset.json").read_bytes() == (small_set / "dataset.json").read_bytes()


def test_a_damaged_plan_is_one_sentence_and_overwritten_on_request(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.write_plan({"name": "a"})
    assert journal.read_plan() == {"name": "a"}
    (tmp_path / ".avdata" / "plan.json").write_bytes(b"{}")
    with pytest.raises(AvdataError, match=r"plan\.json is damaged") as caught:
        journal.read_plan()
    assert "--overwrite" in str(caught.value.hint)
