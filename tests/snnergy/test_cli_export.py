"""`snnergy export` of a trained run, read by the libraries of the formats."""

from __future__ import annotations

import json
from pathlib import Path

import nir
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

import avdata
from snnergy.cli import app
from snnergy.training.checkpoint import load_network


def exported(run: Path, output: Path, *words: str) -> dict[str, list[int]]:
    """Return the shapes of the inputs that the command prints."""
    done = CliRunner().invoke(
        app, ["export", str(run), "--output", str(output), "--json", *words], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["path"] == str(output)
    return dict(json.loads(done.stdout)["inputs"])


def test_export_writes_a_run_as_nir(tiny_run: Path, tmp_path: Path) -> None:
    shapes = exported(tiny_run, tmp_path / "run.nir", "--format", "nir")
    graph = nir.read(tmp_path / "run.nir")
    assert {name: graph.nodes[name].output_type["output"].tolist() for name in shapes} == shapes
    labels = load_network(tiny_run / "best.ckpt")[0].dataset.labels  # type: ignore[union-attr]
    assert graph.output_type["logits"].tolist() == [len(labels)]
    words = ["export", str(tiny_run), "--format", "nir", "--batch-size", "2"]
    refused = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "two.nir")])
    assert "no batch axis" in str(refused.exception)
    assert not (tmp_path / "two.nir").exists()


# The export has thousands of nodes, and takes 45 s of CPU.
@pytest.mark.exhaustive
def test_export_writes_a_run_as_onnx_with_its_logits(tiny_run: Path, tiny_set: Path, tmp_path: Path) -> None:
    network = load_network(tiny_run / "best.ckpt")[0]
    arguments = network.preprocess(next(iter(avdata.open(tiny_set, "test").loader(4, num_workers=0))))
    inputs = {
        name: tensor
        for name, tensor in arguments.items()
        if name in {"audio", "video"} and tensor is not None
    }
    shapes = exported(tiny_run, tmp_path / "run.onnx", "--format", "onnx", "--batch-size", "4")
    assert shapes == {name: list(tensor.shape) for name, tensor in inputs.items()}
    session = onnxruntime.InferenceSession(tmp_path / "run.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(logits), network(**arguments), atol=1e-4)
