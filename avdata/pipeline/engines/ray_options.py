"""Options of the Ray engine: what each worker requests, and whether its log reaches the driver."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from avdata.errors import UsageError, did_you_mean

_UNITS = {"": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}

_NAMES = ("num_cpus", "num_gpus", "memory", "log_to_driver", "resources.NAME")


@dataclass(frozen=True)
class RayOptions:
    """Options of the Ray engine.

    Attributes:
        num_cpus: CPUs of each worker. Without `workers`, there are as many as the cluster has room for.
        num_gpus: GPUs of each worker, for a decoder that uses them.
        memory: bytes that each worker requests; None requests none. Ray does not enforce the limit.
        resources: custom resources of each worker by name, such as a label of some nodes.
        log_to_driver: whether the output of the workers is printed by the driver.
    """

    num_cpus: float = 1.0
    num_gpus: float = 0.0
    memory: int | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    log_to_driver: bool = False


def parse_ray_options(options: Mapping[str, object]) -> RayOptions:
    """Return the options of their names and values, which may be texts.

    >>> parse_ray_options({"memory": "4GiB"}).memory, parse_ray_options({"resources.disk": "0.5"}).resources
    (4294967296, {'disk': 0.5})

    Raises:
        UsageError: an option is unknown or has an invalid value.
    """
    parsed = RayOptions()
    numbers: dict[str, float] = {}
    resources: dict[str, float] = {}
    for name, value in options.items():
        text = str(value)
        if name in ("num_cpus", "num_gpus"):
            numbers[name] = _number(name, text, least=0.001 if name == "num_cpus" else 0)
        elif name.startswith("resources.") and name != "resources.":
            resources[name.removeprefix("resources.")] = _number(name, text)
        elif name not in ("memory", "log_to_driver"):
            msg = f"Unknown option of Ray: {name}."
            raise UsageError(msg, hint=did_you_mean(name, list(_NAMES)))
    memory = _bytes(str(options["memory"])) if "memory" in options else None
    is_logged = _is_true(str(options.get("log_to_driver", parsed.log_to_driver)))
    return RayOptions(**numbers, memory=memory, resources=resources, log_to_driver=is_logged)


def _number(name: str, text: str, least: float = 0.0) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number < 1e9:
        raise _invalid(name, text, f"a number of at least {least:g}")
    return number


def _bytes(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", text)
    if match is None or match[2].upper() not in _UNITS:
        raise _invalid(name="memory", text=text, expected="a number of bytes, such as 4GiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _is_true(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _invalid(name="log_to_driver", text=text, expected="true or false")
    return text.lower() == "true"


def _invalid(name: str, text: str, expected: str) -> UsageError:
    return UsageError(f"Invalid option of Ray {name}={text!r}.", hint=f"Use {expected}.")
