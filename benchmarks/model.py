"""Time and memory of the network beside copies, plain autograd, SpikingJelly and quadratic attention.

    python benchmarks/model.py                              # all: some minutes and 12 GB of memory
    python benchmarks/model.py --parts neuron --rounds 3
    python benchmarks/model.py --parts attention --largest 4096 --plot attention.png

The contenders of a part take turns in every round; figures are medians of all rounds. The lower bound of the
neuron is two copies of existing memory; each contender also allocates its results. Bytes are those that a
forward pass saves for its backward pass, each memory once, without the input and the weights.
"""

from __future__ import annotations

import argparse
import gc
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from claims import Claim, at_least, at_most, main, make_parser, set_quick
from torch import Tensor, nn

import snnergy
import snnergy.layers.conv_norm
from snnergy.fusion.cmqka import CrossModalAttention
from snnergy.fusion.cross_attention import CCSSA
from snnergy.layers.neurons import SpikingNeuron

KINDS = "without checkpoints", "with checkpoints"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Step(torch.autograd.Function):
    """A spike with the sigmoid's derivative, as plain networks write it."""

    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        """Return whether the threshold is reached."""
        ctx.save_for_backward(distance)
        return (distance >= 0).to(distance)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """Return the sigmoid's derivative."""
        (distance,) = ctx.saved_tensors
        height = torch.sigmoid(4 * distance)
        return grad * 4 * height * (1 - height)


class PlainNeuron(nn.Module):
    """The neuron as a loop that autograd records."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes of a current."""
        membrane, spikes = torch.zeros_like(current[0]), []
        for given in current:
            membrane = membrane + (given - membrane) / 2
            spikes.append(Step.apply(membrane - self.threshold))
            membrane = membrane * (1 - spikes[-1].detach())
        return torch.stack(spikes)


class JellyNeuron(nn.Module):
    """SpikingJelly's multi-step neuron, reset before each call."""

    def __init__(self, threshold: float = 1.0) -> None:
        super().__init__()
        from spikingjelly.activation_based import neuron, surrogate

        self.node = neuron.LIFNode(
            tau=2.0, v_threshold=threshold, v_reset=0.0, detach_reset=True, step_mode="m",
            surrogate_function=surrogate.Sigmoid(4.0),
        )  # fmt: skip

    def forward(self, current: Tensor) -> Tensor:
        """Return the spikes of a current."""
        self.node.reset()
        return self.node(current.contiguous())


def exchanged(model: nn.Module, made: type[nn.Module]) -> nn.Module:
    """Replace every neuron of a network."""
    for part in list(model.modules()):
        for name, child in part.named_children():
            if isinstance(child, SpikingNeuron):
                setattr(part, name, made(child.threshold))
    return model


