from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from spikingjelly.activation_based import neuron as sj_neuron
from spikingjelly.activation_based import surrogate
from torch import Tensor, nn

import snnergy
from avdata.errors import UsageError
from snnergy.fusion.block import ResidualFusion
from snnergy.fusion.cmqka import CrossModalAttention
from snnergy.fusion.cross_attention import CCSSA
from snnergy.layers.attention import QKAttention, TokenSumMask, align_grid
from snnergy.layers.conv_norm import ConvNorm
from snnergy.layers.neurons import SpikingNeuron
from snnergy.layers.residual import SpikingMLP
from snnergy.models.encoder import PatchEmbedding


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(
    batch: int = 2, steps: int = 4, size: int = 32, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(steps, batch, 1, size, size, dtype=dtype),
        torch.randn(steps, batch, 3, size, size, dtype=dtype),
    )


def settled(**options: object) -> snnergy.SNNergy:
    """Return a recalibrated float64 `nano` network in evaluation mode."""
    model = snnergy.build("nano", num_classes=3, **options).double()
    snnergy.recalibrate(model, [inputs(batch=4) for _ in range(2)])
    return model.eval()


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_neuron_equals_spikingjelly(threshold: float) -> None:
    ours_in = (torch.randn(6, 3, 50) * 2).requires_grad_()
    theirs_in = ours_in.detach().clone().requires_grad_()
    reference = sj_neuron.LIFNode(
        tau=2.0,
        v_threshold=threshold,
        v_reset=0.0,
        detach_reset=True,
        step_mode="m",
        surrogate_function=surrogate.Sigmoid(4.0),
    )
    ours, theirs = SpikingNeuron(threshold)(ours_in), reference(theirs_in)
    assert torch.equal(ours, theirs)
    weight = torch.randn_like(ours)
    (ours * weight).sum().backward()
    (theirs * weight).sum().backward()
    assert ours_in.grad is not None
    assert theirs_in.grad is not None
    assert (ours_in.grad - theirs_in.grad).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("current", "fires"), [(0.99, []), (1.0, []), (1.9, [2, 4, 6, 8]), (2.0, [1, 2, 3, 4, 5, 6, 7, 8])]
)
def test_neuron_spikes_at_expected_steps(current: float, fires: list[int]) -> None:
    spikes = SpikingNeuron()(torch.full((8,), current, dtype=torch.float64)[:, None])
    assert [step + 1 for step in range(8) if spikes[step]] == fires


@settings(max_examples=30)
@given(some.lists(some.integers(0, 5), min_size=1, max_size=12))
def test_mask_neuron_is_or_of_spikes(counts: list[int]) -> None:
    summed = torch.tensor(counts, dtype=torch.float32)[:, None]
    assert torch.equal(SpikingNeuron(0.5)(summed), (summed >= 1).float())


@pytest.mark.parametrize(
    ("preset", "counts"),
    [
        ("nano", (297_784, 230_998, 115_486, 115_518, 320_156)),
        ("tiny", (1_176_164, 913_574, 456_758, 456_822, 1_263_916)),
        ("small", (3_156_204, 2_568_822, 1_284_174, 1_284_654, 3_352_380)),
        ("base", (7_181_700, 6_140_486, 3_070_054, 3_070_438, 7_529_292)),
        ("large", (34_418_396, 30_271_622, 15_134_918, 15_136_710, 35_801_740)),
    ],
)
def test_model_presets_have_expected_parameter_counts(preset: str, counts: tuple[int, ...]) -> None:
    fusions = ("cmqka", "concat", "audio", "video", "ccssa")
    with torch.device("meta"):
        built = [snnergy.build(preset, num_classes=6, video_channels=1, fusion=name) for name in fusions]
        other = snnergy.build(preset, num_classes=6, video_channels=3, residual="sew")
    assert tuple(map(weights_of, built)) == counts
    assert weights_of(other) == counts[0] + 9 * other.config.dims[0]


def weights_of(part: nn.Module) -> int:
    return sum(weight.numel() for weight in part.parameters())


