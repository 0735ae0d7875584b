from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based.neuron import LIFNode
from spikingjelly.activation_based.surrogate import Sigmoid
from torch import Tensor

import snnergy
from avdata.errors import UsageError
from snnergy.fusion.cross_attention import CCSSA
from snnergy.fusion.registry import FUSIONS
from snnergy.layers.monitor import record_spikes
from snnergy.layers.neurons import ATTENTION_THRESHOLD, SpikingNeuron
from snnergy.layers.residual import DropPath

READOUTS = ("membrane", "rate")

SPIKING = [name for name, spec in FUSIONS.items() if spec.stage != "input" and not spec.artificial]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(batch: int = 2, steps: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(steps, batch, 1, 16, 24, dtype=dtype),
        torch.randn(steps, batch, 3, 24, 16, dtype=dtype),
    )


def settled(**options: Any) -> snnergy.SNNergy:
    """Return a recalibrated float64 `nano` network in evaluation mode."""
    model = snnergy.build("nano", num_classes=3, **options).double()
    snnergy.recalibrate(model, [inputs(batch=4) for _ in range(2)])
    return model.eval()


OPTIONS: list[dict[str, Any]] = [
    *({"fusion": name} for name in FUSIONS),
    {"readout": "rate"},
    {"readout": "rate", "neuron": "plif"},
    {"neuron": "if"},
    {"neuron": "plif"},
    {"surrogate": "atan"},
    {"tau": 3.0, "v_threshold": 0.8, "reset": "soft", "surrogate_slope": 2.0},
    {"dropout": 0.2, "drop_path": 0.3},
    {"combine": "or"},
    {"combine": "sum"},
    {"query_source": "source"},
    {"sum_norm": "none"},
    {"tie_directions": True},
    {"alpha_shape": "channel"},
    {"residual": "sew", "fusion_output": "spike"},
    {"residual": "sew", "neuron": "plif"},
    {"fusion_mlp": True},
    {"stage3": "ssa"},
    {"fusion_stages": (1, 3)},
    {"rpe": True},
    {"residual": "sew", "rpe": True, "head": "sum"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_network_trains_with_every_option(options: dict[str, Any]) -> None:
    model = snnergy.build("nano", num_classes=3, **options)
    model(*inputs(batch=4, dtype=torch.float32)).square().sum().backward()
    silent = [
        name
        for name, weight in model.named_parameters()
        if (weight.grad is None or not weight.grad.isfinite().all())
        and options.get("fusion") != "cmqka_fixed0"
    ]
    assert silent == []


@pytest.mark.parametrize(
    "options",
    [
        *({"fusion": name} for name in ("cmqka", "cmqka_o", "sca", "cmci", "film", "audio")),
        {"neuron": "if", "stage3": "ssa"},
        {"neuron": "plif", "residual": "sew", "fusion_output": "spike"},
        {"tie_directions": True},
        {"readout": "rate", "tau": 3.0, "v_threshold": 0.8, "reset": "soft"},
    ],
    ids=str,
)
def test_step_gives_logits_of_forward(options: dict[str, Any]) -> None:
    model = settled(**options)
    audio, video = inputs()
    state = model.init_state()
    for number in range(3):
        logits, state = model.step(audio[number], video[number], state)
        with torch.no_grad():
            whole = model(audio[: number + 1], video[: number + 1])
        assert (logits - whole).abs().max() < 1e-12


def test_step_does_not_modify_state() -> None:
    model = settled()
    audio, video = inputs()
    _, one = model.step(audio[0], video[0], model.init_state())
    first, _ = model.step(audio[1], video[1], one)
    model.step(audio[2], video[2], one)
    again, _ = model.step(audio[1], video[1], one)
    assert torch.equal(first, again)


def test_step_raises_in_training_mode_and_for_non_causal_fusion() -> None:
    audio, video = inputs()
    training, whole = snnergy.build("nano"), snnergy.build("nano", fusion="ccssa").eval()
    with pytest.raises(UsageError, match="training"):
        training.step(audio[0], video[0], training.init_state())
    with pytest.raises(UsageError, match="all time steps"):
        whole.step(audio[0], video[0], whole.init_state())


@pytest.mark.parametrize("fusion", ["cmqka", "cmqka_o", "sca", "cmci"])
def test_step_logits_are_causal(fusion: str) -> None:
    model = settled(fusion=fusion)
    audio, video = inputs()
    changed_audio, changed_video = audio.clone(), video.clone()
    changed_audio[2:] += 3
    changed_video[2:] -= 3
    with torch.no_grad():
        before = model(audio, video, return_aux=True)[1]["step_logits"]
        after = model(changed_audio, changed_video, return_aux=True)[1]["step_logits"]
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_queries_keys_and_masks_are_binary() -> None:
    model = settled()
    seen: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if name.endswith(("query_neuron", "key_neuron", "attention.neuron")):
            part.register_forward_hook(lambda _, __, spikes, name=name: seen.update({name: spikes}))
    with torch.no_grad():
        _, aux = model(*inputs(), return_aux=True)
    assert len(seen) == 3 * 2 * 2 + 6
    assert all(((spikes == 0) | (spikes == 1)).all() for spikes in seen.values())
    assert len(aux["masks"]) == 6 + 3 * 2 * 2
    assert all(mask.dtype == torch.bool for mask in aux["masks"].values())
    assert all(0 <= rate <= 1 for rate in aux["rates"].values())


@pytest.mark.parametrize(
    "options",
    [
        *({"fusion": name} for name in ("ccssa", "sca")),
        {"stage3": "ssa", "fusion": "concat"},
        {"residual": "sew", "fusion_output": "spike"},
    ],
    ids=str,
)
def test_attention_output_neurons_are_not_masks(options: dict[str, Any]) -> None:
    """Attention neurons whose spikes are features are not reported as masks."""
    with torch.no_grad():
        _, aux = settled(**options)(*inputs(), return_aux=True)
    ends = {
        name.rsplit(".", 2)[-2] if name.endswith("neuron") else name.rsplit(".", 1)[-1]
        for name in aux["masks"]
    }
    assert ends <= {"token", "channel", "spatial", "temporal"}
    assert all(name.startswith("encoders") for name in aux["masks"]) or "fusion_output" in options
    assert all(mask[0, 0].numel() < 64 * 24 for mask in aux["masks"].values())


def test_sew_streams_are_integers_up_to_bound() -> None:
    model = settled(residual="sew", alpha_init=1.0)
    with torch.no_grad():
        _, aux = model(*inputs(), return_aux=True)
    for depth, streams in zip(model.config.depths, aux["stages"], strict=True):
        for stream in streams.values():
            assert torch.equal(stream, stream.round())
            assert stream.min() >= 0
            # Two from the embedding, two from each block, one from the fusion.
            assert stream.max() <= 2 + 2 * depth + 1
            assert stream.max() > 1


def test_spike_output_makes_fused_stream_binary() -> None:
    model = settled(residual="sew", fusion_output="spike")
    with torch.no_grad():
        _, aux = model(*inputs(), return_aux=True)
    assert all(((x == 0) | (x == 1)).all() for streams in aux["stages"] for x in streams.values())


@pytest.mark.parametrize("silent", ["audio", "video"])
def test_gradients_reach_modality_without_head_input(silent: str) -> None:
    model = snnergy.build("nano", num_classes=3)
    hidden = slice(0, 64) if silent == "audio" else slice(64, 128)
    model.head.weight.data[:, hidden] = 0
    model(*inputs(batch=4, dtype=torch.float32)).square().sum().backward()
    weight = model.encoders[silent][0].embedding.embed[0].conv.weight  # type: ignore[index]
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().sum() > 0


def test_tied_directions_are_symmetric() -> None:
    model = settled(tie_directions=True)
    exchange = model.fusions["1"]
    audio, video = (torch.randn(3, 2, 16, 6, 6, dtype=torch.float64) * 2 for _ in range(2))
    nobody = {"audio": None, "video": None}
    with torch.no_grad():
        straight = exchange({"audio": audio, "video": video}, nobody)
        turned = exchange({"audio": video, "video": audio}, nobody)
    assert torch.equal(straight["audio"], turned["video"])
    assert torch.equal(straight["video"], turned["audio"])
    assert not torch.equal(straight["audio"], audio)


@pytest.mark.parametrize(
    "options",
    [
        {"fusion_stages": (2,)},
        pytest.param({}, marks=pytest.mark.exhaustive),
        pytest.param({"residual": "sew", "neuron": "plif"}, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_network_compiles_to_one_graph(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = snnergy.build("nano", num_classes=3, **options)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    given = inputs(batch=4, dtype=torch.float32)
    expected, got = model(*given), compiled(*given)
    assert torch.allclose(expected, got, atol=1e-5)
    got.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_from_pretrained_restores_saved_network(tmp_path: Path) -> None:
    model = settled(tie_directions=True, neuron="plif", fusion_stages=(1, 3)).float()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    again = snnergy.SNNergy.from_pretrained(tmp_path)
    assert again.config == model.config
    given = inputs(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(*given), again(*given))


def test_forward_repeats_static_inputs() -> None:
    model = settled(steps=3)
    audio, video = inputs()
    with torch.no_grad():
        repeated = model(audio[:1].expand(3, -1, -1, -1, -1), video)
        assert (model(audio[0], video) - repeated).abs().max() < 1e-12
        both = model(audio[:1].expand(3, -1, -1, -1, -1), video[:1].expand(3, -1, -1, -1, -1))
        assert (model(audio[0], video[0]) - both).abs().max() < 1e-12


def test_forward_segments_static_audio() -> None:
    model = settled(audio_mode="segment")
    audio, video = inputs()
    changed = audio[0].clone()
    changed[..., 16:] = 0
    with torch.no_grad():
        before = model(audio[0], video, return_aux=True)[1]["step_logits"]
        after = model(changed, video, return_aux=True)[1]["step_logits"]
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_forward_accepts_batch_first_layout() -> None:
    model = settled()
    audio, video = inputs()
    with torch.no_grad():
        turned = model(audio.transpose(0, 1), video.transpose(0, 1), layout="BTCHW")
        assert torch.equal(turned, model(audio, video))


@pytest.mark.parametrize("fusion", ["cmqka", "cmqka_o", "ccssa", "sca", "cmci", "film"])
@pytest.mark.parametrize("absent", ["audio", "video"])
def test_absent_modality_does_not_affect_logits(fusion: str, absent: str) -> None:
    model = settled(fusion=fusion)
    audio, video = inputs()
    masks = {"mask_a" if absent == "audio" else "mask_v": torch.tensor([False, True])}
    other = (audio + 5, video) if absent == "audio" else (audio, video + 5)
    with torch.no_grad():
        one, two = model(audio, video, **masks), model(*other, **masks)
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


@pytest.mark.parametrize("fusion", ["cmqka_o", "ccssa", "sca", "cmci"])
def test_samples_of_a_batch_are_independent(fusion: str) -> None:
    model = settled(fusion=fusion)
    audio, video = inputs(batch=3)
    with torch.no_grad():
        together = model(audio, video)
        for number in range(3):
            alone = model(audio[:, number : number + 1], video[:, number : number + 1])
            assert (alone - together[number]).abs().max() < 1e-12


def test_ccssa_equals_sum_over_all_pairs() -> None:
    attention = CCSSA(8, 2).double().eval()
    for norm in (part.norm for part in (attention.query, attention.key, attention.value)):
        torch.nn.init.constant_(norm.bias, 1.5)
    seen: list[Tensor] = []
    attention.spatial.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(2, 3)))
    attention.temporal.register_forward_pre_hook(lambda _, given: seen.append(given[0].flatten(2, 3)))
    target, source = (torch.randint(0, 2, (3, 2, 8, 2, 3)).double() for _ in range(2))
    attention(target, source)
    parts = [attention.query(target), attention.key(source), attention.value(source)]
    query, key, value = (
        neuron(part).reshape(3, 2, 2, 2, 4, 6) for neuron, part in zip(attention.neurons, parts, strict=True)
    )
    spatial = torch.einsum("tbhdn,tbhdm,tbhem->tbhen", query[:, :, 0], key[:, :, 0], value[:, :, 0])
    temporal = torch.einsum("tbhdn,ubhdn,ubhen->tbhen", query[:, :, 1], key[:, :, 1], value[:, :, 1])
    for got, expected in zip(seen, (spatial, temporal), strict=True):
        assert expected.abs().sum() > 0
        assert (got - expected.reshape(3, 2, 8, 6)).abs().max() < 1e-12


def test_readout_is_mean_of_stream_or_of_its_spikes() -> None:
    given = inputs()
    for readout in ("membrane", "rate"):
        _, aux = settled(readout=readout)(*given, return_aux=True)
        streams = [aux["stages"][-1][name] for name in ("audio", "video")]
        if readout == "rate":
            # τ = 2 and threshold 1, from a membrane of 0.
            reference = LIFNode(
                tau=2.0, v_threshold=1.0, v_reset=0.0, step_mode="m", surrogate_function=Sigmoid(4.0)
            )
            spikes = []
            for stream in streams:
                spikes.append(reference(stream))
                reference.reset()
            streams = spikes
        expected = torch.cat([stream.mean((0, 3, 4)) for stream in streams], 1)
        assert (aux["features"] - expected).abs().max() < 1e-12


def test_readouts_are_equal_with_sew_and_have_no_weights() -> None:
    networks = []
    for readout in READOUTS:
        torch.manual_seed(0)
        networks.append(settled(residual="sew", readout=readout))
    given = inputs()
    with torch.no_grad():
        assert torch.equal(networks[0](*given), networks[1](*given))
    counts = [sum(map(torch.numel, snnergy.build("nano", readout=name).parameters())) for name in READOUTS]
    assert counts[0] == counts[1]


def test_membrane_readout_has_no_neuron_whose_leak_is_never_used() -> None:
    names = dict(snnergy.build("nano", neuron="plif").named_parameters())
    assert not any(name.startswith("readouts") for name in names)


@pytest.mark.parametrize(
    ("fusion", "size"),
    [
        *((fusion, 32) for fusion in SPIKING),
        ("cmqka", 128),
        *(
            pytest.param(fusion, size, marks=pytest.mark.exhaustive)
            for fusion in SPIKING
            for size in (64, 128)
            if (fusion, size) != ("cmqka", 128)
        ),
    ],
)
def test_attention_is_active_and_every_weight_learns_in_a_new_network(fusion: str, size: int) -> None:
    model = snnergy.build("nano", num_classes=3, fusion=fusion)
    rates: dict[str, float] = {}

    def record(name: str, neuron: SpikingNeuron, spikes: Tensor) -> None:
        if neuron.threshold == ATTENTION_THRESHOLD:
            rates[name] = float(spikes.mean())

    with record_spikes(model, record):
        logits = model(torch.randn(4, 4, 1, size, size), torch.randn(4, 4, 3, size, size))
    assert rates
    assert {name: rate for name, rate in rates.items() if not 0.02 <= rate <= 0.98} == {}
    logits.square().sum().backward()
    # α = 0 multiplies every gradient of a fusion.
    silent = {
        name.split(".")[0]
        for name, weight in model.named_parameters()
        if weight.grad is None or not weight.grad.any()
    }
    assert silent == ({"fusions"} if fusion == "cmqka_fixed0" else set())


def test_sum_head_adds_features() -> None:
    beside, given = settled(), inputs()
    added = snnergy.build("nano", num_classes=3, head="sum").double().eval()
    same = {name: value for name, value in beside.state_dict().items() if not name.startswith("head")}
    added.load_state_dict(same, strict=False)
    with torch.no_grad():
        parts, whole = (model(*given, return_aux=True)[1]["features"] for model in (beside, added))
    assert torch.allclose(whole, parts[:, :64] + parts[:, 64:])


def test_parameter_groups_exclude_leak_from_decay() -> None:
    model = snnergy.build("nano", neuron="plif")
    decayed = {id(weight) for weight in model.parameter_groups(0.1)[0]["params"]}
    named = {name for name, weight in model.named_parameters() if id(weight) in decayed}
    assert not any("leak" in name or "alpha" in name or "norm" in name for name in named)


def test_neuron_options_do_not_change_attention_masks_or_weights() -> None:
    model = snnergy.build("nano", tau=3.0, v_threshold=0.7, reset="soft", surrogate_slope=1.5, dropout=0.1)
    neurons = [part for part in model.modules() if isinstance(part, SpikingNeuron)]
    assert {(part.threshold, part.tau, part.reset) for part in neurons if part.mask} == {(0.5, 2.0, "hard")}
    assert {(part.threshold, part.tau, part.reset) for part in neurons if not part.mask} == {
        (0.7, 3.0, "soft")
    }
    assert {part.slope for part in neurons} == {1.5}
    assert model.state_dict().keys() == snnergy.build("nano").state_dict().keys()


def test_drop_path_skips_branches_of_samples_and_keeps_the_mean() -> None:
    drop = DropPath(0.25)
    branch = torch.ones(3, 4000, 2, 1, 1)
    dropped = drop(branch)
    values = dropped.flatten(2).unique()
    assert values.tolist() == pytest.approx([0.0, 4 / 3])
    assert torch.equal(dropped, dropped[:1, :, :1].expand_as(dropped))
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(branch), branch)
    with torch.device("meta"):
        base = snnergy.build("base", drop_path=0.2)
    shares = [part.share for part in base.modules() if isinstance(part, DropPath)]
    # Two branches per block, five blocks per encoder; the MLP follows the attention of its block.
    assert shares[:10] == pytest.approx([0.0, 0.0, 0.05, 0.05, 0.1, 0.1, 0.15, 0.15, 0.2, 0.2])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"tau": 1.0}, "tau must be greater than 1"),
        ({"dropout": 1.0}, "dropout must be at least 0"),
        ({"surrogate_slope": 0}, "surrogate_slope must be greater than 0"),
        ({"reset": "none"}, "Unknown reset 'none'"),
        ({"drop_path": 0.1, "residual": "sew"}, "drop_path contradicts residual='sew'"),
    ],
)
def test_model_options_out_of_range_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        snnergy.build("nano", **options)
