"""Files in the current folder are data: no child process imports them."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import worker_modules
from support.trees import digest_tree

import avdata
from avdata import doctor

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

ROOT = Path(__file__).parents[2]
SETTINGS = {"video": {"size": 48}, "audio": {"flac": True}, "shards": {"samples_per_shard": 4}}
OPTIONS = ("--set", "video.size=48", "--set", "audio.flac=true", "--set", "shards.samples_per_shard=4")


@pytest.fixture(scope="module")
def prepared(cremad_mock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that was prepared in a safe folder; with the names of the modules of its worker."""
    output = tmp_path_factory.mktemp("prepared") / "set"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT / "tests"))
        patch.setattr("avdata.pipeline.shard_job.run_shard_job", worker_modules.run_and_record_modules)
        avdata.prepare("cremad", source=cremad_mock, output=output, config=SETTINGS, workers=1)
    return output


@pytest.fixture
def planted(prepared: Path, cremad_mock: Path, tmp_path: Path) -> Path:
    """A source with a module of the name of every import of a worker, each of which leaves a mark."""
    recorded = json.loads(worker_modules.recorded_modules(prepared).read_text(encoding="utf-8"))
    names = {name.partition(".")[0] for name in recorded} | set(sys.stdlib_module_names)
    folder = Path(shutil.copytree(cremad_mock, tmp_path / "source"))
    assert {"soundfile", "numpy", "avdata", "json"} <= names
    for name in names:
        code = f"open({str(tmp_path / 'executed')!r}, 'a').write({name!r} + ' ')\n"
        (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return folder


def run_there(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command in the folder; its own imports are safe, so that only its children can import a plant."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    command = [sys.executable, "-P", "-m", "avdata", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)


def executed(folder: Path) -> str:
    mark = folder.parent / "executed"
    return mark.read_text(encoding="utf-8") if mark.exists() else ""


def test_workers_import_nothing_from_the_current_folder(planted: Path, prepared: Path) -> None:
    output = planted.parent / "out"
    done = run_there(
        planted, "prepare", "cremad", "--source", ".", "--output", str(output), "--workers", "2", *OPTIONS
    )
    assert executed(planted) == ""
    assert done.returncode == 0, done.stderr
    assert digest_tree(output) == digest_tree(prepared)


def test_doctor_imports_nothing_from_the_current_folder(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = doctor._Library("numpy", "import numpy, json, soundfile", True, "arrays", "")
    monkeypatch.setattr(doctor, "_LIBRARY_GROUPS", ((probe,),))
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    monkeypatch.chdir(planted)
    (check,) = (check for check in doctor.check_environment() if check.name == "numpy")
    assert check.ok, check
    assert executed(planted) == ""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    from ray.cluster_utils import Cluster

    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp" if Path("/tmp").is_dir() else None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", folder)
        node = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}
        made = Cluster(initialize_head=True, head_node_args=node)
        yield made
        made.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def test_ray_workers_import_nothing_from_the_current_folder(
    cluster: Cluster, planted: Path, prepared: Path
) -> None:
    output = planted.parent / "out"
    done = run_there(
        planted, "prepare", "cremad", "--source", str(planted), "--output", str(output), "--engine", "ray",
        "--ray-address", cluster.address, *OPTIONS,
    )  # fmt: skip
    assert executed(planted) == ""
    assert done.returncode == 0, done.stderr
    assert digest_tree(output) == digest_tree(prepared)


def test_python_is_started_only_by_the_safe_command() -> None:
    """`sys.executable` in a list is the start of a command."""
    for folder in ("avdata", "snnergy", "recipes"):
        for path in (ROOT / folder).rglob("*.py"):
            lists = [
                node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.List | ast.Tuple) and any(
                    isinstance(item, ast.Attribute) and item.attr == "executable" for item in node.elts
                )
            ]  # fmt: skip
            assert not lists or path.name == "subprocesses.py", path
