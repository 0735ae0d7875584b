from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from snnergy.data import Batch
from snnergy.training.augment import augment, mixup, sample_rng, shift, spec_augment
from snnergy.training.config import AugmentConfig

B, T, F, L, SIZE = 3, 4, 12, 8, 16
EVERYTHING = AugmentConfig(bands=4, columns=4, shift=2, flip=0.5, rotate=10, jitter=0.3)
KEYS = ["a", "b", "c"]


def samples(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mel = torch.randn(B, T, 1, F, L, generator=generator)
    frames = torch.randint(0, 256, (B, T, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    return mel, frames


def changed(config: AugmentConfig = EVERYTHING, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    given_ = {"keys": KEYS, "seed": 1, "epoch": 2, **options}
    return augment(*samples(), given_.pop("keys"), config, **given_)


def test_augment_does_not_depend_on_batch() -> None:
    mel, frames = samples()
    torch.manual_seed(7)
    whole = changed()
    torch.manual_seed(8)
    alone = augment(mel[1:2], frames[1:2], ["b"], EVERYTHING, seed=1, epoch=2)
    assert torch.equal(whole[0][1], alone[0][0])
    assert torch.equal(whole[1][1], alone[1][0])


@pytest.mark.parametrize("other", [{"seed": 9}, {"epoch": 9}, {"keys": ["x", "y", "z"]}])
def test_augment_depends_on_seed_epoch_and_key(other: dict[str, Any]) -> None:
    assert not torch.equal(changed()[1], changed(**other)[1])


def test_augment_keeps_torch_generator_state() -> None:
    before = torch.get_rng_state()
    changed()
    assert torch.equal(torch.get_rng_state(), before)


def test_augment_without_changes_returns_input() -> None:
    mel, frames = samples()
    made = augment(mel, frames, KEYS, AugmentConfig(), seed=1, epoch=2)
    assert torch.equal(made[0], mel)
    assert torch.equal(made[1], frames)


def test_augment_changes_all_frames_alike() -> None:
    mel, frames = samples()
    still = frames[:, :1].expand(-1, T, -1, -1, -1)
    config = AugmentConfig(flip=0.5, rotate=10, jitter=0.3)
    _, made = augment(mel, still, KEYS, config, seed=3, epoch=0)
    assert not torch.equal(made, still)
    assert all(torch.equal(made[:, step], made[:, 0]) for step in range(T))


@given(steps=st.integers(-6, 6), repeated=st.booleans())
def test_shift_moves_both_modalities_together(steps: int, repeated: bool) -> None:
    """Each step's frame and sound hold the step's number; after the shift they still say the same."""
    frames = torch.arange(T, dtype=torch.uint8)[:, None, None, None].expand(T, 3, 2, 2)
    if repeated:
        picture = torch.arange(T).repeat_interleave(L // T).float().expand(1, F, L)
        moved, seen = shift(picture.expand(T, 1, F, L), frames, steps, repeated=True)
        told = moved[0, 0, 0, :: L // T]
    else:
        moved, seen = shift(torch.arange(T).float()[:, None, None, None].expand(T, 1, F, L), frames, steps)
        told = moved[:, 0, 0, 0]
    assert told.tolist() == seen[:, 0, 0, 0].tolist()
    assert sorted(told.tolist()) == list(range(T))


@given(seed=st.integers(0, 1000), repeated=st.booleans())
def test_spec_augment_masks_one_range_of_bands_and_columns(seed: int, repeated: bool) -> None:
    mel = torch.ones(T, 1, F, L)
    made = spec_augment(mel, 4, 5, seed, repeated=repeated)
    picture = made[0, 0] if repeated else torch.cat(list(made[:, 0]), -1)
    if repeated:
        assert all(torch.equal(made[step], made[0]) for step in range(T))
    bands, columns = (picture == 0).all(1), (picture == 0).all(0)
    assert bands.sum() <= 4
    assert columns.sum() <= 5
    for hidden in (bands, columns):
        places = hidden.nonzero().flatten().tolist()
        assert places == list(range(places[0], places[0] + len(places))) if places else True
    assert torch.equal(picture == 0, bands[:, None] | columns[None, :])


def test_mixup_uses_same_lambda_and_permutation_for_both_modalities() -> None:
    """Audio and video of sample i hold the number i; after mixing, both still hold equal numbers."""
    number = torch.arange(8.0)
    audio, video = number[None, :, None, None, None], number[None, :, None, None, None] * 1.0
    batch = Batch(audio, video, torch.arange(8), torch.ones(8))
    mixed, other, share = mixup(batch, 0.4, np.random.default_rng(3))
    assert 0 < share < 1
    assert torch.equal(mixed.audio, mixed.video)
    expected = share * batch.label + (1 - share) * other
    assert torch.allclose(mixed.audio.flatten(), expected.float(), atol=1e-5)
    assert sorted(other.tolist()) == list(range(8))
    assert other.tolist() != list(range(8))


def test_mixup_with_alpha_zero_returns_batch() -> None:
    batch = Batch(torch.ones(1), torch.ones(1), torch.arange(2), torch.ones(2))
    assert mixup(batch, 0.0, np.random.default_rng(0))[0] is batch


def test_sample_rng_differs_between_seeds_epochs_and_keys() -> None:
    drawn = {sample_rng(*of).integers(2**62) for of in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]}
    assert len(drawn) == 4
