"""Tables of the paper's protocol, and trainings on several GPUs, without GPUs."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.tiny_run import SMALL_PICTURES, TINY
from typer.testing import CliRunner

from avdata.errors import AvdataError, UsageError
from avdata.interrupts import Terminated, handle_interrupts
from avdata.recipe import load_recipe
from snnergy.analysis import parallel_runs, reproduction
from snnergy.analysis.parallel_runs import Job, gpu_names, train_command, train_on_gpus
from snnergy.analysis.protocols import PROTOCOLS, Protocol
from snnergy.analysis.reproduction import reproduce, training_flops
from snnergy.cli import app
from snnergy.data import open_split
from snnergy.models.network import build
from snnergy.training.config import TrainConfig, resolve_config

Quick = Callable[..., TrainConfig]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocol_names_a_recipe_and_valid_settings(name: str) -> None:
    protocol = PROTOCOLS[name]
    scheme = protocol.preparation["select"]["split_by"]
    assert scheme in load_recipe(protocol.recipe).splits
    assert resolve_config(None, protocol.training).epochs == 200


def test_reproduce_writes_the_table_and_repeats_no_training(
    synthetic_mock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"train_preset": "quick", "model": "nano", "model_options": TINY, "steps": 1, "batch_size": 8}
    protocol = Protocol("synthetic", "snnergy", SMALL_PICTURES, {**training, "threads": 1}, 50.0)
    monkeypatch.setitem(reproduction.PROTOCOLS, "tiny", replace(protocol, fusions=("audio",), seeds=2))
    first = reproduce("tiny", tmp_path, source=synthetic_mock, device="cpu")
    assert [(row.fusion, len(row.accuracy)) for row in first] == [("audio", 2)]
    assert "| audio |" in (tmp_path / "table.md").read_text()

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("snnergy.analysis.comparison.train", refuse)
    assert reproduce("tiny", tmp_path, source=synthetic_mock, device="cpu")[0].accuracy == first[0].accuracy


def test_reproduce_refuses_a_source_for_generated_media(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="generates its own source files"):
        reproduce("cremad", tmp_path, source=tmp_path, smoke=True)
    with pytest.raises(UsageError, match="Unknown protocol 'crema'"):
        reproduce("crema", tmp_path)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PROTOCOLS)
def test_smoke_runs_all_parts(name: str, tmp_path: Path) -> None:
    words = ["reproduce", name, "--smoke", "--output", str(tmp_path), "--device", "cpu", "--json"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert [row["fusion"] for row in json.loads(done.stdout)] == list(PROTOCOLS[name].fusions)


def test_training_flops_are_those_of_torch(tiny_set: Path, quick: Quick) -> None:
    """Against torch's own counter, which also counts the elementwise products of no layer."""
    from torch.utils.flop_counter import FlopCounterMode

    config = quick(steps=None, epochs=3, fusion="concat")
    data = open_split(tiny_set, "train", rank=0, world_size=1)
    sample = next(iter(data.loader(1, num_workers=0)))
    network = build("nano", num_classes=2, fusion="concat", **{k: tuple(v) for k, v in TINY.items()}).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(sample.mel.transpose(0, 1), sample.frames.transpose(0, 1).float())
    expected = 3 * counter.get_total_flops() * 3 * data.num_samples
    assert training_flops(tiny_set, config) == pytest.approx(expected, rel=0.1)


def test_train_command_resumes_a_run_that_has_begun(tmp_path: Path, quick: Quick) -> None:
    job = Job("set", tmp_path / "cmqka-seed42", quick(fusion="cmqka"))
    words = train_command(job)
    assert words[1:5] == ["-P", "-m", "snnergy", "train"]
    settings = json.loads(Path(words[words.index("--config") + 1]).read_text())
    assert TrainConfig.model_validate(settings) == job.config
    assert "--resume" not in words
    job.run.mkdir()
    (job.run / "run.json").write_text("{}")
    assert "--resume" in train_command(job)


def test_gpu_names_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7")
    assert gpu_names(2) == ["4", "GPU-7"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert gpu_names(2) == ["0", "1"]


WAIT_FOR_ANOTHER = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / f"{sys.argv[2]}.{os.environ['CUDA_VISIBLE_DEVICES']}").touch()
while len({path.suffix for path in folder.glob('job*')}) < 2:
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_runs, "POLL_S", 0.01)


def test_each_gpu_runs_one_training_at_a_time(tmp_path: Path, quick: Quick) -> None:
    """The first two end only if both run at once, on different GPUs."""
    jobs = [Job("set", tmp_path / f"job{number}", quick()) for number in range(3)]
    done: list[tuple[int, int]] = []
    train_on_gpus(
        jobs, ["a", "b"], progress=lambda *counts: done.append(counts),
        command=lambda job: [sys.executable, "-c", WAIT_FOR_ANOTHER, str(tmp_path), job.run.name],
    )  # fmt: skip
    assert done[-1] == (3, 3)
    assert {path.name.split(".")[0] for path in tmp_path.glob("job?.[ab]")} == {"job0", "job1", "job2"}


def test_failed_training_is_named_and_ends_the_others(tmp_path: Path, quick: Quick) -> None:
    fails = "import sys; sys.exit('error: Non-finite value at step 3')"
    waits = "import time; time.sleep(600)"
    jobs = [Job("set", tmp_path / name, quick()) for name in ("waits", "fails")]
    code = {"waits": waits, "fails": fails}
    with pytest.raises(AvdataError, match="Training fails failed: Non-finite value at step 3") as raised:
        train_on_gpus(jobs, ["0", "1"], command=lambda job: [sys.executable, "-c", code[job.run.name]])
    assert str(tmp_path / "fails.log") in str(raised.value.hint)


def test_signal_ends_the_trainings(tmp_path: Path, quick: Quick) -> None:
    """The child reports SIGTERM to this process's log, as a training that saves itself."""
    stops = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *given: sys.exit('saved'))\n"
        f"os.kill({os.getpid()}, signal.SIGTERM)\nsignal.pause()"
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), handle_interrupts():
        train_on_gpus(
            [Job("set", tmp_path / "job", quick())], ["0"], command=lambda job: [sys.executable, "-c", stops]
        )
    assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "job.log").read_text() == "saved\n"