@settings(max_examples=20, deadline=None)
@given(some.integers(1, 6), some.integers(1, 3), some.integers(1, 4), some.integers(1, 3))
def test_modules_have_closed_form_parameter_counts(half: int, heads: int, ratio: int, inputs: int) -> None:
    c, p = 2 * half * heads, inputs
    with torch.device("meta"):
        sizes = {
            "first": weights_of(PatchEmbedding(p, c, "membrane", first=True)),
            "later": weights_of(PatchEmbedding(p, c, "membrane", first=False)),
            "token": weights_of(QKAttention(c, heads, "token")),
            "channel": weights_of(QKAttention(c, heads, "channel")),
            "mlp": weights_of(SpikingMLP(c, ratio, "membrane")),
            "cmqka": weights_of(ResidualFusion(CrossModalAttention(c, heads), c)),
            "ccssa": weights_of(ResidualFusion(CCSSA(c, heads), c)),
        }
    shortcut = c * c // 2 + 2 * c
    assert sizes == {
        "first": 9 * p * c // 2 + c + 9 * c * c // 2 + 2 * c + 9 * c * c + 2 * c + shortcut,
        "later": 9 * p * c + 2 * c + 9 * c * c + 2 * c + p * c + 2 * c,
        "token": 3 * c * c + 6 * c,
        "channel": 3 * c * c + 8 * c,
        "mlp": 2 * ratio * c * c + 2 * ratio * c + 2 * c,
        "cmqka": 6 * c * c + 10 * c + 1 + 2 * heads,
        "ccssa": 8 * c * c + 14 * c + 1,
    }


@pytest.mark.parametrize(
    "options",
    [{}, {"readout": "rate"}, {"branches": "o"}, {"combine": "or"}, {"stage3": "ssa"}, {"fusion": "ccssa"},
     {"fusion": "sca"}, {"fusion_mlp": True}],
    ids=str,
)  # fmt: skip
def test_membrane_mode_convolutions_read_spikes_only(
    options: dict[str, object],
) -> None:
    model = settled(**options)
    seen: dict[str, bool] = {}
    for name, part in model.named_modules():
        if isinstance(part, ConvNorm):
            part.register_forward_pre_hook(
                lambda _, given, name=name: seen.update(
                    {name: bool(((given[0] == 0) | (given[0] == 1)).all())}
                )
            )
    model(*inputs())
    real = [name for name, binary in seen.items() if not binary]
    assert sorted(real) == ["encoders.audio.0.embedding.embed.0", "encoders.video.0.embedding.embed.0"]
    assert len(seen) > 50


def test_sample_does_not_depend_on_batch_or_position() -> None:
    model = settled()
    audio, video = inputs(batch=4)
    with torch.no_grad():
        together = model(audio, video)
        assert torch.equal(together, model(audio, video))
        for number in range(4):
            alone = model(audio[:, number : number + 1], video[:, number : number + 1])
            assert (alone - together[number]).abs().max() < 1e-12
        turned = torch.tensor([2, 0, 3, 1])
        assert torch.equal(model(audio[:, turned], video[:, turned]), together[turned])


def test_network_is_causal() -> None:
    attention = CrossModalAttention(16, 2).double().eval()
    target, source = (torch.randint(0, 2, (4, 2, 16, 6, 6)).double() for _ in range(2))
    with torch.no_grad():
        before = attention(target, source)
        changed_target, changed_source = target.clone(), source.clone()
        changed_target[2:], changed_source[2:] = 1 - target[2:], 1 - source[2:]
        assert torch.equal(attention(changed_target, changed_source)[:2], before[:2])


@pytest.mark.parametrize("branches", ["s", "t", "st", "o"])
def test_cmqka_is_equivariant_to_token_permutation(branches: str) -> None:
    attention = CrossModalAttention(16, 2, branches).double().eval()
    target, source = (torch.randint(0, 2, (4, 2, 16, 5, 5)).double() for _ in range(2))
    turned = torch.randperm(25)

    def turn(spikes: Tensor) -> Tensor:
        return spikes.flatten(3)[..., turned].unflatten(3, (5, 5))

    with torch.no_grad():
        assert torch.equal(attention(turn(target), turn(source)), turn(attention(target, source)))


def test_outer_branch_ignores_source_positions_and_grid() -> None:
    attention = CrossModalAttention(16, 2, "o").double().train()
    target, source = torch.randint(0, 2, (4, 2, 16, 5, 5)).double(), torch.rand(4, 2, 16, 6, 8) < 0.2
    moved = source.flatten(3)[..., torch.randperm(48)].unflatten(3, (4, 12)).double()
    with torch.no_grad():
        given = attention(target, source.double())
        assert torch.equal(attention(target, moved), given)
        assert not torch.equal(attention(target, 1 - moved), given)


