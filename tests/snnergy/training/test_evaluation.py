from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch

from snnergy.training.evaluation import evaluate_split


def test_evaluate_split_ignores_padding() -> None:
    """Three samples and a padded fourth that would be wrong: 2 of 3 right."""

    class Given(torch.nn.Module):
        def forward(self, audio: torch.Tensor, video: torch.Tensor) -> torch.Tensor:
            return torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 0.0]])

    class One:
        mel, frames = torch.zeros(4, 2, 1, 16, 16), torch.zeros(4, 2, 3, 16, 16, dtype=torch.uint8)
        label, weight = torch.tensor([0, 1, 1, 1]), torch.tensor([1.0, 1.0, 1.0, 0.0])

    def loader() -> Iterator[One]:
        yield One()

    found = evaluate_split(Given(), loader(), ["a", "b"], "cpu")  # type: ignore[arg-type]
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert (found["accuracy"], found["samples"]) == (pytest.approx(2 / 3, abs=1e-6), 3)
    assert found["loss"] == pytest.approx((2 * right + wrong) / 3, abs=1e-6)
    assert found["confusion"] == [[1, 0], [1, 1]]
    assert found["per_class"] == {"a": 1.0, "b": 0.5}
