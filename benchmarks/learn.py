"""Accuracy of SNNergy on recordings, beside convolutional networks and a logistic regression.

    python benchmarks/learn.py DATA --work FOLDER [--tasks TASKS] [--rows ROWS] [--seeds N]

DATA contains `grid/` with the videos and alignments of GRID's speaker s1 (https://zenodo.org/records/3625687)
and `recordings/` of https://github.com/Jakobovski/free-spoken-digit-dataset; handwritten digits are those of
scikit-learn. Datasets are prepared once into the folder `--work`. Each cell, a network with one seed, is
trained in a process of its own with one thread and stored there, so that the same command continues an
interrupted run. `--quick` trains two networks and has no targets.

Tasks:
    xor, agree          the generated tasks of `avdata prepare synthetic`
    grid, steps         the color word of a sentence (4 classes), audio; every time step sees the complete
                        spectrogram, or a quarter of it
    useless, noisy      the same with frames of the complete face, from which networks learn little; clean
                        audio, and audio in white noise
    face                the same with frames of the detected face, video
    hidden, missing     spoken and handwritten digits (10 classes); each modality is noise, or masked, in 40 %
                        of the clips, never both
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claims import Claim, main, make_parser, set_quick
from learn_sets import Hide, load_split, prepare_set

AUDIO, VIDEO = {"fusion": "audio"}, {"fusion": "video"}

CNN = {"kind": "cnn"}

FUSIONS: Mapping[str, Mapping[str, Any]] = {
    "audio": AUDIO, "video": VIDEO, "concat": {"fusion": "concat"}, "cmqka": {"fusion": "cmqka"},
}  # fmt: skip

BASELINES: Mapping[str, Mapping[str, Any]] = {
    "cnn_audio": {**CNN, **AUDIO}, "cnn_video": {**CNN, **VIDEO}, "cnn_concat": {**CNN, "fusion": "concat"},
    "linear": {"kind": "linear", "fusion": "concat"},
}  # fmt: skip

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    f"cmqka_alpha{alpha:g}": {"fusion": "cmqka", "options": {"alpha_init": alpha}}
    for alpha in (0.1, 0.3, 1.0)
}
"""CMQKA with the same initial value of α in all stages."""


@dataclass(frozen=True)
class Task:
    """Dataset and settings of a table; `rows` are arguments of `learn_cells.Row` by name."""

    dataset: str
    rows: Mapping[str, Mapping[str, Any]]
    epochs: float
    batch_size: int
    hide: Hide | None = None
    snr: float | None = None


SYNTHETIC: Mapping[str, Mapping[str, Any]] = {
    name: {**row, "model": "nano"} for name, row in {**FUSIONS, **VARIANTS}.items()
}  # fmt: skip

GRID: Mapping[str, Mapping[str, Any]] = {
    "small": {"model": "small", **AUDIO}, "tiny": AUDIO, "cnn_small": {**CNN, "model": "small", **AUDIO},
    "cnn_tiny": {**CNN, **AUDIO}, "linear": {"kind": "linear", **AUDIO},
}  # fmt: skip

FACE: Mapping[str, Mapping[str, Any]] = {
    "video": VIDEO, "cnn_video": {**CNN, **VIDEO}, "linear": {"kind": "linear", **VIDEO},
}  # fmt: skip

STEPS_250 = 250 * 32 / 1024
"""Epochs of the generated tasks, whose train split has 1,024 videos."""

TASKS: Mapping[str, Task] = {
    "xor": Task("xor", SYNTHETIC, STEPS_250, 32),
    "agree": Task("agree", SYNTHETIC, STEPS_250, 32),
    "grid": Task("grid", GRID, 12, 16),
    "steps": Task("grid-steps", {"tiny": AUDIO, "cnn_tiny": {**CNN, **AUDIO}}, 12, 16),
    "useless": Task("grid", {**FUSIONS, "cnn_video": {**CNN, **VIDEO}}, 10, 16),
    "noisy": Task("grid", FUSIONS, 10, 16, snr=-10.0),
    "face": Task("grid-face", FACE, 10, 16),
    "hidden": Task("digits", {**FUSIONS, **BASELINES, **VARIANTS}, 6, 32, hide="noise"),
    "missing": Task("digits", {**FUSIONS, **BASELINES, **VARIANTS}, 6, 32, hide="mask"),
}

Medians = Mapping[str, Mapping[str, float]]


def _single(task: str, medians: Medians) -> float:
    return max(medians[task]["audio"], medians[task]["video"])


def _lead(task: str, row: str, other: str) -> Callable[[Medians], float]:
    """Return the function of the medians that is the lead of one row over another."""
    return lambda medians: medians[task][row] - medians[task][other]


def _lead_over_single(task: str) -> Callable[[Medians], float]:
    def figure(medians: Medians) -> float:
        return medians[task]["cmqka"] - max(medians[task]["audio"], medians[task]["video"])

    return figure


def _value(task: str, row: str) -> Callable[[Medians], float]:
    return lambda medians: medians[task][row]


TARGETS: Mapping[str, tuple[Callable[[Medians], float], float, bool]] = {
    "xor: cmqka": (_value("xor", "cmqka"), 0.95, False),
    "xor: concat": (_value("xor", "concat"), 0.65, True),
    "agree: cmqka": (_value("agree", "cmqka"), 0.95, False),
    "grid: small": (_value("grid", "small"), 0.95, False),
    "grid: tiny": (_value("grid", "tiny"), 0.90, False),
    "grid: small - cnn_small": (_lead("grid", "small", "cnn_small"), -0.03, False),
    "useless: cmqka - audio": (_lead("useless", "cmqka", "audio"), -0.02, False),
    "noisy: audio": (_value("noisy", "audio"), 0.7, True),
    "noisy: cmqka - audio": (_lead("noisy", "cmqka", "audio"), -0.02, False),
    "hidden: cmqka - better single modality": (_lead_over_single("hidden"), 0.15, False),
    "hidden: cmqka - concat": (_lead("hidden", "cmqka", "concat"), 0.01, False),
    "missing: cmqka - better single modality": (_lead_over_single("missing"), 0.15, False),
    "missing: cmqka - concat": (_lead("missing", "cmqka", "concat"), 0.01, False),
}
"""Figure of the medians over seeds, limit, and whether it is an upper one, by name."""

FOLDER = Path(__file__).parent

PAGE = FOLDER.parent / "docs" / "learning.md"

RESULTS = FOLDER / "results" / "learn.json"

MARKERS = "<!-- results: begin -->", "<!-- results: end -->"


def run_cell(task: Task, row: str, seed: int, work: Path) -> dict[str, Any]:
    """Train one cell in this process; return its result."""
    import torch
    from learn_cells import Row, train_cell

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folder = work / task.dataset
    splits = {
        split: load_split(folder, split, hide=task.hide, snr=task.snr) for split in ("train", "val", "test")
    }
    return train_cell(
        Row(**task.rows[row]), splits, seed=seed, epochs=task.epochs, batch_size=task.batch_size, lr=2e-3
    )


def cells(names: list[str], seeds: int, only: str | None) -> Iterator[tuple[str, str, int]]:
    """Yield task, row and seed of each cell: all cells of a seed before those of the next."""
    for seed in range(seeds):
        for name in names:
            for row, options in TASKS[name].rows.items():
                # A logistic regression has no seed.
                if (seed == 0 or options.get("kind") != "linear") and (
                    only is None or row in only.split(",")
                ):
                    yield name, row, seed


def cell_path(work: Path, name: str, row: str, seed: int) -> Path:
    """Return the file of a cell's result."""
    return work / "cells" / f"{name}.{row}.{seed}.json"


