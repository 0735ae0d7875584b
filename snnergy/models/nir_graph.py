"""A network as a graph of the Neuromorphic Intermediate Representation (arXiv 2311.14641).

The graph is one time step, for inputs [C, H, W] without a batch axis; its output `logits`, averaged over the
steps, is the network's. Batch norms and α are folded. A binary product with an attention mask is a Threshold
of the sum of mask and spikes. Max pooling and the repetition of a mask over the grid are host operations:
see `snnergy.models.nir_nodes`.
"""

from __future__ import annotations

import nir
import torch
from torch import nn

from snnergy.fusion.block import BidirectionalFusion, ResidualFusion
from snnergy.fusion.cmqka import CrossModalAttention
from snnergy.fusion.late import LateFusion, Sum
from snnergy.layers.attention import QKAttention, TokenSumMask
from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.residual import ResidualInput, ResidualOutput, SpikingMLP
from snnergy.models.encoder import Block, PatchEmbedding, Stage
from snnergy.models.network import SNNergy
from snnergy.models.nir_nodes import NirNodes, Shape, Signal, refusal

Streams = dict[str, Signal]


@torch.no_grad()
def nir_graph(folded: SNNergy, shapes: dict[str, Shape], steps: int) -> nir.NIRGraph:
    """Return a network as a NIR graph.

    Args:
        folded: network after `snnergy.models.export.fold_batch_norm`.
        shapes: C, H, W of the inputs `audio` and `video`.
        steps: number of time steps T of the training set, for the metadata.

    Raises:
        UsageError: NIR has no nodes for a part of the network.
    """
    if type(folded.join) not in {LateFusion, Sum}:
        part = f"fusion={folded.config.fusion}"
        raise refusal(part)
    graph = NirNodes()
    streams = {name: graph.input(name, shapes[name]) for name in folded.modalities}
    for number in range(3):
        for name, stream in streams.items():
            stage: Stage = folded.encoders[name][number]  # type: ignore[index]
            streams[name] = _stage(graph, f"{name}.{number + 1}", stage, stream)
        if str(number + 1) in folded.fusions:
            fusion = folded.fusions[str(number + 1)]
            assert isinstance(fusion, BidirectionalFusion)
            streams = _fusion(graph, f"fusion.{number + 1}", fusion, streams)
    _head(graph, folded, streams)
    about = {"time_step": 1.0, "steps": steps, "host_operations": "metadata of Input nodes"}
    return nir.NIRGraph(graph.nodes, graph.edges, metadata=about)


def _head(graph: NirNodes, model: SNNergy, streams: Streams) -> None:
    weights = model.head.weight.chunk(1 if isinstance(model.join, Sum) else len(streams), dim=1)
    if len(weights) < len(streams):
        weights = weights * len(streams)
    logits: Signal | None = None
    for (name, stream), weight in zip(streams.items(), weights, strict=True):
        readout = model.readouts[name]
        features = _enter(graph, f"{name}.readout", readout, stream)
        bias = model.head.bias if logits is None else torch.zeros_like(model.head.bias)
        part = graph.linear(f"{name}.head", features, weight, bias)
        logits = part if logits is None else logits + part
    assert logits is not None
    graph.output("logits", logits)


def _stage(graph: NirNodes, name: str, stage: Stage, x: Signal) -> Signal:
    stream = _embedding(graph, f"{name}.embedding", stage.embedding, x)
    if stage.position is not None:
        spikes = _enter(graph, f"{name}.position.enter", stage.position.enter, stream)
        encoding = _conv(graph, f"{name}.position.conv", stage.position.conv, spikes)
        stream += _exit(graph, f"{name}.position.exit", stage.position.exit, encoding)
    for number, block in enumerate(stage.blocks):
        assert isinstance(block, Block)
        prefix = f"{name}.block{number + 1}"
        spikes = _enter(graph, f"{prefix}.enter", block.enter, stream)
        attended = _attention(graph, f"{prefix}.attention", block.attention, spikes)
        stream += _exit(graph, f"{prefix}.exit", block.exit, attended)
        stream = _mlp(graph, f"{prefix}.mlp", block.mlp, stream)
    return stream


