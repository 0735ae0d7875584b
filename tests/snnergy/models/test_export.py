from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import avdata
import snnergy
from avdata.errors import UsageError
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.export import export_graph, export_network, export_onnx, fold_batch_norm


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 4, 1, 16, 24, dtype=dtype), torch.randn(2, 4, 3, 24, 16, dtype=dtype)


def settled(dtype: torch.dtype = torch.float64, **options: object) -> snnergy.SNNergy:
    torch.manual_seed(0)
    model = snnergy.build("nano", num_classes=3, **options).to(dtype)
    snnergy.recalibrate(model, [inputs(dtype)])
    for name, weight in model.named_parameters():
        if name.endswith("alpha"):
            weight.data.fill_(0.7)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [{}, {"readout": "rate"}, {"alpha_shape": "channel"}, {"tie_directions": True}, {"residual": "sew"}],
    ids=str,
)
def test_fold_batch_norm_keeps_logits(options: dict[str, object]) -> None:
    model = settled(**options)
    given = inputs()
    folded = fold_batch_norm(model)
    with torch.no_grad():
        assert (model(*given) - folded(*given)).abs().max() < 1e-10
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    alphas = [weight for name, weight in folded.named_parameters() if name.endswith("alpha")]
    expected = 0.7 if options.get("residual") == "sew" else 1.0
    assert all((alpha == expected).all() for alpha in alphas)
    assert any(isinstance(part, nn.BatchNorm2d) for part in model.modules())


def test_export_graph_keeps_logits() -> None:
    model = settled(fusion_stages=(2,))
    given = inputs()
    program = export_graph(model, *given)
    with torch.no_grad():
        assert (model(*given) - program.module()(*given)).abs().max() < 1e-10


# One exchange holds all that three do. The time of the export grows with the square of the graph's nodes.
@pytest.mark.parametrize(
    "options",
    [{"fusion": "audio"}, pytest.param({"fusion_stages": (2,)}, marks=pytest.mark.exhaustive)],
    ids=str,
)
def test_export_onnx_keeps_logits_in_onnxruntime(tmp_path: Path, options: dict[str, object]) -> None:
    model = settled(torch.float32, **options)
    audio, video = torch.randn(2, 4, 1, 16, 16), torch.randn(2, 4, 3, 16, 16)
    path = tmp_path / "model.onnx"
    assert export_onnx(model, path, audio, video) == path
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"audio": audio.numpy(), "video": video.numpy()})
    with torch.no_grad():
        expected = model(audio, video)
    assert expected.abs().max() > 1e-3
    # Another processor rounds sums otherwise, which may move one membrane of one sample over its threshold.
    apart = (torch.from_numpy(logits) - expected).abs().amax(1)
    assert (apart < 1e-4).sum() >= 3


def trained(tiny_set: Path) -> tuple[snnergy.SNNergy, dict[str, Tensor]]:
    """Return a network with the facts about its training set, and the arguments of two samples."""
    data = avdata.open(tiny_set, "test")
    model = settled(torch.float32, fusion="audio", dims=(4, 4, 4), heads=(1, 1, 1))
    model.dataset = DatasetFacts.of(data.info)
    return model, model.preprocess(next(iter(data.loader(2, num_workers=0))))


def test_export_network_takes_shapes_from_the_training_set(
    tiny_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, arguments = trained(tiny_set)
    given: list[list[int]] = []
    monkeypatch.setattr(
        "snnergy.models.export.export_onnx",
        lambda model, path, *inputs: given.extend(list(part.shape) for part in inputs),
    )
    shapes = export_network(model, tmp_path / "model.onnx", "onnx", batch_size=2)
    assert list(shapes.values()) == given == [list(arguments[name].shape) for name in ("audio", "video")]
    with pytest.raises(UsageError, match="Unknown export format 'onx'"):
        export_network(model, tmp_path / "model.onx", "onx")
    model.dataset = None
    with pytest.raises(UsageError, match="no record"):
        export_network(model, tmp_path / "model.onnx")


@pytest.mark.exhaustive
def test_exported_program_keeps_logits(tiny_set: Path, tmp_path: Path) -> None:
    model, arguments = trained(tiny_set)
    export_network(model, tmp_path / "model.pt2", "torch", batch_size=2)
    program = torch.export.load(tmp_path / "model.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(arguments["audio"], arguments["video"]), model(**arguments), atol=1e-5)


def test_fold_batch_norm_raises_in_training_mode() -> None:
    with pytest.raises(UsageError, match="training mode"):
        fold_batch_norm(snnergy.build("nano"))