def settings(name: str, row: str) -> dict[str, Any]:
    """Return the settings that a stored result must have to be used."""
    task = TASKS[name]
    return {
        "dataset": task.dataset, "hide": task.hide, "snr": task.snr, "epochs": task.epochs,
        "batch_size": task.batch_size, "row": dict(task.rows[row]),
    }  # fmt: skip


def read_cell(work: Path, name: str, row: str, seed: int) -> dict[str, Any] | None:
    """Return the stored result of a cell; None without one, or if it has other settings."""
    path = cell_path(work, name, row, seed)
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result if result["settings"] == settings(name, row) else None


def train_cells(
    arguments: argparse.Namespace, names: list[str]
) -> dict[tuple[str, str, int], dict[str, Any]]:
    """Train the cells that are not stored, one process after the other; return all results."""
    results, prepared = {}, set()
    env = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", **os.environ}
    for name, row, seed in cells(names, arguments.seeds, arguments.rows):
        result = read_cell(arguments.work, name, row, seed)
        if result is None and not arguments.collect:
            dataset = TASKS[name].dataset
            if dataset not in prepared:
                prepare_set(dataset, arguments.data, arguments.work / dataset)
                prepared.add(dataset)
            command = [sys.executable, __file__, str(arguments.data), "--work", str(arguments.work)]
            subprocess.run([*command, "--cell", name, row, str(seed)], env=env, check=True)
            result = read_cell(arguments.work, name, row, seed)
            assert result is not None
            print(f"{name:8} {row:12} seed {seed}  {_line(result)}", flush=True)
        if result is not None:
            results[name, row, seed] = result
    return results


def _line(result: Mapping[str, Any]) -> str:
    parts = " ".join(f"{name} {value:.3f}" for name, value in result["test"].items())
    return f"{parts}  {result['cpu_seconds'] / 60:.1f} CPU min"


