"""The scripts of docs/guides/frameworks.md in two processes; `make docs` runs them in one."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[2] / "docs" / "guides"
PAGE = (GUIDES / "frameworks.md").read_text(encoding="utf-8")
SCRIPTS = {
    heading: re.findall(r"^```python\n(.*?)^```", section, re.S | re.M)
    for heading, section in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.S | re.M)
}
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "RAY_USAGE_STATS_ENABLED": "0"}
ENV["RAY_worker_niceness"] = "0"  # the default of 15 starves the workers beside other tests


def run(*command: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=ENV, capture_output=True, text=True, timeout=600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_page_has_the_words_of_each_framework() -> None:
    for word in (
        "DDP",
        "distributed",
        "multi-GPU",
        "collate",
        "accelerate",
        "Lightning",
        "Slurm",
        "Ray Train",
    ):
        assert word in PAGE
    assert all(len(SCRIPTS[heading]) == 1 for heading in ("PyTorch and DDP", "accelerate", "transformers"))


@pytest.mark.exhaustive
@pytest.mark.parametrize("heading", ["PyTorch and DDP", "accelerate", "transformers"])
def test_script_of_the_page_runs_in_two_processes(heading: str, synthetic_set: Path, tmp_path: Path) -> None:
    (tmp_path / "data").symlink_to(synthetic_set)
    (tmp_path / "train.py").write_text(SCRIPTS[heading][0])
    run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "train.py", cwd=tmp_path)


# Without the dashboard, whose nine processes take half a minute to start, and with as many CPUs as needed.
START_RAY = """
import runpy, sys
import ray
ray.init(num_cpus=3, include_dashboard=False)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.exhaustive
def test_ray_train_reads_each_sample_once_on_two_workers(synthetic_set: Path, tmp_path: Path) -> None:
    script = GUIDES / "ray_train.py"
    assert "each sample was read once" in run("-c", START_RAY, script, synthetic_set, cwd=tmp_path)
