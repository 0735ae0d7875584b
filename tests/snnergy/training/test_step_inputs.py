from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from snnergy.training.step_inputs import Samples, draw_box, draw_partners, mix_step


def numbered(numbers: range, weight: float = 1.0) -> Samples:
    """Return samples whose mel, frames and label hold their number."""
    number = torch.tensor(list(numbers))
    mel = number.float()[:, None, None, None, None]
    frames = number.to(torch.uint8)[:, None, None, None, None].expand(-1, 1, 3, 1, 1)
    present = torch.stack([number != 2, number % 2 == 0], 1)
    return mel, frames, number, torch.full((len(number),), weight), present


def mixed(*parts: Samples, seed: int = 3) -> list[tuple[Tensor, Tensor, Tensor, Tensor, float]]:
    """Return audio, video, label, partner's label and λ of each part."""
    step = mix_step(parts, 0.4, np.random.default_rng(seed))
    rows = []
    for number in range(len(step)):
        batch, other = step.part(number)
        rows.append((batch.audio.flatten(), batch.video[0, :, 0, 0, 0], batch.label, other, step.share))
    return rows


def test_mixup_uses_same_lambda_and_partner_for_both_modalities() -> None:
    ((audio, video, label, other, share),) = mixed(numbered(range(8)))
    assert 0 < share < 1
    assert torch.allclose(audio, share * label + (1 - share) * other, atol=1e-5)
    # Frames are normalized by an affine function of the pixel.
    pixels = video * 0.229 * 255 + 0.485 * 255
    assert torch.allclose(pixels, audio, atol=1e-3)
    assert sorted(other.tolist()) == list(range(8))
    assert other.tolist() != list(range(8))


def test_mixup_does_not_depend_on_the_number_of_parts() -> None:
    whole = mixed(numbered(range(8)))
    parts = mixed(numbered(range(4)), numbered(range(4, 8)))
    for column in range(4):
        assert torch.equal(torch.cat([part[column] for part in parts]), whole[0][column])
    assert {part[4] for part in parts} == {whole[0][4]}
    # Partners come from both parts.
    assert (parts[0][3] >= 4).any()


@pytest.mark.parametrize("rank", [0, 1])
def test_mixup_does_not_depend_on_the_number_of_processes(rank: int) -> None:
    whole = mixed(numbered(range(8)))[0]
    halves = [numbered(range(4)), numbered(range(4, 8))]

    def gather_of(rank: int) -> Callable[[Tensor], Tensor]:
        columns = iter(range(5))
        return lambda value: torch.cat([half[column] for column in [next(columns)] for half in halves])

    rng = np.random.default_rng(3)
    step = mix_step([halves[rank]], 0.4, rng, rank=rank, gather=gather_of(rank))
    batch, other = step.part(0)
    own = slice(4 * rank, 4 * rank + 4)
    assert torch.equal(batch.audio.flatten(), whole[0][own])
    assert torch.equal(other, whole[3][own])
    assert step.share == whole[4]


@given(st.floats(0, 1), st.integers(0, 1000))
def test_box_of_cutmix_lies_inside_and_leaves_its_share(share: float, seed: int) -> None:
    (top, bottom, left, right), left_over = draw_box(share, np.random.default_rng(seed))
    assert 0 <= top <= bottom <= 1
    assert 0 <= left <= right <= 1
    assert left_over == pytest.approx(1 - (bottom - top) * (right - left))
    assert left_over >= share - 1e-9


@pytest.mark.parametrize("count", [1, 2])
def test_cutmix_exchanges_the_same_box_of_both_modalities(count: int) -> None:
    size, numbers = 40, torch.arange(8.0)
    mel = numbers.view(8, 1, 1, 1, 1).expand(8, 2, 1, size, size)
    frames = (10 * numbers).to(torch.uint8).view(8, 1, 1, 1, 1).expand(8, 2, 3, size, size)
    samples = mel, frames, numbers.long(), torch.ones(8), torch.ones(8, 2, dtype=torch.bool)
    parts = list(zip(*(value.chunk(count) for value in samples), strict=True))
    step = mix_step(parts, 0.0, np.random.default_rng(5), cutmix=1.0)
    for number in range(count):
        batch, other = step.part(number)
        is_own = batch.audio == batch.label.view(1, -1, 1, 1, 1)
        is_other = batch.audio == other.view(1, -1, 1, 1, 1)
        assert (is_own | is_other).all()
        changed = other != batch.label
        assert changed.any()
        assert is_own[:, changed].float().mean() == pytest.approx(step.share, abs=2 / size)
        corner = batch.video[0, :, 0]
        expected = (10 * batch.label / 255 - 0.485) / 0.229
        own_pixels = (corner - expected.view(-1, 1, 1)).abs() < 1e-4
        assert torch.equal(own_pixels[changed], is_own[0, changed, 0])


def test_padding_is_no_partner() -> None:
    weight = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    for seed in range(20):
        other = draw_partners(weight, np.random.default_rng(seed))
        assert other[[1, 4]].tolist() == [1, 4]
        assert sorted(other[[0, 2, 3]].tolist()) == [0, 2, 3]


def test_mixup_with_alpha_zero_returns_the_samples() -> None:
    def gather(value: Tensor) -> Tensor:
        raise AssertionError

    step = mix_step([numbered(range(4))], 0.0, np.random.default_rng(0), gather=gather)
    batch, other = step.part(0)
    assert torch.equal(batch.audio.flatten(), torch.arange(4.0))
    assert torch.equal(other, batch.label)
    assert step.share == 1.0


def test_mixture_has_the_modalities_of_both_samples() -> None:
    batch, other = mix_step([numbered(range(8))], 0.4, np.random.default_rng(3)).part(0)
    assert batch.present is not None
    expected = [[a != 2 or b != 2, a % 2 == 0 or b % 2 == 0] for a, b in zip(range(8), other, strict=True)]
    assert batch.present.tolist() == torch.tensor(expected).tolist()
    assert not batch.present.all()
    plain, _ = mix_step([numbered(range(4))], 0.0, np.random.default_rng(3)).part(0)
    arguments = plain.arguments
    assert arguments["mask_a"].tolist() == [True, True, False, True]
    assert arguments["mask_v"].tolist() == [True, False, True, False]
