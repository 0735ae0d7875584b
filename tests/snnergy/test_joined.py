"""A norm and the neuron behind it, run as one: everything is as if they were two."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import snnergy
from snnergy import joined, norm_cpu
from snnergy.attention import ConvNorm
from snnergy.joined import fired
from snnergy.neuron import Neuron


def layer(channels: int = 9, outputs: int = 96) -> ConvNorm:
    torch.manual_seed(0)
    made = ConvNorm(channels, outputs, spikes=True)
    nn.init.normal_(made.norm.weight, 1.0, 0.3)
    nn.init.normal_(made.norm.bias, 0.3, 0.3)
    return made


def spikes(channels: int = 9) -> Tensor:
    return (torch.rand(4, 3, channels, 13, 11) < 0.2).float()


def apart(made: ConvNorm, neuron: Neuron, x: Tensor) -> Tensor:
    out: Tensor = neuron(made(x))
    return out


def learnt(run: Any, made: ConvNorm, neuron: Neuron, x: Tensor, grad: Tensor) -> list[Tensor]:
    """Spikes, and the gradients of the input and of all weights."""
    given = x.clone().requires_grad_()
    out = run(made, neuron, given)
    (out * grad).sum().backward()
    return [out.detach(), given.grad, *(weight.grad for weight in made.parameters())]


@pytest.mark.parametrize("outputs", [5, 96, 600])
@pytest.mark.parametrize("surrogate", ["sigmoid", "atan"])
@pytest.mark.parametrize("kind", ["lif", "if"])
def test_they_fire_and_learn_alike(kind: Any, surrogate: Any, outputs: int) -> None:
    one, two = layer(outputs=outputs), layer(outputs=outputs)
    neuron, x, grad = Neuron(1.0, kind, surrogate), spikes(), torch.randn(4, 3, outputs, 13, 11)
    got, expected = learnt(fired, one, neuron, x, grad), learnt(apart, two, neuron, x, grad)
    # A membrane within rounding of its threshold may fall to the other side, and takes its gradient with it.
    assert (got[0] != expected[0]).float().mean() < 1e-4
    same = (got[0] == expected[0]).all()
    for mine, theirs in zip(got[1:], expected[1:], strict=True):
        assert not same or (mine - theirs).abs().max() < 1e-5 * theirs.abs().max()
    for name, value in one.norm.state_dict().items():
        assert torch.equal(value, two.norm.state_dict()[name]), name


def test_threads_change_no_spike_and_gradients_by_rounding_alone() -> None:
    torch.manual_seed(0)
    x, grad = (torch.randn(4, 3, 96, 13, 11) for _ in range(2))
    weight, bias, mean, deviation = (torch.rand(96) for _ in range(4))
    how = {"threshold": 1.0, "decay": 0.5, "leaky": True}
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            fires = norm_cpu.forward(x, weight, bias, **how)
            learns = norm_cpu.backward(
                grad, x, weight, bias, mean, deviation, **how, steepness=4.0, arctan=False
            )
            found.append([fires, *learns])
    finally:
        torch.set_num_threads(threads)
    (fires, *one), (again, *three) = found
    assert torch.equal(fires, again)
    assert all((a - b).abs().max() < 1e-5 * a.abs().max() for a, b in zip(one, three, strict=True))


def test_the_normalised_current_is_not_kept() -> None:
    made, x, neuron = layer(), spikes(), Neuron()
    kept: dict[int, int] = {}

    def note(saved: Tensor) -> Tensor:
        kept[saved.untyped_storage().data_ptr()] = saved.nbytes
        return saved

    held = []
    for run in (fired, apart):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
            out = run(made, neuron, x)
        held.append(sum(kept.values()))
    # But for the statistics, some numbers a channel.
    assert held[1] - held[0] == pytest.approx(out.nbytes, rel=0.01)


class Joined(Exception):
    """They were run as one."""


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any) -> None:
        raise Joined

    monkeypatch.setattr(joined._Joined, "apply", stop)


@pytest.mark.usefixtures("refused")
def test_they_are_run_as_one_in_a_training_and_apart_wherever_that_is_not_all() -> None:
    made, neuron, x = layer(), Neuron(), spikes()
    with pytest.raises(Joined):
        fired(made, neuron, x)
    with torch.no_grad():
        fired(made, neuron, x)
    with torch.autocast("cpu", torch.bfloat16):
        fired(made, neuron, x)
    fired(made, Neuron(1.0, "plif"), x)
    fired(copy.deepcopy(made).double(), neuron, x.double())
    fired(copy.deepcopy(made).eval(), neuron, x)
    handle = neuron.register_forward_hook(lambda *given: None)
    fired(made, neuron, x)
    handle.remove()
    with pytest.raises(ValueError, match="more than 1 value"):
        fired(made, neuron, x[:1, :1, :, :1, :1])
    other = copy.deepcopy(made)
    other.norm = nn.SyncBatchNorm.convert_sync_batchnorm(other.norm)
    assert not joined._joins(other, neuron, x)


@pytest.mark.usefixtures("refused")
def test_a_network_joins_where_it_learns_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = snnergy.build("nano", num_classes=3, dims=(4, 8, 8), heads=(1, 1, 1))
    given = torch.randn(2, 4, 1, 16, 16), torch.randn(2, 4, 3, 16, 16)
    snnergy.recalibrate(model, [given])
    with pytest.raises(Joined):
        model(*given)
    model.eval()(*given)
    model.train()(*given, return_aux=True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    model(*given)


def test_a_network_learns_as_if_they_were_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for checkpoint, real in ((False, True), (True, True), (False, False)):
        torch.manual_seed(0)
        model = snnergy.build("nano", num_classes=3, checkpoint=checkpoint)
        given = torch.randn(3, 4, 1, 16, 24), torch.randn(3, 4, 3, 24, 16)
        if not real:
            monkeypatch.setattr(joined, "_joins", lambda *given: False)
        model(*given).square().sum().backward()
        state = {name: value.clone() for name, value in model.named_buffers()}
        found.append(state | {name: weight.grad for name, weight in model.named_parameters()})
    plain, with_checkpoints, apart = found
    assert all(torch.equal(value, with_checkpoints[name]) for name, value in plain.items())
    slopes = [name for name, _ in model.named_parameters()]
    one, two = (torch.cat([state[name].flatten() for name in slopes]) for state in (plain, apart))
    # Rounding may push a membrane over its threshold, and others with it.
    assert torch.cosine_similarity(one, two, dim=0) > 0.99
