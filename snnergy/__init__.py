"""SNNergy: a spiking network with linear-cost cross-modal attention (CMQKA), and its trainer.

    import snnergy

    network = snnergy.build("nano", num_classes=6)
    snnergy.train("out/cremad", "runs/cremad")

Functions:
    build            Build a network from a preset and options.
    record_spikes    Call a function with the spikes of each neuron layer.
    recalibrate      Set the batch norms' statistics from batches.
    train, evaluate  Train a network on a prepared dataset; measure a checkpoint.
    compare          Train several fusions by one protocol over several seeds.
    predict          Predict labels of media files and datasets.
    measure_energy   Count operations layer by layer and estimate the energy.
    export_onnx      Write a network as an ONNX file.
    report           Write an HTML page about a training run.

Heavy libraries are imported when a name is first used.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from snnergy.analysis.comparison import compare_fusions as compare
    from snnergy.analysis.energy import measure_energy
    from snnergy.analysis.prediction import predict
    from snnergy.analysis.report import report
    from snnergy.fusion.registry import FUSIONS
    from snnergy.layers.monitor import record_spikes
    from snnergy.models.config import PRESETS, ModelConfig
    from snnergy.models.export import export_onnx
    from snnergy.models.network import SNNergy, build, recalibrate
    from snnergy.training.config import TrainConfig
    from snnergy.training.evaluation import evaluate
    from snnergy.training.trainer import train

_EXPORTS = {
    "FUSIONS": "fusion.registry",
    "ModelConfig": "models.config",
    "PRESETS": "models.config",
    "SNNergy": "models.network",
    "TrainConfig": "training.config",
    "build": "models.network",
    "compare": "analysis.comparison:compare_fusions",
    "evaluate": "training.evaluation",
    "export_onnx": "models.export",
    "measure_energy": "analysis.energy",
    "predict": "analysis.prediction",
    "recalibrate": "models.network",
    "record_spikes": "layers.monitor",
    "report": "analysis.report",
    "train": "training.trainer",
}
"""Module of each public name, with `:name` where the module calls it differently."""

__all__ = [
    "FUSIONS",
    "PRESETS",
    "ModelConfig",
    "SNNergy",
    "TrainConfig",
    "build",
    "compare",
    "evaluate",
    "export_onnx",
    "measure_energy",
    "predict",
    "recalibrate",
    "record_spikes",
    "report",
    "train",
]


def __getattr__(name: str) -> _typing.Any:
    """Import a public name on first use."""
    if name not in _EXPORTS:
        msg = f"module 'snnergy' has no attribute {name!r}"
        raise AttributeError(msg)
    module, _, attribute = _EXPORTS[name].partition(":")
    return getattr(_importlib.import_module(f"snnergy.{module}"), attribute or name)


def __dir__() -> list[str]:
    return __all__
