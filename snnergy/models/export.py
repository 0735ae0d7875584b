"""Export of a trained network: batch norms and α folded into convolutions, as a torch graph, ONNX or NIR."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from avdata.errors import UsageError
from avdata.storage.atomic import atomic_write
from snnergy.fusion.block import ResidualFusion
from snnergy.layers.conv_norm import ConvNorm
from snnergy.models.config import check_choice
from snnergy.models.formats import FORMATS
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
        # onnxruntime simplifies the graph when it loads it, in a fraction of the time.
        optimize=False,
    )
    assert program is not None
    program.save(str(path))
    return Path(path)


def export_nir(model: SNNergy, path: str | Path, audio: Tensor, video: Tensor) -> Path:
    """Write the folded network as a graph of the Neuromorphic Intermediate Representation (NIR).

    The graph has no batch axis and computes one time step: see `snnergy.models.nir_graph`.

    Args:
        model: network in evaluation mode.
        path: the file to write.
        audio: example input, float32 [T, B, 1, F, L].
        video: example input, float32 [T, B, C, H, W].

    Returns:
        The path of the file.

    Raises:
        UsageError: the network is in training mode, NIR cannot express it, or the package nir is missing.
        AvdataError: the file cannot be written.
    """
    try:
        import nir  # noqa: PLC0415
    except ImportError as error:
        msg = "Writing NIR needs the package nir."
        raise UsageError(msg, hint="pip install nir") from error
    from snnergy.models.nir_graph import nir_graph  # noqa: PLC0415

    shapes = {"audio": tuple(audio.shape[2:]), "video": tuple(video.shape[2:])}
    graph = nir_graph(fold_batch_norm(model), shapes, max(len(audio), len(video)))
    buffer = io.BytesIO()
    nir.write(buffer, graph)
    atomic_write(Path(path), buffer.getvalue())
    return Path(path)


def export_network(
    model: SNNergy, path: str | Path, format: str = "onnx", *, batch_size: int = 1
) -> dict[str, list[int]]:
    """Write a trained network for inputs shaped like the samples of its training set.

    Args:
        model: network in evaluation mode that was trained on a prepared dataset.
        path: the file to write.
        format: one of `FORMATS`. `torch` is a program for `torch.export.load`.
        batch_size: samples B of the inputs; 1 for `nir`, which has no batch axis.

    Returns:
        Shapes of the inputs `audio` and `video`: [T, B, C, H, W], or [C, H, W] for `nir`.

    Raises:
        UsageError: unknown format, or one that cannot express the network or the batch; or the network has
            no record of its training set.
        AvdataError: the file cannot be written.
    """
    check_choice(format, FORMATS, "export format")
    if model.dataset is None:
        msg = "The network has no record of the dataset that it was trained on."
        raise UsageError(msg, hint="Call export_onnx or export_graph with example inputs")
    steps, bands, columns = model.dataset.mel_shape
    size = model.dataset.frame_size
    audio = torch.zeros(steps, batch_size, 1, bands, columns)
    video = torch.zeros(steps, batch_size, model.config.video_channels, size, size)
    if format == "onnx":
        export_onnx(model, path, audio, video)
    elif format == "nir":
        if batch_size > 1:
            msg = f"NIR has no batch axis: the batch size is {batch_size}."
            raise UsageError(msg, hint="Omit --batch-size")
        export_nir(model, path, audio, video)
        inputs = {"audio": audio, "video": video}
        return {name: list(inputs[name].shape[2:]) for name in model.modalities}
    else:
        buffer = io.BytesIO()
        torch.export.save(export_graph(model, audio, video), buffer)
        atomic_write(Path(path), buffer.getvalue())
    return {"audio": list(audio.shape), "video": list(video.shape)}


def fold_batch_norm(model: SNNergy) -> SNNergy:
    """Return a copy in which batch norms and α are folded into the convolution weights.

    The logits are the same. With the `membrane` residual α becomes 1 and weights multiply spikes only. With
    `sew` α multiplies spikes and stays.

    Raises:
        UsageError: the network is in training mode, in which batch norms have no fixed statistics.
    """
    if model.training:
        msg = "Cannot fold batch norms of a network in training mode."
        raise UsageError(msg, hint="Call model.eval() first")
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
