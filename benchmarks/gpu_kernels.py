"""Correctness of the compiled neuron for `gpu.py`: compared with a loop in Python, in float32."""

from __future__ import annotations

import argparse
import itertools
import math

import torch
from claims import Claim, at_most
from torch import Tensor

from snnergy.layers.neurons import SpikingNeuron

SURROGATES = ("sigmoid", "atan")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

Options = argparse.Namespace


def random_current(seed: int, steps: int, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Return an input current [T, 3, 5, 7, 6] with an odd number of neurons per block."""
    generator = torch.Generator().manual_seed(seed)
    current = 2 * torch.randn((steps, 3, 5, 7, 6), generator=generator)
    if channels_last:
        current = current.movedim(2, -1).contiguous().movedim(-1, 2)
    return current.to(dtype)


def slope(distance: Tensor, surrogate: str) -> Tensor:
    """Return the derivative of the surrogate at a distance from the threshold."""
    if surrogate == "sigmoid":
        sigmoid = torch.sigmoid(4 * distance)
        return 4 * sigmoid * (1 - sigmoid)
    return 1 / (1 + (math.pi * distance) ** 2)


def reference(current: Tensor, grad: Tensor, kind: str, surrogate: str) -> tuple[Tensor, Tensor]:
    """Return spikes and the gradient of the current, [T, ...], of a neuron with threshold 1.

    `lif` and a new `plif` have a decay of 1/2, `if` has no leak. The reset is hard and not differentiated.
    Membranes are float32, as in the kernels, because one bit can decide about a spike; gradients are float64.
    """
    current, grad = current.detach().float(), grad.double()
    leaky = kind != "if"
    membrane = torch.zeros_like(current[0])
    membranes, spikes = [], []
    for step in current:
        membrane = membrane + (step - membrane) * 0.5 if leaky else membrane + step
        membranes.append(membrane)
        spikes.append((membrane >= 1.0).float())
        membrane = torch.where(membrane >= 1.0, 0.0, membrane)
    later, gradients = torch.zeros_like(grad[0]), []
    for h, grad_s in zip(reversed(membranes), reversed(list(grad)), strict=True):
        grad_h = grad_s * slope(h.double() - 1.0, surrogate) + torch.where(h >= 1.0, 0.0, later)
        gradients.append(grad_h * 0.5 if leaky else grad_h)
        later = grad_h * 0.5 if leaky else grad_h
    return torch.stack(spikes), torch.stack(gradients[::-1])


def kernels(options: Options) -> list[Claim]:
    """Compare spikes to the bit and gradients with a Python loop."""
    counts = (1, 2, 5) if options.tiny else (1, 2, 3, 4, 8, 16, 31, 64)
    wrong, worst = 0, dict.fromkeys(PRECISIONS, 0.0)
    cases = itertools.product(PRECISIONS, counts, ("lif", "if", "plif"), SURROGATES, (False, True))
    for number, (precision, steps, kind, surrogate, channels_last) in enumerate(cases):
        current = random_current(number, steps, PRECISIONS[precision], channels_last).to(options.device)
        neuron = SpikingNeuron(kind=kind, surrogate=surrogate).to(options.device)
        current.requires_grad_()
        spikes = neuron(current)
        grad = torch.randn(spikes.shape, generator=torch.Generator().manual_seed(number)).to(current)
        (found,) = torch.autograd.grad(spikes, current, grad)
        expected, expected_grad = reference(current, grad, kind, surrogate)
        wrong += int((spikes.float() != expected).sum())
        scale = expected_grad.abs().max().clamp_min(1e-30)
        error = float((found.double() - expected_grad).abs().max() / scale)
        worst[precision] = max(worst[precision], error)
    epsilon = {"fp32": 1e-6, "bf16": 2.0**-8, "fp16": 2.0**-11}
    return [
        at_most(f"kernels, T = 1 to {counts[-1]}, all precisions: spikes that differ", wrong, 0, "spikes"),
        *(
            at_most(f"kernels, {name}: largest error ÷ largest gradient", worst[name], epsilon[name], "")
            for name in PRECISIONS
        ),
    ]


def large(options: Options) -> list[Claim]:
    """Compare the first and last neurons of a tensor with more than 2^31 elements."""
    neurons = 1 << 12 if options.tiny else (1 << 30) + 4097
    name = f"kernels, {2 * neurons:,} elements: spikes and gradients that differ"
    if options.device == "cuda" and not options.tiny:
        free, _ = torch.cuda.mem_get_info()
        if free < 6 * 2 * neurons * 4:
            return [Claim(f"{name} (not run: {free / 1e9:.0f} GB free)", math.nan)]
    current = torch.randn((2, neurons), device=options.device).mul_(2).requires_grad_()
    spikes = SpikingNeuron()(current)
    (found,) = torch.autograd.grad(spikes, current, torch.ones_like(spikes))
    wrong = 0
    for part in (slice(0, 4096), slice(neurons - 4096, neurons)):
        piece = current.detach()[:, part]
        expected, expected_grad = reference(piece, torch.ones_like(piece), "lif", "sigmoid")
        wrong += int((spikes[:, part] != expected).sum())
        wrong += int(((found[:, part] - expected_grad).abs() > 1e-5).sum())
    return [at_most(name, wrong, 0, "elements")]