def _embedding(graph: NirNodes, name: str, part: PatchEmbedding, x: Signal) -> Signal:
    if part.embed is None:
        spikes = _enter(graph, f"{name}.enter", part.enter, x)
    else:
        current = _conv(graph, f"{name}.input", part.embed[0], x)
        spikes = graph.neuron(f"{name}.input.neuron", current, part.embed[1])
    hidden = _conv(graph, f"{name}.main1", part.main[0], spikes)
    hidden = graph.neuron(f"{name}.main1.neuron", hidden, part.main[1])
    main = _conv(graph, f"{name}.main2", part.main[2], hidden)
    shortcut = _conv(graph, f"{name}.shortcut", part.shortcut, spikes)
    return _exit(graph, f"{name}.main2.exit", part.exit_main, main) + _exit(
        graph, f"{name}.shortcut.exit", part.exit_shortcut, shortcut
    )


def _mlp(graph: NirNodes, name: str, mlp: SpikingMLP, stream: Signal) -> Signal:
    spikes = _enter(graph, f"{name}.enter", mlp.enter, stream)
    hidden = graph.neuron(f"{name}.neuron", _conv(graph, f"{name}.in", mlp.layers[0], spikes), mlp.layers[1])
    return stream + _exit(graph, f"{name}.exit", mlp.exit, _conv(graph, f"{name}.out", mlp.layers[2], hidden))


def _attention(graph: NirNodes, name: str, part: nn.Module, x: Signal) -> Signal:
    if not isinstance(part, QKAttention):
        setting = "stage3=ssa"
        raise refusal(setting)
    query, key = (
        graph.neuron(f"{name}.{role}.neuron", current, part.neuron)
        for role, current in _split(graph, name, part.query_key, x, ("query", "key"))
    )
    if part.token is not None:
        mask = _token_mask(graph, f"{name}.mask", part.token, part.heads, query)
    else:
        assert part.channel is not None
        sums = _sum_mask(graph, f"{name}.mask", part.channel, x.shape[0], query)
        mask = graph.host(f"{name}.mask.grid", sums, key.shape, "expand")
    return _conv(graph, f"{name}.out", part.out, graph.exceeds(f"{name}.masked", key + mask, 1.5))


def _split(
    graph: NirNodes, name: str, layer: ConvNorm, x: Signal, roles: tuple[str, ...]
) -> list[tuple[str, Signal]]:
    """Return the currents of equal parts of a layer's output channels."""
    width = layer.conv.out_channels // len(roles)
    return [
        (role, graph.layer(f"{name}.{role}", x, layer.conv, slice(at * width, (at + 1) * width)))
        for at, role in enumerate(roles)
    ]


