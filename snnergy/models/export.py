"""Export of a trained network: batch norms and α folded into convolutions, as a torch graph or as ONNX."""

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


def export_graph(model: SNNergy, audio: Tensor, video: Tensor) -> torch.export.ExportedProgram:
    """Return the folded network as one graph for inputs of these shapes.

    Args:
        model: network in evaluation mode.
        audio: example input, float32 [T, B, 1, F, L].
        video: example input, float32 [T, B, C, H, W].

    Raises:
        UsageError: the network is in training mode.
        ValueError: the shapes do not fit the network.
    """
    with torch.no_grad():
        return torch.export.export(fold_batch_norm(model), (audio, video))


def export_onnx(model: SNNergy, path: str | Path, audio: Tensor, video: Tensor) -> Path:
    """Write the folded network as ONNX, with inputs `audio` and `video` and output `logits`.

    The file accepts inputs of the shapes of the examples only.

    Args:
        model: network in evaluation mode.
        path: the file to write.
        audio: example input, float32 [T, B, 1, F, L].
        video: example input, float32 [T, B, C, H, W].

    Returns:
        The path of the file.

    Raises:
        UsageError: the network is in training mode, or the package onnxscript is not installed.
        ValueError: the shapes do not fit the network.
    """
    try:
        import onnxscript  # noqa: F401, PLC0415
    except ImportError as error:
        msg = "Writing ONNX needs the package onnxscript."
        raise UsageError(msg, hint="pip install onnx onnxscript") from error
    program = torch.onnx.export(
        export_graph(model, audio, video),
        (audio, video),
        input_names=["audio", "video"],
        output_names=["logits"],
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    program.save(str(path))
    return Path(path)


def fold_batch_norm(model: SNNergy) -> SNNergy:
    """Return a copy in which batch norms and α are folded into the convolution weights.

    The logits are the same. With the `membrane` residual α becomes 1 and weights multiply spikes only. With
    `sew` α multiplies spikes and stays.

    Raises:
        UsageError: the network is in training mode, in which batch norms have no fixed statistics.
    """
    if model.training:
        msg = "Cannot fold batch norms of a network in training mode."
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
