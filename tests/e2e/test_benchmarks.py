"""Benchmarks: their imports exist, and they share one form of options and results."""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_benchmark_imports_exist(script: Path) -> None:
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("avdata", "snnergy"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                if not hasattr(module, name.name):
                    importlib.import_module(f"{node.module}.{name.name}")


@pytest.fixture
def benchmarks(monkeypatch):
    """Import modules of the folder `benchmarks` by name."""
    monkeypatch.syspath_prepend(str(SCRIPTS[0].parent))
    yield importlib.import_module
    for script in SCRIPTS:
        sys.modules.pop(script.stem, None)


@pytest.mark.parametrize("name", ["sync", "plan"])
def test_benchmark_help_lists_quick_and_json(name: str, benchmarks, monkeypatch, capsys) -> None:
    script = SCRIPTS[0].with_name(f"{name}.py")
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "--quick" in shown
    assert "--json" in shown


def test_every_benchmark_uses_the_common_form(benchmarks) -> None:
    for name in benchmarks("run").SCRIPTS:
        tree = ast.parse(SCRIPTS[0].with_name(f"{name}.py").read_text(encoding="utf-8"))
        calls = {
            node.func.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert {"make_parser", "main"} <= calls, name


def test_benchmark_exit_code_and_json_tell_a_missed_claim(benchmarks, tmp_path, monkeypatch, capsys) -> None:
    claims = benchmarks("claims")
    path = tmp_path / "claims.json"
    monkeypatch.setattr(sys, "argv", ["script", "--json", str(path)])
    parser = claims.make_parser("Description.")
    parser.add_argument("--size", type=int, default=100)
    results = [
        claims.at_least("speed", 2.5, 2.0), claims.at_most("memory", 3.0, 2.0, "MB"),
        claims.at_most("undefined", float("nan"), 1.0), claims.Claim("reported", 7.0),
    ]  # fmt: skip
    assert claims.run(claims.set_quick(parser, size=1), lambda options: results[: options.size]) == 1
    assert json.loads(path.read_text()) == {
        "speed": {"ratio": 2.5, "target": 2.0, "ok": True, "unit": "×", "bound": "at least"},
        "memory": {"ratio": 3.0, "target": 2.0, "ok": False, "unit": "MB", "bound": "at most"},
        "undefined": {"ratio": None, "target": 1.0, "ok": False, "unit": "×", "bound": "at most"},
        "reported": {"ratio": 7.0, "target": None, "ok": True, "unit": "×"},
    }
    assert "memory: 3 MB  MISS (target: at most 2.0)" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["script", "--quick"])
    assert claims.run(claims.set_quick(parser, size=1), lambda options: results[: options.size]) == 0


def test_benchmark_results_become_tables_of_the_page(benchmarks, tmp_path) -> None:
    run = benchmarks("run")
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n{run.MARKERS[0]}\nold\n{run.MARKERS[1]}\nEnd.\n")
    row = {"ratio": 1.234, "target": 1.1, "ok": False, "unit": "×", "bound": "at most"}
    entry = {"options": ["--quick"], "seconds": 3.4, "exit_code": 1, "claims": {"time ÷ peer": row}}
    facts = {"processor": "CPU", "cores": 2, "load": 0.1}
    results = {
        "date": "2026-01-01",
        "machine": facts,
        "versions": {"torch": "2"},
        "benchmarks": {"plan": entry},
    }
    run.write_page(run.tables(results), page)
    text = page.read_text()
    assert "old" not in text
    assert "`python benchmarks/plan.py --quick`, 3 s:" in text
    assert "| time ÷ peer | 1.23 × | at most 1.1 | **missed** |" in text
    assert text.endswith("\nEnd.\n")


def test_headline_figures_of_the_readme_are_those_of_the_performance_page(benchmarks) -> None:
    run = benchmarks("run")
    headlines, tables = (
        page.read_text(encoding="utf-8").split(run.MARKERS[0])[1].split(run.MARKERS[1])[0]
        for page in (run.README, run.PAGE)
    )
    rows = re.findall(r"^\| (.+?) \| ([^|]+) \| `(python .+)` \|$", headlines, re.M)
    assert len(rows) >= 5
    for claim, value, command in rows:
        assert f"| {claim} | {value} |" in tables.split(f"`{command}`")[1].split("`python")[0]
    prose = (
        run.README.read_text(encoding="utf-8")
        .split("In the complete measurements")[1]
        .split("[Performance]")[0]
    )
    figures = re.findall(r"\d[\d,.]*\d", re.sub(r"\d+ November 2026", "", prose))
    page = run.PAGE.read_text(encoding="utf-8")
    assert len(figures) == 6
    assert all(f"| {figure} " in page for figure in figures)


GPU_PARTS = ["kernels", "large", "images", "speed", "steps", "memory", "cost"]


@pytest.mark.parametrize(
    "parts", [GPU_PARTS, pytest.param([], marks=pytest.mark.exhaustive)], ids=["short", "all"]
)
def test_gpu_benchmark_runs_on_the_cpu(benchmarks, parts: list[str], tmp_path) -> None:
    gpu = benchmarks("gpu")
    names = parts or list(gpu.PARTS)
    options = argparse.Namespace(device="cpu", tiny=True, parts=names, json=tmp_path / "gpu.json")
    assert benchmarks("claims").run(options, gpu.measure) == 0
    results = json.loads(options.json.read_text())
    assert len(results) > len(names)
    assert all(row["ok"] for row in results.values())


def test_gpu_reference_agrees_with_autograd(benchmarks) -> None:
    kernels = benchmarks("gpu_kernels")
    current = kernels.random_current(1, 4, torch.float32, channels_last=False)
    given = current.clone().requires_grad_()
    membrane, spikes = torch.zeros_like(current[0]), []
    for step in given:
        membrane = membrane + (step - membrane) * 0.5
        soft = torch.sigmoid(4 * (membrane - 1))
        # The value of the step, the derivative of the sigmoid.
        spikes.append((membrane >= 1).float() + soft - soft.detach())
        membrane = membrane * (1 - (membrane >= 1).float())
    grad = torch.randn(current.shape, generator=torch.Generator().manual_seed(2))
    (expected,) = torch.autograd.grad(torch.stack(spikes), given, grad)
    found_spikes, found = kernels.reference(current, grad, "lif", "sigmoid")
    torch.testing.assert_close(found_spikes, torch.stack(spikes).detach())
    torch.testing.assert_close(found.float(), expected)
