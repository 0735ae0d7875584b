"""CUDA's kernels without a GPU: Triton's interpreter runs them, its compiler builds them for real GPUs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snnergy.kernels import lif_cpu as fire_cpu
from snnergy.kernels import lif_triton as fire_cuda

# (steps, neurons): one and several blocks, whole and not; leak; decay; threshold; surrogate.
CASES = list(
    product([(1, 1), (4, 1024), (7, 1500)], [True, False], [0.5, 0.3], [0.5, 1.0], ["sigmoid", "atan"])
)
# Triton decides when it is imported whether kernels are interpreted.
INTERPRETED = """
import sys, torch
from snnergy.kernels import lif_triton as fire_cuda
told = []
for current, grad, leaky, decay, threshold, surrogate in torch.load(sys.argv[1], weights_only=True):
    spikes = fire_cuda.forward(current, threshold, decay, leaky=leaky)
    how = {"leaky": leaky, "steepness": 4.0, "arctan": surrogate == "atan", "learn": leaky}
    told.append((spikes, *fire_cuda.backward(grad, current, threshold, decay, **how)))
torch.save(told, sys.argv[2])
"""
NUMBERS = {"threshold": "fp32", "steepness": "fp32", "elements": "i32", "steps": "i32"}
CHOSEN: dict[str, Any] = {"leaky": True, "arctan": False, "learn": True, "block": fire_cuda.BLOCK}
KERNELS = {"forward": fire_cuda._forward, "backward": fire_cuda._backward}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, ...]]:
    """Each case's input, and what the interpreted kernels made of it."""
    folder, draw = tmp_path_factory.mktemp("cuda"), torch.Generator().manual_seed(0)
    given = [
        (torch.randn(shape, generator=draw) * 2, torch.randn(shape, generator=draw), *rest)
        for shape, *rest in CASES
    ]
    torch.save(given, folder / "given.pt")
    command = [sys.executable, "-c", INTERPRETED, folder / "given.pt", folder / "told.pt"]
    subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, check=True)
    return list(zip(given, torch.load(folder / "told.pt", weights_only=True), strict=True))


def test_triton_forward_equals_cpu_exactly(told: list[tuple[Any, ...]]) -> None:
    for (current, _, leaky, decay, threshold, _), (spikes, _, _) in told:
        assert torch.equal(spikes, fire_cpu.forward(current, threshold, decay, leaky=leaky))


def test_triton_backward_equals_cpu(told: list[tuple[Any, ...]]) -> None:
    for (current, grad, leaky, decay, threshold, surrogate), (_, slope, of_decay) in told:
        how = {"leaky": leaky, "steepness": 4.0, "arctan": surrogate == "atan", "learn": leaky}
        expected, expected_decay = fire_cpu.backward(grad, current, threshold, decay, **how)
        assert (slope - expected).abs().max() < 1e-6
        assert not leaky or float(of_decay) == pytest.approx(expected_decay, abs=1e-3)


def built(kernel: Any, capability: int) -> Any:
    names: list[str] = kernel.arg_names
    chosen = {name: CHOSEN[name] for name in names if name in CHOSEN}
    types = {name: "constexpr" if name in chosen else NUMBERS.get(name, "*fp32") for name in names}
    source = ASTSource(fn=kernel, signature=types, constexprs=chosen)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=fire_cuda.EXACT)


@pytest.fixture
def _own_cache_of_triton(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.usefixtures("_own_cache_of_triton")
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_kernels_compile_without_fused_multiply_add(kernel: str, capability: int) -> None:
    made = built(KERNELS[kernel], capability)
    assert made.asm["cubin"]
    assert "fma.rn.f32" not in made.asm["ptx"]


@pytest.mark.usefixtures("_own_cache_of_triton")
@pytest.mark.parametrize("kernel", KERNELS)
def test_triton_kernels_use_64_bit_offsets(kernel: str) -> None:
    code = built(KERNELS[kernel], 80).asm["ttir"]
    sums = re.findall(r"arith\.(?:muli|addi) [^:]*: (?:tensor<\d+x)?(i\d+)", code)
    assert set(sums) == {"i64"}
