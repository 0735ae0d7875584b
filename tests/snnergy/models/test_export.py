from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import snnergy
from avdata.errors import UsageError
from snnergy.models.export import export_graph, export_onnx, fold_batch_norm


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
    model = settled()
    given = inputs()
    program = export_graph(model, *given)
    with torch.no_grad():
        assert (model(*given) - program.module()(*given)).abs().max() < 1e-10


def test_export_onnx_keeps_logits_in_onnxruntime(tmp_path: Path) -> None:
    # One exchange holds all that three do, and what the graph takes grows with the square of its nodes.
    model = settled(torch.float32, fusion_stages=(2,))
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


def test_fold_batch_norm_raises_in_training_mode() -> None:
    with pytest.raises(UsageError, match="training mode"):
        fold_batch_norm(snnergy.build("nano"))
