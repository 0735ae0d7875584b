"""Common form of the benchmarks: options, claims with their targets, and results as JSON.

Each script measures some claims. `run` prints the machine, the versions and the date, calls the script's
`measure` and prints one line per claim. With `--json FILE` it writes
`{claim: {ratio, target, ok, unit, bound}}`. The exit code is 1 if a claim misses its target.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("avdata", "torch", "torchvision", "numpy", "av", "librosa", "webdataset", "spikingjelly")


@dataclass(frozen=True)
class Claim:
    """A measured value and its target.

    Attributes:
        name: What was measured, with its size and conditions.
        ratio: Measured value, usually a ratio to a lower bound or to another tool.
        target: Bound of `ratio`; None for a value that is only reported.
        at_most: Whether `target` is an upper bound instead of a lower one.
        unit: Unit of both.
    """

    name: str
    ratio: float
    target: float | None = None
    at_most: bool = False
    unit: str = "×"

    @property
    def ok(self) -> bool:
        """Whether the value reaches its target; NaN does not."""
        if self.target is None:
            return True
        return bool(self.ratio <= self.target if self.at_most else self.ratio >= self.target)

    def as_json(self) -> dict[str, Any]:
        """Return the claim as in the results file; NaN becomes null."""
        value = float(f"{self.ratio:.4g}") if math.isfinite(self.ratio) else None
        facts: dict[str, Any] = {"ratio": value, "target": self.target, "ok": self.ok, "unit": self.unit}
        if self.target is not None:
            facts["bound"] = "at most" if self.at_most else "at least"
        return facts


def at_least(name: str, ratio: float, target: float, unit: str = "×") -> Claim:
    """Return a claim with a lower bound."""
    return Claim(name, ratio, target, unit=unit)


def at_most(name: str, ratio: float, target: float, unit: str = "×") -> Claim:
    """Return a claim with an upper bound."""
    return Claim(name, ratio, target, at_most=True, unit=unit)


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, under 60 s on two cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write {claim: {ratio, target, ok, unit}}")
    return parser


def set_quick(parser: argparse.ArgumentParser, **quick: Any) -> argparse.Namespace:
    """Parse the command line; with `--quick`, options that are not given take the values of `quick`."""
    if parser.parse_known_args()[0].quick:
        parser.set_defaults(**quick)
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the GPU if any, the operating system and the load."""
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text(encoding="utf-8").splitlines()
                 if line.startswith("model name")]  # fmt: skip
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"processor": processor, "cores": cores, "system": platform.system(), "load": load}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter here."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def run(options: argparse.Namespace, measure: Callable[[argparse.Namespace], list[Claim]]) -> int:
    """Measure the claims, print them and write them to `options.json`.

    Returns:
        0, or 1 if a claim misses its target.
    """
    facts = machine()
    print(f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {facts['cores']} cores of {facts['processor']},"
          f" load {facts['load']}")  # fmt: skip
    print(", ".join(f"{name} {number}" for name, number in versions().items()), flush=True)
    claims = measure(options)
    print()
    for claim in claims:
        bound = f"{'at most' if claim.at_most else 'at least'} {claim.target}"
        verdict = "" if claim.target is None else f"  {'ok' if claim.ok else 'MISS'} (target: {bound})"
        print(f"{claim.name}: {claim.ratio:.3g} {claim.unit}{verdict}")
    if options.json:
        results = {claim.name: claim.as_json() for claim in claims}
        options.json.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0 if all(claim.ok for claim in claims) else 1


def main(options: argparse.Namespace, measure: Callable[[argparse.Namespace], list[Claim]]) -> None:
    """Exit with the code of `run`."""
    sys.exit(run(options, measure))