def write_cell(arguments: argparse.Namespace, name: str, row: str, seed: int) -> None:
    """Train one cell in this process and store its result."""
    result = run_cell(TASKS[name], row, seed, arguments.work)
    path = cell_path(arguments.work, name, row, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    stored = {"task": name, "row": row, "seed": seed, "settings": settings(name, row), **result}
    part.write_text(json.dumps(stored, indent=1), encoding="utf-8")
    part.replace(path)


def summarize(results: Mapping[tuple[str, str, int], Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return medians over seeds by task and row: accuracies on test, number of seeds, CPU minutes."""
    table: dict[str, dict[str, Any]] = {}
    for name, task in TASKS.items():
        for row in task.rows:
            own = [result for key, result in results.items() if key[:2] == (name, row)]
            if own:
                table.setdefault(name, {})[row] = {
                    **{
                        part: round(statistics.median(result["test"][part] for result in own), 4)
                        for part in own[0]["test"]
                    },
                    "seeds": len(own),
                    "cpu_minutes": round(statistics.median(result["cpu_seconds"] for result in own) / 60, 1),
                }  # fmt: skip
    return table


def check_targets(table: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> list[Claim]:
    """Return the accuracy of each row, and the targets of the given tasks; NaN for what is not measured."""
    medians = {name: {row: cell["all"] for row, cell in rows.items()} for name, rows in table.items()}
    claims = [
        Claim(f"{name}: {row}, test accuracy, median of {cell['seeds']}", cell["all"], unit="")
        for name, rows in table.items()
        for row, cell in rows.items()
    ]
    for target, (figure, limit, at_most) in TARGETS.items():
        if target.split(":")[0] in names:
            try:
                value = round(figure(medians), 4)
            except KeyError:
                value = float("nan")
            claims.append(Claim(target, value, limit, at_most, unit=""))
    return claims


def tables(table: Mapping[str, Mapping[str, Any]], claims: Sequence[Claim]) -> str:
    """Return the Markdown tables of the page."""
    lines = []
    for name, rows in table.items():
        parts = list(dict.fromkeys(part for cell in rows.values() for part in cell))
        lines += [f"`{name}`:", "", f"| row | {' | '.join(part.replace('_', ' ') for part in parts)} |"]
        lines.append("|---" * (len(parts) + 1) + "|")
        lines += [
            f"| {row} | {' | '.join(_show(part, cell.get(part)) for part in parts)} |"
            for row, cell in rows.items()
        ]
        lines.append("")
    targets = [claim for claim in claims if claim.target is not None]
    if targets:
        lines += ["| target, difference or value of medians | limit | measured | |", "|---|---|---|---|"]
    for claim in targets:
        limit = f"at {'most' if claim.at_most else 'least'} {claim.target:g}"
        is_measured = not math.isnan(claim.ratio)
        value = f"{claim.ratio:.3f}" if is_measured else "not measured"
        verdict = ("ok" if claim.ok else "**missed**") if is_measured else ""
        lines.append(f"| {claim.name} | {limit} | {value} | {verdict} |")
    return "\n".join(lines)


def _show(part: str, value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if part in {"seeds", "cpu_minutes"} else f"{value:.3f}"


def write_page(measured: str, page: Path) -> None:
    """Replace the text between the markers of the page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    page.write_text(f"{before}{MARKERS[0]}\n{measured}\n{MARKERS[1]}{after}", encoding="utf-8")


def merge_results(
    earlier: Sequence[Mapping[str, Any]], results: Mapping[tuple[str, str, int], Mapping[str, Any]]
) -> dict[tuple[str, str, int], Mapping[str, Any]]:
    """Return results with those of earlier runs that were not measured again and have today's settings."""
    merged = {
        (cell["task"], cell["row"], cell["seed"]): cell
        for cell in earlier
        if cell["task"] in TASKS
        and cell["row"] in TASKS[cell["task"]].rows
        and cell["settings"] == settings(cell["task"], cell["row"])
    } | dict(results)
    tasks = list(TASKS)
    return {key: merged[key] for key in sorted(merged, key=lambda key: (key[2], tasks.index(key[0]), key[1]))}


def measure(options: argparse.Namespace) -> list[Claim]:
    """Train what is not stored; print and return the claims."""
    names = options.tasks.split(",")
    results: Mapping[tuple[str, str, int], Mapping[str, Any]] = train_cells(options, names)
    if options.page:
        names = list(TASKS)
        results = merge_results(json.loads(RESULTS.read_text(encoding="utf-8")), results)
    table = summarize(results)
    claims = check_targets(table, () if options.quick else names)
    text = tables(table, claims)
    print(text)
    if options.page:
        compact = [
            {key: value for key, value in cell.items() if key != "history"} for cell in results.values()
        ]
        RESULTS.write_text(json.dumps(compact, indent=1) + "\n", encoding="utf-8")
        write_page(text, PAGE)
    return claims


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="folder with grid/ and recordings/")
    parser.add_argument("--work", type=Path, default=Path("learn"), help="folder of datasets and results")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated tasks (default: all)")
    parser.add_argument("--rows", help="comma-separated rows (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--collect", action="store_true", help="only read what is stored")
    parser.add_argument(
        "--page",
        action="store_true",
        help="write the tables of docs/learning.md; what is not measured keeps its result of earlier runs",
    )
    parser.add_argument("--cell", nargs=3, metavar=("TASK", "ROW", "SEED"), help=argparse.SUPPRESS)
    chosen = set_quick(parser, tasks="hidden", rows="linear,cnn_video", seeds=1)
    if chosen.cell:
        write_cell(chosen, chosen.cell[0], chosen.cell[1], int(chosen.cell[2]))
    else:
        main(chosen, measure)
