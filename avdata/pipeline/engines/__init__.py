"""Engines that run shard jobs, by name."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avdata.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from avdata.pipeline.engines.base import RunJobs


@dataclass(frozen=True)
class EngineSpec:
    """Engine that runs shard jobs.

    Attributes:
        module: module of its `run_jobs`, imported on first use.
        checker: `module:function` that checks an address of the engine before work begins; None if there is
            nothing to check.
        is_cluster: whether it runs on several machines. Such an engine takes an `address`, uses all CPUs of
            the cluster with 0 workers, and needs all source files before it starts. Any other engine takes
            `is_ready`.
    """

    module: str
    checker: str | None = None
    is_cluster: bool = False

    def check(self, address: str) -> None:
        """Raise AvdataError unless the engine is installed and answers at the address."""
        if self.checker is not None:
            module, _, name = self.checker.partition(":")
            getattr(importlib.import_module(module), name)(address)

    def load(self) -> RunJobs:
        """Import the engine and return its `run_jobs`."""
        run_jobs: RunJobs = importlib.import_module(self.module).run_jobs
        return run_jobs


ENGINES = {
    "local": EngineSpec("avdata.pipeline.engines.local"),
    "ray": EngineSpec(
        "avdata.pipeline.engines.ray", "avdata.pipeline.engines.ray_address:check_cluster", is_cluster=True
    ),
}


def find_engine(name: str) -> EngineSpec:
    """Return the engine of a name.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in ENGINES:
        msg = f"Unknown engine {name!r}."
        raise UsageError(msg, hint=did_you_mean(name, list(ENGINES)))
    return ENGINES[name]
