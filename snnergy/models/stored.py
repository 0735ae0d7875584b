"""Checks of stored networks: their settings and weights are outside data, compared before memory is used."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from avdata.errors import AvdataError, UsageError, error_message
from snnergy.models.config import ModelConfig

WEIGHTS_FILE = "model.safetensors"

Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def stored_network_errors(name: object) -> Iterator[None]:
    """Raise AvdataError in one sentence in place of the errors of an invalid stored network.

    Args:
        name: file, folder or repository, for the message.

    Raises:
        AvdataError: the settings or the weights are invalid.
    """
    from safetensors import SafetensorError  # noqa: PLC0415

    errors = (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError)
    try:
        yield
    except (UsageError, SafetensorError, *errors) as error:
        lines = error_message(error).splitlines() or [type(error).__name__]
        msg = f"Cannot read network {name}: {lines[0][:300].rstrip('.:')}."
        raise AvdataError(msg, hint="Use a folder or file that snnergy of this version wrote") from error


def parse_settings(stored: object) -> ModelConfig:
    """Return the settings of a stored network.

    Raises:
        TypeError: they are not a mapping, or one is unknown or missing.
        UsageError: a value is invalid.
    """
    if not isinstance(stored, Mapping):
        msg = "its settings are no mapping"
        raise TypeError(msg)
    settings: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()
    }
    return ModelConfig(**settings)


def check_shapes(network: type[nn.Module], config: ModelConfig, shapes: Shapes) -> None:
    """Compare the shapes of stored weights with those of a network, which is not allocated for it.

    Args:
        network: class of the network, called with the settings.
        config: its settings.
        shapes: shapes of the stored weights by name.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    # Every block has tensors: this bounds the time to build the network below.
    if sum(config.depths) > len(shapes):
        msg = f"it has {len(shapes)} tensors, too few for depths {list(config.depths)}"
        raise ValueError(msg)
    with torch.device("meta"):
        tensors = network(config).state_dict(keep_vars=True)
    stored = {id(tensor) for name, tensor in tensors.items() if name in shapes}
    # A file has a tensor of several names, such as a tied weight, once.
    expected = {
        name: tuple(tensor.shape)
        for name, tensor in tensors.items()
        if name in shapes or id(tensor) not in stored
    }
    for name in [*expected, *shapes]:
        if shapes.get(name) != expected.get(name):
            states = [list(found[name]) if name in found else "missing" for found in (shapes, expected)]
            msg = f"tensor {name} is {states[0]}, by the settings {states[1]}"
            raise ValueError(msg)


def tensor_shapes(weights: object) -> Shapes:
    """Return the shapes of weights.

    Raises:
        TypeError: they are not tensors by name.
    """
    if not isinstance(weights, Mapping) or not all(isinstance(item, Tensor) for item in weights.values()):
        msg = "its weights are not tensors by name"
        raise TypeError(msg)
    return {str(name): tuple(tensor.shape) for name, tensor in weights.items()}


def pretrained_shapes(model_id: str, options: Mapping[str, Any]) -> Shapes:
    """Return the shapes of the weights of a folder or a Hub repository, whose file is downloaded.

    Args:
        model_id: folder, or repository on the Hugging Face Hub.
        options: arguments of `huggingface_hub.PyTorchModelHubMixin._from_pretrained`.

    Raises:
        SafetensorError: the file is damaged.
        OSError: the file is missing or cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download  # noqa: PLC0415
    from safetensors import safe_open  # noqa: PLC0415

    if os.path.isdir(model_id):
        path = str(Path(model_id, WEIGHTS_FILE))
    else:
        names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
        chosen = {name: options[name] for name in names if name in options}
        path = hf_hub_download(model_id, WEIGHTS_FILE, **chosen)
    with safe_open(path, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
