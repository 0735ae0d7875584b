"""A trained network for other runtimes: norms and α folded into convolutions, as one graph, as ONNX."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from avdata.errors import UsageError
from snnergy.fusion.block import ResidualFusion
from snnergy.layers.conv_norm import ConvNorm
from snnergy.models.network import SNNergy

OPSET = 18


def fold_batch_norm(model: SNNergy) -> SNNergy:
    """A copy in evaluation mode without batch norms after convolutions, and with α in the messages' weights.

    It computes the same. With the membrane residual α is then one, and nothing but spikes meets weights;
    with `sew` α acts on spikes and stays as it is.

    Raises:
        UsageError: the network is in training mode, whose norms have no fixed weights.
    """
    if model.training:
        msg = "the norms of a network in training mode cannot be folded"
        raise UsageError(msg, hint="call model.eval() first")
    folded = copy.deepcopy(model)
    for part in list(folded.modules()):
        if isinstance(part, ConvNorm) and isinstance(part.norm, nn.BatchNorm2d):
            part.conv = fuse_conv_bn_eval(part.conv, part.norm)
            part.register_module("norm", nn.Identity())
    if model.config.residual == "membrane":
        seen: set[int] = set()
        for part in folded.modules():
            if isinstance(part, ResidualFusion) and id(part) not in seen:
                seen.add(id(part))
                _fold_alpha(part)
    return folded


@torch.no_grad()
def _fold_alpha(part: ResidualFusion) -> None:
    conv = part.message.out.conv  # type: ignore[union-attr]
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    alpha = part.alpha.reshape(-1)
    conv.weight *= alpha[:, None, None, None]
    conv.bias *= alpha
    part.alpha.fill_(1.0)


def export(model: SNNergy, audio: Tensor, video: Tensor) -> torch.export.ExportedProgram:
    """The folded network as one graph, for inputs of these shapes.

    Args:
        model: in evaluation mode.
        audio: [T, B, 1, F, L].
        video: [T, B, C, H, W].

    Raises:
        UsageError: the network is in training mode.
        ValueError: the shapes do not fit together.
    """
    with torch.no_grad():
        return torch.export.export(fold_batch_norm(model), (audio, video))


def export_onnx(model: SNNergy, audio: Tensor, video: Tensor, path: str | Path) -> None:
    """Write the folded network as ONNX, for inputs of these shapes, named `audio`, `video` and `logits`.

    Args:
        model: in evaluation mode.
        audio: [T, B, 1, F, L].
        video: [T, B, C, H, W].
        path: the file.

    Raises:
        UsageError: the network is in training mode, or the onnxscript package is not installed.
        ValueError: the shapes do not fit together.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        msg = "ONNX cannot be written without the package onnxscript"
        raise UsageError(msg, hint="pip install onnx onnxscript") from error
    program = torch.onnx.export(
        export(model, audio, video),
        (audio, video),
        input_names=["audio", "video"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