def _token_mask(graph: NirNodes, name: str, neuron: nn.Module, heads: int, query: Signal) -> Signal:
    """Return a mask [C, H, W] of each head's channels, from the sum of the head's Query."""
    channels = query.shape[0]
    own = torch.block_diag(*[torch.ones(channels // heads, channels // heads)] * heads)
    return graph.neuron(name, graph.conv(f"{name}.sum", query, own[:, :, None, None], None), neuron)


def _sum_mask(graph: NirNodes, name: str, part: TokenSumMask, groups: int, spikes: Signal) -> Signal:
    """Return a mask [C, 1, 1] from the sums over tokens, and over the channels of each of `groups`."""
    channels, *grid = spikes.shape
    size = channels // groups
    scale, shift = torch.ones(groups), torch.zeros(groups)
    if part.norm is not None:
        assert part.norm.running_var is not None
        assert part.norm.running_mean is not None
        scale = part.norm.weight / (part.norm.running_var + part.norm.eps).sqrt()
        shift = part.norm.bias - part.norm.running_mean * scale
        scale = scale / (grid[0] * grid[1])
    weight = torch.block_diag(*(torch.full((size, size), float(value)) for value in scale))
    sums = graph.token_sum(f"{name}.tokens", spikes)
    current = graph.conv(f"{name}.norm", sums, weight[:, :, None, None], shift.repeat_interleave(size))
    return graph.neuron(name, current, part.neuron)


def _fusion(graph: NirNodes, name: str, part: BidirectionalFusion, streams: Streams) -> Streams:
    audio = _enter(graph, f"{name}.audio", part.audio_neuron, streams["audio"])
    video = _enter(graph, f"{name}.video", part.video_neuron, streams["video"])
    updates = {
        "audio": _message(graph, f"{name}.to_audio", part.to_audio, part.audio_exit, audio, video),
        "video": _message(graph, f"{name}.to_video", part.to_video, part.video_exit, video, audio),
    }
    fused: Streams = {}
    for modality, update in updates.items():
        stream = streams[modality] + update
        if modality in part.fire:
            stream = graph.neuron(f"{name}.{modality}.fire", stream, part.fire[modality])
        if modality in part.mlp:
            mlp = part.mlp[modality]
            assert isinstance(mlp, SpikingMLP)
            stream = _mlp(graph, f"{name}.{modality}.mlp", mlp, stream)
        fused[modality] = stream
    return fused


def _message(
    graph: NirNodes, name: str, part: ResidualFusion, leave: ResidualOutput, target: Signal, source: Signal
) -> Signal:
    attention = part.message
    if not isinstance(attention, CrossModalAttention):
        name = type(attention).__name__
        reason = f"the fusion {name}, which multiplies spikes with one another"
        raise refusal(reason)
    current = _exit(graph, f"{name}.exit", leave, _cross_attention(graph, name, attention, target, source))
    if bool((part.alpha == 1).all()):
        return current
    return graph.scale(f"{name}.alpha", current, part.alpha)


def _cross_attention(
    graph: NirNodes, name: str, part: CrossModalAttention, target: Signal, source: Signal
) -> Signal:
    grid = target.shape[1:]
    if (part.branches != "o" or part.query_source == "source") and source.shape[1:] != grid:
        aligned = (source.shape[0], *grid)
        source = graph.host(f"{name}.aligned", source, aligned, "adaptive_max_pool2d")
    inputs = (target, source) if part.query_source == "target" else (source, target)
    branches = tuple(part.branches)
    queries = dict(_split(graph, f"{name}.query", part.query, inputs[0], branches))
    keys = dict(_split(graph, f"{name}.key", part.key, inputs[1], branches))
    masked = []
    for branch in branches:
        query = graph.neuron(f"{name}.query.{branch}.neuron", queries[branch], part.query_neuron)
        key = graph.neuron(f"{name}.key.{branch}.neuron", keys[branch], part.key_neuron)
        masked.append(_masked_key(graph, f"{name}.{branch}", part, branch, query, key))
    return _combine(graph, name, part, masked)


def _masked_key(
    graph: NirNodes, name: str, part: CrossModalAttention, branch: str, query: Signal, key: Signal
) -> Signal:
    if branch == "t":
        assert part.temporal is not None
        sums = _sum_mask(graph, f"{name}.mask", part.temporal, part.heads, query)
        mask = graph.host(f"{name}.mask.grid", sums, query.shape, "expand")
    else:
        assert part.spatial is not None
        mask = _token_mask(graph, f"{name}.mask", part.spatial, part.heads, query)
    if branch == "o":
        assert part.channel is not None
        channels = _sum_mask(graph, f"{name}.channels", part.channel, key.shape[0], key)
        key = graph.host(f"{name}.channels.grid", channels, query.shape, "expand")
    return graph.exceeds(f"{name}.masked", key + mask, 1.5)


def _combine(graph: NirNodes, name: str, part: CrossModalAttention, masked: list[Signal]) -> Signal:
    if part.combine != "concat" or len(masked) == 1:
        total = masked[0] if len(masked) == 1 else masked[0] + masked[1]
        if part.combine == "or" and len(masked) > 1:
            total = graph.exceeds(f"{name}.or", total, 0.5)
        return graph.layer(f"{name}.out", total, part.out.conv)
    conv, weights = part.out.conv, part.out.conv.weight.chunk(len(masked), dim=1)
    first, second = (
        graph.conv(f"{name}.out.{branch}", x, weight, conv.bias if number == 0 else None)
        for number, (branch, x, weight) in enumerate(zip(part.branches, masked, weights, strict=True))
    )
    return first + second


def _conv(graph: NirNodes, name: str, layer: nn.Module, x: Signal) -> Signal:
    assert isinstance(layer, ConvNorm)
    current = graph.layer(name, x, layer.conv)
    return current if layer.pool is None else graph.max_pool(f"{name}.pool", current, layer.pool)


def _enter(graph: NirNodes, name: str, part: nn.Module | None, stream: Signal) -> Signal:
    is_neuron = isinstance(part, ResidualInput) and part.neuron is not None
    return graph.neuron(name, stream, part.neuron) if is_neuron else stream  # type: ignore[union-attr,arg-type]


def _exit(graph: NirNodes, name: str, part: ResidualOutput, current: Signal) -> Signal:
    return current if part.neuron is None else graph.neuron(name, current, part.neuron)
