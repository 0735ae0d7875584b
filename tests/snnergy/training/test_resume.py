from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from avdata.errors import AvdataError, UsageError
from snnergy.training.checkpoint import (
    RUN_FILE,
    RUN_FILES,
    check_run_folder,
    load,
    save,
    write_json,
)
from snnergy.training.config import TrainConfig
from snnergy.training.evaluation import evaluate
from snnergy.training.trainer import train

Quick = Callable[..., TrainConfig]


class Killed(Exception):
    """Simulated kill: the trainer neither catches it nor cleans up."""


def killed_at(step: int) -> Callable[[str, int, int], None]:
    def progress(stage: str, done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load((run / "last.ckpt").read_bytes(), run)["network"])


ALL_AT_ONCE: dict[str, Any] = {
    "mixup": 0.3, "label_smoothing": 0.1, "ema": 0.9, "accumulate": 2, "workers": 1, "ogm_ge": 0.8,
    "augment": {"bands": 0.25, "columns": 0.1, "flip": 0.5, "rotate": 5.0, "jitter": 0.2, "shift": 1},
}  # fmt: skip


def test_resume_gives_same_weights_and_log(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    config = quick(steps=8, save_every=2, eval_every=1, **ALL_AT_ONCE)
    whole = train(tiny_set, tmp_path / "whole", config, device="cpu")
    # Four steps an epoch: killed before the first checkpoint, and one step after that of step 6, in the
    # middle of the second epoch.
    parts = tmp_path / "parts"
    with pytest.raises(Killed):
        train(tiny_set, parts, config, device="cpu", progress=killed_at(1))
    with pytest.raises(Killed):
        train(tiny_set, parts, config, device="cpu", progress=killed_at(7), resume=True)
    resumed = train(tiny_set, parts, device="cpu", resume=True)
    assert (parts / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    ours, theirs = weights(parts), weights(tmp_path / "whole")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert resumed["test"] == whole["test"]


def test_resume_evaluates_epoch_whose_last_step_has_fewer_parts(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 32 samples, ten a step in two parts of five: the fourth step is of one part.
    config = quick(steps=5, batch_size=10, accumulate=2, save_every=1, eval_every=1)
    train(tiny_set, tmp_path / "whole", config, device="cpu")

    def killed(*given: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("snnergy.training.run_data.recalibrate_batch_norm", killed)
        with pytest.raises(Killed):
            train(tiny_set, tmp_path / "parts", config, device="cpu")
    train(tiny_set, tmp_path / "parts", device="cpu", resume=True)
    ours, theirs = ((tmp_path / name / "metrics.csv").read_text() for name in ("parts", "whole"))
    assert ours == theirs


@pytest.mark.usefixtures("charts")
def test_resume_after_kill_during_plots(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*given: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("snnergy.training.run_result.plot_confusion", killed)
        with pytest.raises(Killed):
            train(tiny_set, tmp_path, quick(steps=1), device="cpu")
    train(tiny_set, tmp_path, device="cpu", resume=True)
    assert (tmp_path / "confusion.png").is_file()
    assert (tmp_path / "result.json").is_file()


def test_checkpoint_for_resume_is_within_an_epoch(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(Killed):
        train(tiny_set, tmp_path, quick(save_every=2), device="cpu", progress=killed_at(3))
    state = load((tmp_path / "last.ckpt").read_bytes(), "last.ckpt")
    assert (state["step"], state["loader"]["epoch"], state["loader"]["samples"]) == (2, 0, 16)
    assert not state["calibrated"]


def test_evaluate_recalibrates_checkpoint_saved_within_epoch(
    tiny_set: Path, tmp_path: Path, quick: Quick
) -> None:
    with pytest.raises(Killed):
        train(tiny_set, tmp_path / "run", quick(save_every=2), device="cpu", progress=killed_at(3))
    state = load((tmp_path / "run" / "last.ckpt").read_bytes(), "last.ckpt")
    found = evaluate(tmp_path / "run" / "last.ckpt", tiny_set, device="cpu")
    # Other statistics of the batch norms in the file are of no consequence.
    for name, value in state["network"].items():
        if name.endswith("running_mean"):
            value.fill_(7.0)
    torch.save(state, tmp_path / "run" / "last.ckpt")
    assert evaluate(tmp_path / "run" / "last.ckpt", tiny_set, device="cpu") == found


def test_resume_rejects_other_settings_and_keeps_run(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(Killed):
        train(tiny_set, tmp_path, quick(save_every=1), device="cpu", progress=killed_at(2))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.is_file()}
    with pytest.raises(UsageError, match=r"Settings differ .* steps is 4, requested 9"):
        train(tiny_set, tmp_path, quick(save_every=1, steps=9), device="cpu", resume=True)
    with pytest.raises(AvdataError, match="unfinished run"):
        train(tiny_set, tmp_path, quick(save_every=1), device="cpu")
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*") if path.is_file()} == before


def test_resume_refuses_another_batch_norm_size(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(Killed):
        train(tiny_set, tmp_path, quick(save_every=1), device="cpu", progress=killed_at(2))
    with pytest.raises(UsageError, match=r"see 8 samples .* requested 4 ") as raised:
        train(tiny_set, tmp_path, quick(save_every=1, accumulate=2), device="cpu", resume=True)
    assert raised.value.hint == "Add --set accumulate=1"


@pytest.mark.parametrize(
    ("processes", "accumulate", "hint"),
    [
        (1, 4, None),
        (2, 2, None),
        (4, 1, None),
        (1, 1, "--set accumulate=4"),
        (8, 1, "Resume with 4 processes"),
    ],
)
def test_resume_on_other_processes_needs_equal_batch_norm_size(
    tmp_path: Path, quick: Quick, processes: int, accumulate: int, hint: str | None
) -> None:
    config = quick(batch_size=64)
    groups: dict[str, Any] = {"audio": {}, "video": {}, "align": {}}
    facts = {"labels": [], "mel_stats": None, "has_frames": True, **groups}
    settings = {"config": config.model_dump(mode="json"), "model": {}, "dataset": "set", "facts": facts}
    settings["processes"] = 4
    write_json(tmp_path / "run.json", settings)
    wanted = config.model_copy(update={"accumulate": accumulate})
    if hint is None:
        check_run_folder(tmp_path, wanted, resume=True, processes=processes)
        return
    with pytest.raises(UsageError, match="Batch norms of the run") as raised:
        check_run_folder(tmp_path, wanted, resume=True, processes=processes)
    assert hint in str(raised.value.hint)


def test_save_on_full_disk_keeps_previous_checkpoint_and_hints_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "last.ckpt", {"step": 1})
    whole = (tmp_path / "last.ckpt").read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("avdata.pipeline.journal.os.fsync", full)
    with pytest.raises(AvdataError, match="The disk is full") as raised:
        save(tmp_path / "last.ckpt", {"step": 2})
    assert "--resume" in str(raised.value.hint)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"last.ckpt": whole}


def test_resume_raises_without_run(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(AvdataError, match="No run to resume"):
        train(tiny_set, tmp_path / "nowhere", quick(), device="cpu", resume=True)


@pytest.mark.parametrize("name", [*RUN_FILES, "dataset.json"])
def test_training_refuses_a_folder_with_files_that_it_would_replace(
    name: str, tmp_path: Path, quick: Quick
) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(AvdataError, match=f"holds no run, but {re.escape(name)}"):
        check_run_folder(tmp_path, quick(), resume=False)
    assert (tmp_path / name).read_text() == "mine"


def test_training_leaves_other_files_of_its_folder(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    train(tiny_set, tmp_path, quick(), device="cpu")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    written = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert written - {"notes.txt", RUN_FILE} <= set(RUN_FILES)
    assert {"best.ckpt", "result.json", "predictions.csv"} < written


def test_load_names_truncated_checkpoint(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    with pytest.raises(Killed):
        train(tiny_set, tmp_path, quick(save_every=1), device="cpu", progress=killed_at(2))
    whole = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "last.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AvdataError, match=r"Cannot read checkpoint .*last\.ckpt"):
        train(tiny_set, tmp_path, device="cpu", resume=True)


def test_load_does_not_execute_pickled_code(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, tuple[str]]:
            return (Path.touch, (tmp_path / "sprung",))  # type: ignore[return-value]

    torch.save({"format": 2, "trap": Trap()}, tmp_path / "last.ckpt")
    with pytest.raises(AvdataError, match="Cannot read"):
        load((tmp_path / "last.ckpt").read_bytes(), "last.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_config_json_contains_resolved_settings(tiny_set: Path, tmp_path: Path, quick: Quick) -> None:
    config = quick(steps=1)
    train(tiny_set, tmp_path / "run", config, device="cpu")
    said = json.loads((tmp_path / "run" / "run.json").read_text())
    assert TrainConfig.model_validate(said["config"]) == config


def test_resume_without_checkpoint_says_so(
    tiny_set: Path, tmp_path: Path, quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Killed):
        train(tiny_set, tmp_path, quick(steps=2), device="cpu", progress=killed_at(1))
    assert not (tmp_path / "last.ckpt").exists()
    train(tiny_set, tmp_path, device="cpu", resume=True)
    assert f"No checkpoint to resume in {tmp_path}: training starts from step 0." in caplog.text


def test_checkpoint_is_written_after_some_minutes(
    tiny_set: Path, tmp_path: Path, quick: Quick, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("snnergy.training.loop.time.monotonic", lambda: clock[0])

    def wait(stage: str, done: int, total: int) -> None:
        clock[0] += 120
        if done == 4:
            raise Killed

    with pytest.raises(Killed):
        train(tiny_set, tmp_path, quick(steps=9, batch_size=4), device="cpu", progress=wait)
    # Two minutes a step: after five minutes comes the third step.
    assert load((tmp_path / "last.ckpt").read_bytes(), "last.ckpt")["step"] == 3
