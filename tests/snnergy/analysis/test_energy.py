from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import Tensor, nn
from typer.testing import CliRunner

import snnergy
from avdata.errors import UsageError
from snnergy.analysis.energy import AC_PJ, MAC_PJ, Energy, measure_energy, plot_energy
from snnergy.analysis.tables import layer_row
from snnergy.cli import app


def inputs(batch: int = 2, steps: int = 2) -> tuple[Tensor, Tensor]:
    return torch.randn(steps, batch, 1, 32, 32), torch.randn(steps, batch, 3, 32, 32)


def settled(**options: object) -> snnergy.SNNergy:
    torch.manual_seed(0)
    model = snnergy.build("nano", num_classes=3, **options)
    snnergy.recalibrate(model, [inputs(batch=4)])
    return model.eval()


@pytest.fixture(scope="module")
def energy() -> Energy:
    return measure_energy(settled(), [inputs()])


@pytest.mark.parametrize("readout", ["membrane", "rate"])
def test_synaptic_operations_equal_spikingjelly(readout: str) -> None:
    model, given = settled(readout=readout), inputs()
    counter = SynOpCounter()
    with torch.no_grad(), DispatchCounterMode([counter]):
        model(*given)
    counted = sum(layer.sops_exact for layer in measure_energy(model, [given]).layers if layer.spiking)
    assert counted > 1e5
    assert counted * 2 == counter.get_total()


def test_exact_operations_are_fewer_than_estimated_from_rates(energy: Energy) -> None:
    exact, rate = (
        sum(getattr(layer, name) for layer in energy.layers if layer.spiking)
        for name in ("sops_exact", "sops_rate")
    )
    # Grids of two by two are nothing but borders.
    assert 0.75 * rate < exact < rate
    assert energy.millijoules() < energy.millijoules("rate") < energy.reference_millijoules
    assert energy.millijoules_with_memory > energy.reference_millijoules / 10


def test_only_first_convolutions_and_head_use_macs(energy: Energy) -> None:
    real = [layer.name for layer in energy.layers if not layer.spiking]
    assert real == [
        "encoders.audio.0.embedding.embed.0.conv", "encoders.video.0.embedding.embed.0.conv", "head"
    ]  # fmt: skip
    # Two steps of a 3×3 convolution from one channel to 8 on 32×32.
    assert energy.layers[0].macs == 2 * 9 * 8 * 32 * 32


def test_static_inputs_are_counted_once() -> None:
    model = settled(steps=2)
    audio, video = inputs()
    measured = measure_energy(model, [(audio[0], video)])
    assert measured.layers[0].macs == 9 * 8 * 32 * 32


def test_absent_modality_sends_no_message_whose_spikes_count() -> None:
    model, given, absent = settled(), inputs(), torch.tensor([False, False])
    all_there, video_absent = (
        {layer.name: layer.sops_exact for layer in measure_energy(model, [batch]).layers}
        for batch in (given, (*given, None, absent))
    )
    changed = {name for name, sops in all_there.items() if sops != video_absent[name]}
    assert any(name.startswith("encoders.audio.1") for name in changed)
    assert not any(name.startswith(("encoders.audio.0", "encoders.video.0")) for name in changed)


def test_zero_input_costs_only_spikes_from_biases() -> None:
    model = settled()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.zeros_(part.bias)
            part.reset_running_stats()
    audio, video = inputs()
    silent = measure_energy(model, [(audio * 0, video * 0)])
    assert silent.attention == 0
    assert sum(layer.sops_exact for layer in silent.layers) == 0
    assert silent.millijoules() == pytest.approx(
        MAC_PJ * 1e-9 * sum(layer.macs for layer in silent.layers if not layer.spiking)
    )


def test_attention_products_are_counted_per_pair() -> None:
    model = settled(fusion="sca", fusion_stages=(1,))
    fired: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if name.endswith(("message.query_neuron", "message.key_neuron")):
            part.register_forward_hook(lambda _, __, spikes, name=name: fired.update({name: spikes}))
    given = inputs()
    counted = measure_energy(model, [given]).attention
    pairs = 0.0
    for side in ("to_audio", "to_video"):
        query, both = (fired[f"fusions.1.{side}.message.{end}_neuron"].flatten(3) for end in ("query", "key"))
        key, value = both.chunk(2, dim=2)
        scores = torch.einsum("tbcn,tbcm->tbnm", query, key)
        pairs += float(scores.sum() + torch.einsum("tbnm,tbcm->tbcn", scores, value).sum())
    assert pairs > 0
    assert counted >= pairs / 2


@pytest.mark.parametrize("mlp", [False, True])
def test_sew_spike_is_one_event_for_any_alpha(mlp: bool) -> None:
    model, given, found = settled(residual="sew", fusion_stages=(1,), fusion_mlp=mlp), inputs(), []
    for alpha in (1.0, 0.3, -2.0):
        for name, weight in model.named_parameters():
            if name.endswith("alpha"):
                weight.data.fill_(alpha)
        # What the fused stream makes others fire is not asked here.
        counted = {layer.name: layer.sops_exact for layer in measure_energy(model, [given]).layers}
        fed = "fusions.1.mlp.audio.layers.0.conv" if mlp else "encoders.audio.1.embedding.shortcut.conv"
        found.append(counted[fed])
    assert found[0] > 0
    assert found[1:] == found[:1] * 2


def test_sew_events_equal_layer_inputs_for_alpha_one() -> None:
    model, given = settled(residual="sew", fusion_mlp=True, alpha_init=1.0), inputs()
    fed: dict[str, float] = {}
    for name, part in model.named_modules():
        if isinstance(part, nn.Conv2d):
            part.register_forward_hook(lambda _, x, __, name=name: fed.update({name: float(x[0].mean())}))
    rates = {layer.name: layer.rate for layer in measure_energy(model, [given]).layers if layer.name in fed}
    assert rates == pytest.approx(fed, rel=1e-5)


def test_energy_is_sum_of_its_parts(energy: Energy) -> None:
    parts = sum(layer.millijoules for layer in energy.layers) + AC_PJ * 1e-9 * energy.attention
    assert energy.millijoules() == pytest.approx(parts)


def test_plot_energy_writes_file(energy: Energy, tmp_path: Path) -> None:
    plot_energy(energy, tmp_path / "energy.png")
    assert (tmp_path / "energy.png").read_bytes().startswith(b"\x89PNG")


def test_layer_rows_are_unique_and_fit_terminal(energy: Energy) -> None:
    rows = [layer_row(layer) for layer in energy.layers]
    assert len({row[0] for row in rows}) == len(rows)
    # Two columns between cells, and the heads "SOPs by rate" and "exact".
    widths = [max(map(len, column)) for column in zip(*rows, ("", "", "", "SOPs by rate", ""), strict=False)]
    assert sum(widths) + 2 * len(widths) <= 80


def test_measure_energy_raises_in_training_mode_and_without_samples() -> None:
    model = snnergy.build("nano")
    with pytest.raises(UsageError, match="training mode"):
        measure_energy(model, [])
    with pytest.raises(UsageError, match="No samples"):
        measure_energy(model.eval(), [])


def test_energy_command_reports_trained_network(tiny_set: Path, tiny_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    told = CliRunner().invoke(app, ["energy", str(run), str(tiny_set), "--batches", "1", "--json"])
    assert told.exit_code == 0, told.output
    measured = json.loads(told.stdout)
    assert (measured["samples"], measured["steps"]) == (8, 4)
    assert 0 < measured["mj_exact"] < measured["mj_reference"] < measured["mj_with_memory"] * 100
    assert (run / "energy.png").stat().st_size > 0