def timed(call: Callable[[], object]) -> float:
    """Return the milliseconds of a call."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    call()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) * 1e3


def medians(
    contenders: dict[str, Callable[[], object]], rounds: int, *, warm: bool = False
) -> dict[str, float]:
    """Return each contender's median in milliseconds; they take turns, and the first round does not count.

    With `warm` each is called once, untimed, when its turn comes: after gigabytes of another's, caches and
    the allocator are cold.
    """
    seen: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, call in contenders.items():
            if warm:
                call()
            took = timed(call)
            if number:
                seen[name].append(took)
    return {name: statistics.median(times) for name, times in seen.items()}


def kept_bytes(call: Callable[[], object], without: Sequence[Tensor] = ()) -> int:
    """Return the bytes that a forward pass saves for its backward pass."""
    kept: dict[int, int] = {}
    held: list[Tensor] = []

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        # While it is referenced, no other storage can have its address.
        held.append(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        result = call()
    assert result is not None
    for one in without:
        kept.pop(one.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def neuron(options: argparse.Namespace) -> list[Claim]:
    """Measure forward and backward of the neuron beside the lower bound and its peers."""
    rounds = options.rounds
    shape = (4, 8, 96, 64, 64)
    current, grad = torch.randn(shape, device=DEVICE) * 2, torch.randn(shape, device=DEVICE)
    one, two = torch.empty_like(current), torch.empty_like(current)
    layers = {"ours": SpikingNeuron(), "plain autograd": PlainNeuron(), "SpikingJelly": JellyNeuron()}
    given = current.requires_grad_()

    def floor() -> None:
        one.copy_(current.detach())
        two.copy_(grad)

    contenders: dict[str, Callable[[], object]] = {"floor": floor}
    for name, layer in layers.items():
        contenders[name] = lambda layer=layer: torch.autograd.grad(layer(given), given, grad)
    took = medians(contenders, rounds)
    print(f"neuron {list(shape)} on {DEVICE}: forward and backward")
    for name, layer in layers.items():
        kept = kept_bytes(lambda layer=layer: layer(given), [current]) / current.numel()
        print(f"  {name:15} {took[name]:8.1f} ms  {took[name] / took['floor']:5.1f} × floor  "
              f"{took[name] / took['ours']:5.1f} × ours  {kept:5.2f} bytes an element kept")  # fmt: skip
    print(f"  {'floor':15} {took['floor']:8.1f} ms")
    size = f"neuron {list(shape)}, forward and backward, {DEVICE}, {options.threads} threads"
    return [
        at_least(f"{size}: SpikingJelly ÷ SNNergy", took["SpikingJelly"] / took["ours"], 5),
        at_most(f"{size}: SNNergy ÷ two copies", took["ours"] / took["floor"], 3),
    ]


def exponent(tokens: Sequence[int], values: Sequence[float]) -> float:
    """Return the slope of a line through the logarithms."""
    x, y = [math.log(n) for n in tokens], [math.log(v) for v in values]
    mean_x, mean_y = statistics.mean(x), statistics.mean(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


def attention(options: argparse.Namespace) -> list[Claim]:
    """Measure CMQKA and quadratic attention by the number of tokens."""
    rounds, plot = options.rounds, options.plot
    tokens = [n for n in (64, 256, 1024, 4096, 16384) if n <= options.largest]
    parts = {
        "cmqka": CrossModalAttention(32, 1).to(DEVICE),
        "ccssa": CCSSA(32, 1).to(DEVICE),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    sizes: dict[str, list[int]] = {name: [] for name in parts}
    print(f"attention, one direction, C = 32, one head, T = 2, B = 1, on {DEVICE}")
    print("      N   cmqka ms   ccssa ms   cmqka MB   ccssa MB")
    for n in tokens:
        side = math.isqrt(n)
        pair = [torch.randint(0, 2, (2, 1, 32, side, side), device=DEVICE).float() for _ in range(2)]
        calls = {
            name: lambda part=part, pair=pair: part(*pair).sum().backward() for name, part in parts.items()
        }
        took = medians(calls, rounds if n < 16384 else min(rounds, 2), warm=True)
        for name, part in parts.items():
            times[name].append(took[name])
            sizes[name].append(kept_bytes(lambda part=part, pair=pair: part(*pair), pair))
        print(f"{n:7}" + "".join(f"{times[name][-1]:11.1f}" for name in parts)
              + "".join(f"{sizes[name][-1] / 1e6:11.1f}" for name in parts))  # fmt: skip
    for name in parts:
        # Small grids measure the cost of calls, not of tokens.
        print(f"  {name}: time ~ N^{exponent(tokens[-3:], times[name][-3:]):.2f}, "
              f"bytes ~ N^{exponent(tokens[-3:], sizes[name][-3:]):.2f} over the last three")  # fmt: skip
    if plot is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.4), layout="constrained")
        for axis, held, unit in zip(figure.subplots(1, 2), (times, sizes), ("ms", "bytes kept"), strict=True):
            for name in parts:
                axis.loglog(tokens, held[name], marker="o", label=name)
            axis.set_xlabel("tokens N")
            axis.set_ylabel(unit)
            axis.legend()
        figure.savefig(plot, dpi=110)
    title = f"CMQKA, {tokens[-3]:,} to {tokens[-1]:,} tokens, C = 32, {DEVICE}: exponent of"
    return [
        at_most(f"{title} time", exponent(tokens[-3:], times["cmqka"][-3:]), 1.1, ""),
        at_most(f"{title} memory", exponent(tokens[-3:], sizes["cmqka"][-3:]), 1.1, ""),
    ]


def training(options: argparse.Namespace) -> list[Claim]:
    """Measure a training step beside the same network with other neurons."""
    preset, size, batch = options.preset, options.size, options.batch
    audio = torch.randn(4, batch, 1, size, size, device=DEVICE)
    video = torch.randn(4, batch, 3, size, size, device=DEVICE)
    label = torch.randint(0, 6, (batch,), device=DEVICE)
    makers: dict[str, type[nn.Module] | None] = {
        "ours": None, "SpikingJelly": JellyNeuron, "plain autograd": PlainNeuron,
        "plain, channels_last": PlainNeuron,
    }  # fmt: skip
    networks = {}
    for name, made in makers.items():
        torch.manual_seed(0)
        network = snnergy.build(preset, num_classes=6)
        networks[name] = (network if made is None else exchanged(network, made)).to(DEVICE)

    def forward(name: str) -> Tensor:
        plain = name not in ("ours", "plain, channels_last")
        layout = patch.object(snnergy.layers.conv_norm, "to_channels_last", torch.Tensor.contiguous)
        with layout if plain else nullcontext():
            return networks[name](audio, video)

    def step(name: str) -> None:
        networks[name].zero_grad()
        nn.functional.cross_entropy(forward(name), label).backward()

    took = medians({name: lambda name=name: step(name) for name in networks}, options.rounds)
    kept = {
        name: kept_bytes(lambda name=name: forward(name), [*network.parameters(), audio, video])
        for name, network in networks.items()
    }
    print(f"training step of {preset}, {size}×{size}, T = 4, batch {batch}, on {DEVICE}")
    for name in networks:
        print(f"  {name:20} {took[name]:8.0f} ms  {batch / took[name] * 1e3:6.1f} samples/s  "
              f"{took[name] / took['ours']:5.2f} × ours  {kept[name] / 1e6:7.0f} MB kept, ours is "
              f"{kept['ours'] / kept[name]:.2f} of it")  # fmt: skip
    title = f"training step of {preset}, {size}×{size}, batch {batch}, {DEVICE}, {options.threads} threads"
    return [at_least(f"{title}: SpikingJelly ÷ SNNergy", took["SpikingJelly"] / took["ours"], 1.25)]


def resident(what: str) -> float:
    """Return megabytes of this process: `VmRSS` now, `VmHWM` at most since the last reset."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(what):
            return int(line.split()[1]) / 1e3
    return math.nan


