"""Export as NIR, read back by the library and run by an interpreter that shares no code with the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nir
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import snnergy
from avdata.errors import UsageError
from snnergy.models.export import export_nir


def pairs(value: Any) -> tuple[int, int]:
    first, second = (int(number) for number in value)
    return first, second


class Interpreter:
    """Run a NIR graph step by step in float64, by the definitions of its nodes: Euler with dt = 1."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        self.graph = graph
        self.inputs_of: dict[str, list[str]] = {name: [] for name in graph.nodes}
        for source, target in graph.edges:
            self.inputs_of[target].append(source)
        self.membranes: dict[str, Tensor] = {}

    def step(self, given: dict[str, Tensor]) -> Tensor:
        self.values = dict(given)
        return self._value("logits")

    def _value(self, name: str) -> Tensor:
        if name not in self.values:
            node = self.graph.nodes[name]
            if isinstance(node, nir.Input):
                self.values[name] = self._host(node)
            else:
                total = sum(self._value(source) for source in self.inputs_of[name])
                assert isinstance(total, Tensor)
                self.values[name] = self._apply(name, node, total)
        return self.values[name]

    def _host(self, node: nir.Input) -> Tensor:
        about, shape = node.metadata, node.output_type["output"].tolist()
        x = self._value(about["source"])
        if about["operation"] == "expand":
            return x.expand(shape)
        if about["operation"] == "adaptive_max_pool2d":
            return functional.adaptive_max_pool2d(x, shape[1:])
        assert about["operation"] == "max_pool2d"
        return functional.max_pool2d(x, *(int(about[name]) for name in ("kernel_size", "stride", "padding")))

    def _apply(self, name: str, node: Any, x: Tensor) -> Tensor:
        def tensor(field: str) -> Tensor:
            return torch.from_numpy(np.array(getattr(node, field))).double()

        match node:
            case nir.Conv2d():
                sizes = pairs(node.stride), pairs(node.padding), pairs(node.dilation), int(node.groups)
                x = functional.conv2d(x[None], tensor("weight"), tensor("bias"), *sizes)[0]
            case nir.SumPool2d():
                x = functional.avg_pool2d(x, pairs(node.kernel_size), divisor_override=1)
            case nir.AvgPool2d():
                x = functional.avg_pool2d(x, pairs(node.kernel_size))
            case nir.Flatten():
                x = x.flatten()
            case nir.Affine():
                x = tensor("weight") @ x + tensor("bias")
            case nir.Scale():
                x = x * tensor("scale")
            case nir.Threshold():
                x = (x > tensor("threshold")).double()
            case nir.LIF() | nir.IF():
                before = self.membranes.get(name, torch.zeros_like(x))
                change = tensor("r") * x
                if isinstance(node, nir.LIF):
                    change = (tensor("v_leak") - before + change) / tensor("tau")
                after = before + change
                x = (after > tensor("v_threshold")).double()
                self.membranes[name] = torch.where(x > 0, tensor("v_reset"), after)
            case _:
                assert isinstance(node, nir.Output)
        return x


def settled(**options: Any) -> snnergy.SNNergy:
    """Return a network in float64 whose norms, weights and α differ from the initial ones."""
    torch.manual_seed(0)
    sizes = {"dims": (4, 8, 8), "heads": (1, 2, 2), "num_classes": 3}
    model = snnergy.build("nano", **{**sizes, **options}).double()
    shapes = (3, 4, 1, 20, 33), (3, 4, 3, 24, 16)
    snnergy.recalibrate(model, [tuple(torch.randn(shape, dtype=torch.float64) for shape in shapes)])  # type: ignore[list-item]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("alpha"):
                weight.fill_(0.7)
            elif name.endswith("norm.bias") or name == "head.bias":
                weight.add_(0.2 * torch.randn_like(weight))
        for weight in model.parameters():  # as stored in the file
            weight.copy_(weight.float())
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"fusion": "sum", "neuron": "if", "sum_norm": "none", "readout": "rate", "rpe": True},
        {"branches": "o", "alpha_shape": "channel", "fusion_mlp": True, "head": "sum"},
        *(
            pytest.param(options, marks=pytest.mark.exhaustive)
            for options in (
                {"fusion": "audio"},
                {"fusion": "video", "neuron": "if"},
                {"fusion": "concat", "neuron": "plif", "tau": 3.0},
                {"residual": "sew", "fusion_output": "spike", "combine": "or"},
                {"combine": "sum", "query_source": "source", "tie_directions": True},
            )
        ),
    ],
    ids=str,
)
def test_nir_graph_read_back_has_the_logits_of_the_network(tmp_path: Path, options: dict[str, Any]) -> None:
    model = settled(**options)
    audio = torch.randn(3, 1, 1, 20, 33, dtype=torch.float64)
    video = torch.randn(3, 1, 3, 24, 16, dtype=torch.float64)
    graph = nir.read(export_nir(model, tmp_path / "model.nir", audio, video))
    run = Interpreter(graph)
    steps = [run.step({"audio": audio[t, 0], "video": video[t, 0]}) for t in range(3)]
    with torch.no_grad():
        expected = model(audio, video, per_step=True)[:, 0]
    assert expected.abs().max() > 1e-2
    assert (torch.stack(steps) - expected).abs().max() < 1e-5
    named = {name for name, node in graph.nodes.items() if isinstance(node, nir.Input) and not node.metadata}
    assert named == set(model.modalities)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"fusion": "film"}, "fusion=film"),
        ({"fusion": "probe"}, "fusion=probe"),
        ({"fusion": "cnn_audio"}, "ReLU"),
        ({"fusion": "ccssa"}, "CCSSA"),
        ({"stage3": "ssa"}, "stage3=ssa"),
        ({"reset": "soft"}, "reset=soft"),
    ],
)
def test_nir_export_names_the_part_that_nir_cannot_express(
    tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    model = snnergy.build("nano", dims=(4, 4, 4), heads=(1, 1, 1), **options).eval()
    with pytest.raises(UsageError, match=f"NIR cannot express .*{part}") as raised:
        export_nir(model, tmp_path / "model.nir", torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, 1, 3, 16, 16))
    assert "--format onnx" in str(raised.value)
    assert not list(tmp_path.iterdir())
