from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import snnergy
from avdata.errors import UsageError
from snnergy.fusion.cmqka import CrossModalAttention
from snnergy.fusion.cross_attention import CCSSA
from snnergy.fusion.registry import FUSIONS


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def inputs(batch: int = 2, steps: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(steps, batch, 1, 16, 24, dtype=dtype),
        torch.randn(steps, batch, 3, 24, 16, dtype=dtype),
    )


def settled(**options: Any) -> snnergy.SNNergy:
    """A double-precision nano whose batch norms have seen data, in evaluation mode."""
    model = snnergy.build("nano", num_classes=3, **options).double()
    snnergy.recalibrate(model, [inputs(batch=4) for _ in range(2)])
    return model.eval()


OPTIONS: list[dict[str, Any]] = [
    *({"fusion": name} for name in FUSIONS),
    {"neuron": "if"},
    {"neuron": "plif"},
    {"surrogate": "atan"},
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
def test_every_option_trains(options: dict[str, Any]) -> None:
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
    ],
    ids=str,
)
def test_a_stream_judged_step_by_step_is_judged_alike(options: dict[str, Any]) -> None:
    model = settled(**options)
    audio, video = inputs()
    state = model.init_state()
    for number in range(3):
        logits, state = model.step(audio[number], video[number], state)
        with torch.no_grad():
            whole = model(audio[: number + 1], video[: number + 1])
        assert (logits - whole).abs().max() < 1e-12


def test_a_stream_can_be_taken_up_again_from_an_earlier_state() -> None:
    model = settled()
    audio, video = inputs()
    _, one = model.step(audio[0], video[0], model.init_state())
    first, _ = model.step(audio[1], video[1], one)
    model.step(audio[2], video[2], one)
    again, _ = model.step(audio[1], video[1], one)
    assert torch.equal(first, again)


def test_a_stream_needs_a_network_that_can_give_one() -> None:
    audio, video = inputs()
    training, whole = snnergy.build("nano"), snnergy.build("nano", fusion="ccssa").eval()
    with pytest.raises(UsageError, match="training"):
        training.step(audio[0], video[0], training.init_state())
    with pytest.raises(UsageError, match="every time step"):
        whole.step(audio[0], video[0], whole.init_state())


@pytest.mark.parametrize("fusion", ["cmqka", "cmqka_o", "sca", "cmci"])
def test_no_feature_knows_the_future(fusion: str) -> None:
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
def test_what_is_passed_on_is_no_mask(options: dict[str, Any]) -> None:
    """It may fire as rarely as it likes, and is no picture of where attention looks."""
    with torch.no_grad():
        _, aux = settled(**options)(*inputs(), return_aux=True)
    ends = {
        name.rsplit(".", 2)[-2] if name.endswith("neuron") else name.rsplit(".", 1)[-1]
        for name in aux["masks"]
    }
    assert ends <= {"token", "channel", "spatial", "temporal"}
    assert all(name.startswith("encoders") for name in aux["masks"]) or "fusion_output" in options
    assert all(mask[0, 0].numel() < 64 * 24 for mask in aux["masks"].values())


def test_with_sew_streams_count_spikes_up_to_their_bound() -> None:
    model = settled(residual="sew")
    with torch.no_grad():
        _, aux = model(*inputs(), return_aux=True)
    for depth, streams in zip(model.config.depths, aux["stages"], strict=True):
        for stream in streams.values():
            assert torch.equal(stream, stream.round())
            assert stream.min() >= 0
            # Two of the embedding, two of each block, one message.
            assert stream.max() <= 2 + 2 * depth + 1
            assert stream.max() > 1


def test_with_spike_output_a_fused_stream_is_binary() -> None:
    model = settled(residual="sew", fusion_output="spike")
    with torch.no_grad():
        _, aux = model(*inputs(), return_aux=True)
    assert all(((x == 0) | (x == 1)).all() for streams in aux["stages"] for x in streams.values())


@pytest.mark.parametrize("silent", ["audio", "video"])
def test_gradients_cross_to_the_modality_that_the_head_does_not_see(silent: str) -> None:
    model = snnergy.build("nano", num_classes=3)
    hidden = slice(0, 64) if silent == "audio" else slice(64, 128)
    model.head.weight.data[:, hidden] = 0
    model(*inputs(batch=4, dtype=torch.float32)).square().sum().backward()
    weight = model.encoders[silent][0].embedding.embed[0].conv.weight  # type: ignore[index]
    assert weight.grad.isfinite().all()
    assert weight.grad.abs().sum() > 0


