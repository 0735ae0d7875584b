from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import avdata

ROOT = Path(__file__).parents[2]


def run(*words: str | Path, cwd: Path) -> str:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_wheel_made_from_the_sdist_brings_recipes_and_manifests(tmp_path: Path) -> None:
    # Building writes into the folder, where other tests look the recipes up meanwhile.
    kept = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "demo", "dist")
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=kept)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    assert list((tmp_path / "dist").glob("*.tar.gz"))
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    # The dependencies are gigabytes and are here already; the project itself must come from the wheel alone.
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", site, wheel, cwd=tmp_path)
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    code = (
        "import avdata, avdata.recipe, avdata.manifest;"
        "print(avdata.__file__, *avdata.recipe_names());"
        "print(len(avdata.manifest.load_manifest('cremad').files), avdata.load_recipe('ave').title,"
        "len(avdata.load_recipe('cremad').known_bad))"
    )
    where, *names, files, title, known_bad = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(where).is_relative_to(site)
    assert names == avdata.recipe_names()
    assert (files, title, known_bad) == ("14884", "AVE", "4")
    pages = (
        "from importlib.resources import files;"
        "print(files('avdata.reporting').joinpath('templates/page.js').is_file(),"
        "files('avdata.shards').joinpath('templates/card.md.jinja').is_file(),"
        "files('snnergy.analysis').joinpath('templates/run.html').is_file())"
    )
    assert run(python, "-c", pages, cwd=tmp_path).split() == ["True", "True", "True"]
    shown = run(python, "-m", "avdata.cli", "recipes", cwd=tmp_path)
    assert all(name in shown for name in names)
