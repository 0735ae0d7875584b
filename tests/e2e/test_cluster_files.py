"""The scripts of docs/scale, with commands that record how they are called, and the image."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

SCALE = Path("docs/scale")

# Record the arguments, then run the command after the options.
SRUN = """#!/bin/bash
echo "srun $*" >> "$LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""

SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$LOG"
if [ "$1" = show ]; then echo n1; echo n2; fi
"""

AVDATA = """#!/bin/bash
echo "avdata $*" >> "$LOG"
{action}
"""


def run_slurm(tmp_path: Path, action: str, **environment: str) -> tuple[int, list[str]]:
    """Run the batch script; return its exit code and the recorded commands."""
    commands = {
        "srun": SRUN, "scontrol": SCONTROL, "ray": "#!/bin/bash\n", "avdata": AVDATA.format(action=action),
    }  # fmt: skip
    for name, text in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    job = {
        "SLURM_JOB_ID": "12345", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "7", "USER": "me", "LOG": str(tmp_path / "log"),
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    arguments = ["cremad", "s3://b/raw", "s3://b/out", "--set", "video.size=64"]
    done = subprocess.run(
        ["bash", str(SCALE / "slurm.sh"), *arguments],
        env={**job, **environment}, check=False, timeout=60, capture_output=True,
    )  # fmt: skip
    return done.returncode, (tmp_path / "log").read_text().splitlines()


def test_slurm_script_gives_each_step_its_cpus_and_returns_the_status(tmp_path: Path) -> None:
    status, calls = run_slurm(tmp_path, "exit 3")
    steps = [call for call in calls if call.startswith("srun")]
    starts = [call for call in steps if " ray start " in call]
    assert status == 3
    assert len(starts) == 2
    assert all("--cpus-per-task=7" in call and "--num-cpus=7" in call for call in starts)
    assert all("--overlap" in call for call in steps)
    (command,) = [call for call in calls if call.startswith("avdata")]
    port = command.rpartition(":")[2].split()[0]
    assert f"--port={port} " in next(call for call in starts if "--head" in call)
    assert "--source s3://b/raw --output s3://b/out --engine ray" in command
    assert command.endswith("--set video.size=64")


def test_slurm_script_requeues_before_the_time_limit(tmp_path: Path) -> None:
    status, calls = run_slurm(tmp_path, "kill -USR1 $PPID; exec sleep 30")
    assert status == 0
    (command,) = [call for call in calls if call.startswith("avdata")]
    assert calls.index("scontrol requeue 12345") > calls.index(command)


def test_slurm_script_prepares_one_part_per_task_of_an_array(tmp_path: Path) -> None:
    status, calls = run_slurm(tmp_path, "exit 0", SLURM_ARRAY_TASK_ID="3", SLURM_ARRAY_TASK_MAX="100")
    (command,) = [call for call in calls if call.startswith("avdata")]
    assert status == 0
    assert "--output s3://b/out/part-3 " in command
    assert command.endswith("--part 3/100")


def pods() -> dict[str, dict[str, Any]]:
    preparation = yaml.safe_load((SCALE / "kubernetes.yaml").read_text())["spec"]["rayClusterSpec"]
    training = yaml.safe_load((SCALE / "training.yaml").read_text())["spec"]["pytorchReplicaSpecs"]
    submitter = yaml.safe_load((SCALE / "kubernetes.yaml").read_text())["spec"]["submitterPodTemplate"][
        "spec"
    ]
    return {
        "submitter": submitter,
        "head": preparation["headGroupSpec"]["template"]["spec"],
        **{group["groupName"]: group["template"]["spec"] for group in preparation["workerGroupSpecs"]},
        "training": training["Worker"]["template"]["spec"],
    }


@pytest.mark.parametrize("name", ["head", "workers", "training"])
def test_pods_request_what_they_use_and_have_shared_memory(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert container["resources"]["requests"]["memory"] == container["resources"]["limits"]["memory"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounts["shm"] == "/dev/shm"
    assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    assert "nodeSelector" not in pod
    for volume in pod["volumes"]:  # a node without the disk would evict the pod
        if "emptyDir" in volume and "medium" not in volume["emptyDir"]:
            size = volume["emptyDir"]["sizeLimit"]
            assert container["resources"]["requests"]["ephemeral-storage"] == size


@pytest.mark.parametrize("name", ["submitter", "head", "workers", "training"])
def test_pods_satisfy_the_restricted_pod_security_standard(name: str) -> None:
    pod = pods()[name]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    expected = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert container["securityContext"] == expected


def test_training_requests_gpus() -> None:
    resources = pods()["training"]["containers"][0]["resources"]
    assert resources["limits"]["nvidia.com/gpu"] == "8"


def test_image_contains_what_the_package_is_built_from() -> None:
    """A path that the Dockerfile copies exists, and .dockerignore does not leave it out."""
    lines = [line.split() for line in Path("Dockerfile").read_text().splitlines() if line.startswith("COPY")]
    sources = {source for line in lines for source in line[1:-1]}
    allowed = set(Path(".dockerignore").read_text().replace("!", "").split())
    assert {"pyproject.toml", "avdata", "snnergy", "recipes", "manifests"} <= sources
    assert all(Path(source).exists() and source in allowed for source in sources)