def test_with_tied_directions_exchanging_the_modalities_exchanges_the_results() -> None:
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


def saved_bytes(call: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Bytes that a forward keeps for its backward, each memory once."""
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


def test_cmqkas_memory_is_linear_in_tokens_and_steps_and_the_quadratic_ones_is_not() -> None:
    cmqka, quadratic = CrossModalAttention(64, 4), CCSSA(64, 4)
    assert memory(cmqka, 64, 2) / memory(cmqka, 32, 2) == pytest.approx(4, rel=0.03)
    assert memory(cmqka, 16, 16) / memory(cmqka, 16, 4) == pytest.approx(4, rel=0.03)
    assert memory(quadratic, 48, 2) / memory(quadratic, 24, 2) > 9


class Work(TorchDispatchMode):
    """Counts the multiplications of matrix products and convolutions, and all numbers read and written."""

    def __init__(self) -> None:
        super().__init__()
        self.moved, self.flops = 0, FlopCounterMode(display=False)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self.moved += sum(part.numel() for part in tree_leaves((args, out)) if isinstance(part, Tensor))
        return out


def work(part: torch.nn.Module, side: int) -> int:
    """Operations of a forward and backward over side × side tokens."""
    # In double precision all is written in torch's own operators, which can be counted.
    pair = [torch.randint(0, 2, (2, 1, 32, side, side)).double() for _ in range(2)]
    count = Work()
    with count.flops, count:
        part.double()(*pair).sum().backward()
    return count.moved + count.flops.get_total_flops()


def test_cmqkas_work_is_linear_in_tokens_and_the_quadratic_ones_is_not() -> None:
    cmqka, quadratic = CrossModalAttention(32, 1), CCSSA(32, 1)
    assert work(cmqka, 64) / work(cmqka, 32) == pytest.approx(4, rel=0.03)
    assert work(quadratic, 32) / work(quadratic, 16) > 10


def test_checkpointing_changes_memory_and_nothing_else() -> None:
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
    # The streams between parts, three of a stage here, are held outside autograd's saved tensors.
    with torch.no_grad():
        stages = model(*given, return_aux=True)[1]["stages"]
    held = 3 * sum(stream.nbytes for streams in stages for stream in streams.values())
    assert kept[1] + held < kept[0] / 3


def test_no_part_that_is_computed_again_needs_half_of_what_all_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or checkpoints would take the memory that they save when that part's turn comes."""
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


@pytest.mark.parametrize(
    "options", [{}, {"residual": "sew", "neuron": "plif", "fusion_stages": (2,)}], ids=str
)
def test_the_whole_network_compiles_to_one_graph(options: dict[str, Any]) -> None:
    torch._dynamo.reset()
    model = snnergy.build("nano", num_classes=3, **options)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    given = inputs(batch=4, dtype=torch.float32)
    expected, got = model(*given), compiled(*given)
    assert torch.allclose(expected, got, atol=1e-5)
    got.square().sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_saved_network_is_built_again_from_its_folder_alone(tmp_path: Path) -> None:
    model = settled(tie_directions=True, neuron="plif", fusion_stages=(1, 3)).float()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"config.json", "model.safetensors"}
    again = snnergy.SNNergy.from_pretrained(tmp_path)
    assert again.config == model.config
    given = inputs(dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(model(*given), again(*given))


def test_static_inputs_are_shown_at_every_step() -> None:
    model = settled(steps=3)
    audio, video = inputs()
    with torch.no_grad():
        repeated = model(audio[:1].expand(3, -1, -1, -1, -1), video)
        assert (model(audio[0], video) - repeated).abs().max() < 1e-12
        both = model(audio[:1].expand(3, -1, -1, -1, -1), video[:1].expand(3, -1, -1, -1, -1))
        assert (model(audio[0], video[0]) - both).abs().max() < 1e-12


def test_segments_give_each_step_its_own_part_of_the_sound() -> None:
    model = settled(audio_mode="segment")
    audio, video = inputs()
    changed = audio[0].clone()
    changed[..., 16:] = 0
    with torch.no_grad():
        before = model(audio[0], video, return_aux=True)[1]["step_logits"]
        after = model(changed, video, return_aux=True)[1]["step_logits"]
    assert torch.equal(before[:2], after[:2])
    assert not torch.equal(before[2], after[2])


def test_samples_may_stand_before_steps() -> None:
    model = settled()
    audio, video = inputs()
    with torch.no_grad():
        turned = model(audio.transpose(0, 1), video.transpose(0, 1), layout="BTCHW")
        assert torch.equal(turned, model(audio, video))


@pytest.mark.parametrize("fusion", ["cmqka", "cmqka_o", "ccssa", "sca", "cmci", "film"])
@pytest.mark.parametrize("absent", ["audio", "video"])
def test_nothing_is_heard_of_what_is_absent(fusion: str, absent: str) -> None:
    model = settled(fusion=fusion)
    audio, video = inputs()
    masks = {"mask_a" if absent == "audio" else "mask_v": torch.tensor([False, True])}
    other = (audio + 5, video) if absent == "audio" else (audio, video + 5)
    with torch.no_grad():
        one, two = model(audio, video, **masks), model(*other, **masks)
    assert torch.equal(one[0], two[0])
    assert not torch.equal(one[1], two[1])


@pytest.mark.parametrize("fusion", ["cmqka_o", "ccssa", "sca", "cmci"])
def test_no_sample_leaks_into_another(fusion: str) -> None:
    model = settled(fusion=fusion)
    audio, video = inputs(batch=3)
    with torch.no_grad():
        together = model(audio, video)
        for number in range(3):
            alone = model(audio[:, number : number + 1], video[:, number : number + 1])
            assert (alone - together[number]).abs().max() < 1e-12


def test_quadratic_attention_is_the_sum_over_all_pairs() -> None:
    attention = CCSSA(8, 2).double().eval()
    for norm in (part.norm for part in (attention.query, attention.key, attention.value)):
        torch.nn.init.constant_(norm.bias, 1.5)
    seen: list[Tensor] = []
    attention.spatial.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    attention.temporal.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
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
        assert (got - expected.reshape(3, 2, 8, 2, 3) / 8).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dims": (16, 32, 66)}, "multiple of the heads"),
        ({"dims": (15, 32, 64), "heads": (1, 2, 4)}, "even"),
        ({"combine": "and"}, "or"),
        ({"neuron": "pilf"}, "plif"),
        ({"fusion": "concat", "head": "sum"}, "fusion='sum'"),
        ({"branches": "ts"}, "t"),
        ({"fusion_output": "spike"}, "sew"),
        ({"fusion_stages": (0,)}, "last"),
        ({"fusion": "sum", "fusion_stages": (1,)}, "cmqka"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused_with_advice(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        snnergy.build("nano", **options)
    assert said in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("dims", 4, "whole numbers"),
        ("heads", [1, 2, "x"], "whole numbers"),
        ("depths", (1, 1, 1.5), "whole numbers"),
        ("fusion_stages", 3, "whole numbers"),
        ("ratio", "abc", "a whole number"),
        ("steps", 2.5, "a whole number"),
        ("num_classes", True, "a whole number"),
        ("alpha_init", "abc", "a number"),
        ("alpha_init", float("nan"), "a number"),
        ("checkpoint", "maybe", "true or false"),
    ],
)
def test_a_setting_of_another_type_is_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be {said}"):
        snnergy.build("nano", **{name: value})


def test_added_features_are_half_as_many_as_those_beside_one_another() -> None:
    beside, given = settled(), inputs()
    added = snnergy.build("nano", num_classes=3, head="sum").double().eval()
    same = {name: value for name, value in beside.state_dict().items() if not name.startswith("head")}
    added.load_state_dict(same, strict=False)
    with torch.no_grad():
        parts, whole = (model(*given, return_aux=True)[1]["features"] for model in (beside, added))
    assert torch.allclose(whole, parts[:, :64] + parts[:, 64:])


def test_the_leak_of_neurons_does_not_decay() -> None:
    model = snnergy.build("nano", neuron="plif")
    decayed = {id(weight) for weight in model.parameter_groups(0.1)[0]["params"]}
    named = {name for name, weight in model.named_parameters() if id(weight) in decayed}
    assert not any("leak" in name or "alpha" in name or "norm" in name for name in named)
