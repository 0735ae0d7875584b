"""The scripts and the notebook of docs/examples run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
NOTEBOOK = json.loads((EXAMPLES / "quickstart.ipynb").read_text(encoding="utf-8"))

RUN_ALL = """
import runpy, sys

examples, data = sys.argv[1:]
for script in ("ddp.py", "lightning_trainer.py"):
    sys.argv = [script, data]
    runpy.run_path(f"{examples}/{script}", run_name="__main__")
"""

FINE_TUNE = """
import runpy, sys
import snnergy

examples, data = sys.argv[1:]
snnergy.train(data, "run", snnergy.TrainConfig(model="nano", steps=1, batch_size=8), device="cpu")
sys.argv = ["finetune.py", "run", data]
runpy.run_path(f"{examples}/finetune.py", run_name="__main__")
sys.argv = ["spikes.py", "run", data]
runpy.run_path(f"{examples}/spikes.py", run_name="__main__")
"""


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.pages
def test_scripts_run(synthetic_set: Path, tmp_path: Path) -> None:
    printed = run("-c", RUN_ALL, EXAMPLES, synthetic_set, cwd=tmp_path)
    assert "val_loss" in printed
    assert "epoch 1: loss" in printed


@pytest.mark.pages
def test_notebook_runs_in_a_kernel_of_jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbclient
    import nbformat

    for name, value in {**ENV, "IPYTHONDIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    printed = json.dumps(outputs)
    assert "epoch 1: loss" in printed
    assert "accuracy" in printed


@pytest.mark.exhaustive
def test_fine_tuning_and_spikes_run_on_a_trained_network(synthetic_set: Path, tmp_path: Path) -> None:
    assert "epoch 1: loss" in run("-c", FINE_TUNE, EXAMPLES, synthetic_set, cwd=tmp_path)
    assert (tmp_path / "spikes.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.exhaustive
def test_ddp_script_reads_each_sample_once_on_two_ranks(synthetic_set: Path, tmp_path: Path) -> None:
    import avdata

    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2)
    printed = run(*launcher, EXAMPLES / "ddp.py", synthetic_set, cwd=tmp_path)
    assert f"over {len(avdata.open(synthetic_set, 'train'))} samples" in printed


def test_notebook_is_valid_and_has_no_outputs() -> None:
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])
    cells = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_every_example_is_listed() -> None:
    page = (EXAMPLES / "index.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in {".py", ".ipynb"}}
    assert len(files) >= 4
    assert all(name in page for name in files)