def test_alpha_zero_equals_concat() -> None:
    fused, plain = settled(), settled(fusion="concat")
    plain.load_state_dict(
        {name: value for name, value in fused.state_dict().items() if not name.startswith("fusions")}
    )
    for name, weight in fused.named_parameters():
        if name.endswith("alpha"):
            weight.data.zero_()
    with torch.no_grad():
        assert torch.equal(fused(*inputs_of(7)), plain(*inputs_of(7)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"1": 0.1, "2": 0.1, "3": 1.0}),
        ({"alpha_init": 0.5}, {"1": 0.5, "2": 0.5, "3": 0.5}),
        ({"alpha_init": 1}, {"1": 1.0, "2": 1.0, "3": 1.0}),
        ({"alpha_init": [0, 0, 1]}, {"1": 0.0, "2": 0.0, "3": 1.0}),
        ({"alpha_init": [0.2, 0.3, 0.4], "fusion_stages": (1, 3)}, {"1": 0.2, "3": 0.4}),
    ],
    ids=str,
)
def test_alpha_init_is_one_number_or_one_per_stage(
    options: dict[str, Any], expected: dict[str, float]
) -> None:
    model = snnergy.build("nano", **options)
    for direction in ("to_audio", "to_video"):
        alphas = {
            stage: float(getattr(fusion, direction).alpha.detach()) for stage, fusion in model.fusions.items()
        }
        assert alphas == pytest.approx(expected)