def peak(preset: str, count: int, size: int, batch: int, checkpoint: bool, threads: int) -> float:
    """Return megabytes that a training step adds to a process after imports and compilation.

    Weights, inputs, gradients and all that a step holds on its way, as `top` would show it.
    """
    torch.set_num_threads(threads)

    def step(network: nn.Module, t: int, n: int, side: int) -> None:
        audio, video = (torch.randn(t, n, channels, side, side, device=DEVICE) for channels in (1, 3))
        network(audio, video).sum().backward()

    step(snnergy.build(preset, dims=(4, 8, 8), heads=(1, 1, 1), checkpoint=checkpoint).to(DEVICE), 1, 2, 16)
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() / 1e6
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = resident("VmRSS")
    step(snnergy.build(preset, checkpoint=checkpoint).to(DEVICE), count, batch, size)
    most = torch.cuda.max_memory_allocated() / 1e6 if DEVICE == "cuda" else resident("VmHWM")
    return most - before


def steps(options: argparse.Namespace, preset: str = "nano", size: int = 64, batch: int = 4) -> list[Claim]:
    """Measure time and memory by the number of time steps, with and without checkpoints."""
    counts, fresh = (4, 8, 16, 32), multiprocessing.get_context("spawn")
    print(f"time steps, {preset}, {size}×{size}, batch {batch}, on {DEVICE}: without | with checkpoints")
    print("      T           ms   MB kept for the backward   MB at most of a whole step")
    found: dict[str, list[float]] = {}
    for count in counts:
        networks = [snnergy.build(preset, checkpoint=lean).to(DEVICE) for lean in (False, True)]
        pair = [torch.randn(count, batch, channels, size, size, device=DEVICE) for channels in (1, 3)]
        took = medians(
            {
                kind: lambda model=model, pair=pair: model(*pair).sum().backward()
                for kind, model in zip(KINDS, networks, strict=True)
            },
            options.rounds,
        )
        for kind, model in zip(KINDS, networks, strict=True):
            mb = kept_bytes(lambda model=model, pair=pair: model(*pair), [*model.parameters(), *pair]) / 1e6
            if kind == KINDS[1]:
                # Streams between parts, three of a stage, are held outside autograd's saved tensors.
                with torch.no_grad():
                    _, aux = model(*pair, return_aux=True)
                mb += 3 * sum(x.nbytes for streams in aux["stages"] for x in streams.values()) / 1e6
            with fresh.Pool(1) as pool:
                asked = (preset, count, size, batch, kind == KINDS[1], torch.get_num_threads())
                most = pool.apply(peak, asked)
            for what, value in (("time", took[kind]), ("kept", mb), ("peak", most)):
                found.setdefault(f"{what} {kind}", []).append(value)
        row = [found[f"{what} {kind}"][-1] for what in ("time", "kept", "peak") for kind in KINDS]
        print("  {:5}{:8.0f} |{:6.0f}{:16.1f} |{:6.1f}{:14.0f} |{:5.0f}".format(count, *row))
    for name, values in found.items():
        print(
            f"  {name:24} ~ T^{exponent(counts, values):.2f}, {values[-1] / values[0]:.1f} × of 8 × the steps"
        )
    exponents = {name: exponent(counts, values) for name, values in found.items()}
    title = f"{preset}, {size}×{size}, T = 4 to 32, {DEVICE}: exponent of the peak memory"
    return [at_most(f"{title} {kind}", exponents[f"peak {kind}"], 1.1, "") for kind in KINDS]


PARTS: dict[str, Callable[[argparse.Namespace], list[Claim]]] = {
    "neuron": neuron, "attention": attention, "training": training, "steps": steps,
}  # fmt: skip


def measure(options: argparse.Namespace) -> list[Claim]:
    torch.set_num_threads(options.threads)
    return [claim for part in options.parts for claim in PARTS[part](options)]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest", type=int, default=16384, help="tokens")
    parser.add_argument("--plot", type=Path, help="file of a plot of the attention part")
    parser.add_argument("--preset", default="small")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--batch", type=int, default=2)
    quick = {"parts": ["neuron", "attention", "training"], "rounds": 2, "largest": 4096}
    main(set_quick(parser, **quick), measure)
