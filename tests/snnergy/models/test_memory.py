from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import snnergy
from snnergy.fusion.cmqka import CrossModalAttention
from snnergy.fusion.cross_attention import CCSSA


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(batch: int = 2, steps: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(steps, batch, 1, 16, 24, dtype=dtype),
        torch.randn(steps, batch, 3, 24, 16, dtype=dtype),
    )


def saved_bytes(call: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Return the bytes that a forward pass saves for the backward pass, each storage once."""
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        storage = saved.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        result = call()
    assert result is not None
    for weight in without:
        kept.pop(weight.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def memory(part: torch.nn.Module, side: int, steps: int) -> int:
    target, source = (torch.randint(0, 2, (steps, 1, 64, side, side)).float() for _ in range(2))
    return saved_bytes(lambda: part(target, source), part.parameters())


def test_cmqka_memory_is_linear_in_tokens_and_steps_and_ccssa_is_not() -> None:
    cmqka, quadratic = CrossModalAttention(64, 4), CCSSA(64, 4)
    assert memory(cmqka, 64, 2) / memory(cmqka, 32, 2) == pytest.approx(4, rel=0.03)
    assert memory(cmqka, 16, 16) / memory(cmqka, 16, 4) == pytest.approx(4, rel=0.03)
    assert memory(quadratic, 48, 2) / memory(quadratic, 24, 2) > 9


class Work(TorchDispatchMode):
    """Counter of multiplications in matrix products and convolutions, and of all numbers read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.flops = 0, FlopCounterMode(display=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.moved += sum(part.numel() for part in tree_leaves((args, out)) if isinstance(part, Tensor))
        return out


def work(part: torch.nn.Module, side: int) -> int:
    """Return the operations of a forward and backward pass over side × side tokens."""
    # In float64 the neurons use torch operators, which can be counted.
    pair = [torch.randint(0, 2, (2, 1, 32, side, side)).double() for _ in range(2)]
    count = Work()
    with count.flops, count:
        part.double()(*pair).sum().backward()
    return count.moved + count.flops.get_total_flops()


def test_cmqka_operations_are_linear_in_tokens_and_ccssa_is_not() -> None:
    cmqka, quadratic = CrossModalAttention(32, 1), CCSSA(32, 1)
    assert work(cmqka, 64) / work(cmqka, 32) == pytest.approx(4, rel=0.03)
    assert work(quadratic, 32) / work(quadratic, 16) > 10


def test_checkpointing_reduces_memory_and_keeps_gradients() -> None:
    given = inputs(batch=4, dtype=torch.float32)
    results, kept = [], []
    for checkpoint in (False, True):
        torch.manual_seed(1)
        model = snnergy.build("nano", num_classes=3, checkpoint=checkpoint)
        kept.append(saved_bytes(lambda model=model: model(*given)))
        model(*given).square().sum().backward()
        results.append(
            [weight.grad for weight in model.parameters()] + [value.float() for value in model.buffers()]
        )
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    # The streams between modules, three per stage here, are not among autograd's saved tensors.
    with torch.no_grad():
        stages = model(*given, return_aux=True)[1]["stages"]
    held = 3 * sum(stream.nbytes for streams in stages for stream in streams.values())
    assert kept[1] + held < kept[0] / 3


def test_checkpointed_modules_need_less_than_half_of_total_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise recomputing one module would need the memory that checkpointing saves."""
    model = snnergy.build("nano", num_classes=3)
    given = torch.randn(3, 4, 1, 32, 32), torch.randn(3, 4, 3, 32, 32)
    whole, parts = saved_bytes(lambda: model(*given), model.parameters()), []

    def noted(part: nn.Module, *given: Any) -> Any:
        parts.append(saved_bytes(lambda: part(*given), part.parameters()))
        return part(*given)

    monkeypatch.setattr("snnergy.models.network.call", noted)
    model(*given)
    assert len(parts) == 3 * (2 * 2 + 1)
    assert max(parts) < whole / 2