def inputs_of(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return inputs()


def test_gradients_reach_first_convolutions_queries_keys_and_alpha() -> None:
    model = snnergy.build("nano", num_classes=3)
    model(*inputs(batch=4, dtype=torch.float32)).square().sum().backward()
    for name, weight in model.named_parameters():
        if any(part in name for part in ("embed.0.conv", "query.conv", "key.conv", "alpha")):
            assert weight.grad is not None, name
            assert weight.grad.isfinite().all(), name
            assert weight.grad.abs().sum() > 0, name


@pytest.mark.parametrize("residual", ["membrane", "sew"])
@pytest.mark.parametrize(
    ("audio", "video"), [((33, 51), (31, 29)), ((128, 16), (40, 40)), ((16, 16), (64, 48))]
)
def test_forward_accepts_odd_and_unequal_grids(
    residual: str, audio: tuple[int, int], video: tuple[int, int]
) -> None:
    model = snnergy.build("nano", num_classes=5, video_channels=1, residual=residual).eval()
    for steps, batch in ((1, 1), (3, 2)):
        logits = model(torch.randn(steps, batch, 1, *audio), torch.randn(steps, batch, 1, *video))
        assert logits.shape == (batch, 5)
        assert logits.isfinite().all()


@given(some.integers(1, 9), some.integers(1, 9))
@settings(max_examples=20)
def test_align_grid_keeps_spikes_binary(height: int, width: int) -> None:
    spikes = torch.randint(0, 2, (2, 2, 3, 5, 4)).float()
    got = align_grid(spikes, (height, width))
    assert got.shape[-2:] == (height, width)
    assert ((got == 0) | (got == 1)).all()
    assert torch.equal(align_grid(spikes, (5, 4)), spikes)


def test_absent_modality_sends_no_update() -> None:
    model = settled()
    audio, video = inputs()
    _, other = inputs()
    absent = torch.tensor([False, True])
    with torch.no_grad():
        one, two = (model(audio, sight, mask_v=absent) for sight in (video, other))
        assert torch.equal(one[0], two[0])
        assert not torch.equal(one[1], two[1])


def test_recalibrate_restores_firing_rates_and_module_state() -> None:
    model = snnergy.build("nano", num_classes=3)
    batches = [inputs(batch=4, dtype=torch.float32) for _ in range(4)]
    rates: list[float] = []
    for part in model.modules():
        if isinstance(part, SpikingNeuron):
            part.register_forward_hook(lambda _, __, spikes: rates.append(float(spikes.mean())))

    def mean_rate() -> float:
        rates.clear()
        with torch.no_grad():
            model(*batches[0])
        return sum(rates) / len(rates)

    training = mean_rate()
    snnergy.recalibrate(model, batches)
    assert model.training
    assert all(part.momentum == 0.1 for part in model.modules() if isinstance(part, nn.BatchNorm2d))
    model.eval()
    assert mean_rate() == pytest.approx(training, rel=0.15)


def test_model_survives_saving_and_copying() -> None:
    model = settled()
    model(*inputs())
    kept = {name.rsplit(".", 1)[-1] for name, _ in model.named_buffers()}
    assert kept == {"running_mean", "running_var", "num_batches_tracked"}
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other = settled()
    other.load_state_dict(torch.load(stream, weights_only=True))
    given = inputs()
    with torch.no_grad():
        assert torch.equal(model(*given), other(*given))
        assert torch.equal(model(*given), copy.deepcopy(model)(*given))


def test_bfloat16_keeps_spikes_binary_and_loss_finite() -> None:
    model = snnergy.build("nano", num_classes=3)
    binary: list[bool] = []
    for part in model.modules():
        if isinstance(part, SpikingNeuron):
            part.register_forward_hook(
                lambda _, __, spikes: binary.append(bool(((spikes == 0) | (spikes == 1)).all()))
            )
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(*inputs(dtype=torch.float32)).square().sum()
    assert all(binary)
    assert loss.isfinite()


def test_bfloat16_sums_are_exact_over_many_tokens() -> None:
    seen: list[Tensor] = []
    gate = TokenSumMask(6, "none")
    gate.neuron.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    spikes = (torch.rand(2, 3, 2, 3, 40, 40) < 0.5).bfloat16()
    mask = gate(spikes)
    assert mask.dtype == torch.bfloat16
    assert torch.equal(seen[0].flatten().long(), spikes.bool().sum((4, 5)).flatten())


def test_recalibrate_follows_masks() -> None:
    batch, absent = inputs(batch=4), torch.tensor([False, False, False, True])
    masked, plain = settled(), settled()
    plain.load_state_dict(masked.state_dict())
    snnergy.recalibrate(masked, [(*batch, None, absent)])
    snnergy.recalibrate(plain, [batch])
    changed = {
        name
        for name, value in masked.state_dict().items()
        if not torch.equal(value, plain.state_dict()[name])
    }
    # Without a message from the absent video, the second stage of the audio encoder reads something else.
    assert any(name.startswith("encoders.audio.1") for name in changed)
    assert not any(name.startswith(("encoders.audio.0", "encoders.video.0")) for name in changed)


def test_recalibrate_raises_without_batches() -> None:
    model = settled()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="No batches"):
        snnergy.recalibrate(model, [])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_parameter_groups_exclude_norms_biases_and_alpha() -> None:
    model = snnergy.build("nano", num_classes=3, alpha_shape="channel")
    decayed, plain = model.parameter_groups(0.05)
    named = {id(weight): name for name, weight in model.named_parameters()}
    assert all(
        named[id(weight)].endswith("weight") and "norm" not in named[id(weight)]
        for weight in decayed["params"]
    )
    assert sum(len(group["params"]) for group in (decayed, plain)) == len(named)
    assert plain["weight_decay"] == 0


@pytest.mark.parametrize("kind", ["token", "channel"])
def test_attention_output_is_binary(kind: str) -> None:
    attention = QKAttention(16, 2, kind)  # type: ignore[arg-type]
    seen: list[Tensor] = []
    attention.out.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    attention(torch.randint(0, 2, (4, 2, 16, 6, 6)).float())
    assert ((seen[0] == 0) | (seen[0] == 1)).all()


@pytest.mark.parametrize(("options", "said"), [({"fusion": "cmka"}, "cmqka"), ({"depth": 1}, "depths")])
def test_build_suggests_nearest_name(options: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        snnergy.build("nano", **options)
    assert said in str(caught.value.hint)
    with pytest.raises(UsageError, match="Unknown model preset"):
        snnergy.build("nanno")


def test_forward_rejects_mismatched_shapes() -> None:
    model = snnergy.build("nano")
    with pytest.raises(ValueError, match="same T"):
        model(torch.zeros(4, 2, 1, 32, 32), torch.zeros(3, 2, 3, 32, 32))
    with pytest.raises(ValueError, match="at least 16"):
        model(torch.zeros(4, 2, 1, 8, 32), torch.zeros(4, 2, 3, 32, 32))
