"""Run the benchmarks and write their results, or write the tables of the pages from results.

    python benchmarks/run.py --quick                     # all in short form: `make bench`
    python benchmarks/run.py --only plan model           # two of them in full
    python benchmarks/run.py --page benchmarks/results/2026-11-29-AMD-EPYC.json

`--page` writes the tables of docs/performance.md and the headline figures of README.md.
The results are `benchmarks/results/DATE-PROCESSOR.json`: date, machine, versions, and for each script its
options, seconds, exit code and claims. Further runs of the same day replace the entries of their scripts.
The exit code is 1 if a claim misses its target or a script fails.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from claims import machine, versions

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "docs" / "performance.md"
README = FOLDER.parent / "README.md"
# `learn` needs datasets that are given; `gpu` needs a GPU.
SCRIPTS = sorted(
    path.stem for path in FOLDER.glob("*.py") if "make_parser(__doc__)" in path.read_text(encoding="utf-8")
)
SCRIPTS = [name for name in SCRIPTS if name not in ("learn", "gpu", "run")]
MARKERS = "<!-- results: begin -->", "<!-- results: end -->"
HEADLINES = (
    ("prepare", r"CPU time per clip ÷ (lower bound|ffmpeg.*), cremad"),
    ("stream", r"samples/s ÷ (webdataset|folder)"),
    ("remote", r"÷ local, JPEG"),
    ("plan", r"plan of [\d,]+ samples"),
    ("download", r"loop of requests ÷ time"),
    ("sync", r"largest error"),
    ("model", r"training step .* SpikingJelly ÷ SNNergy"),
)
"""Claims of README.md: script and pattern."""


def run_script(name: str, quick: bool) -> dict[str, Any]:
    """Run a benchmark in a new process; return its options, seconds, exit code and claims."""
    options = ["--quick"] if quick else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "claims.json"
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(FOLDER / f"{name}.py"), *options, "--json", str(path)], check=False
        )
        seconds = round(time.perf_counter() - began, 1)
        claims = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {"options": options, "seconds": seconds, "exit_code": done.returncode, "claims": claims}


def results_path(date: str, processor: str) -> Path:
    """Return the file of a day and a machine."""
    return FOLDER / "results" / f"{date}-{re.sub(r'[^A-Za-z0-9]+', '-', processor).strip('-')}.json"


def tables(results: dict[str, Any]) -> str:
    """Return the tables of the page: one row per claim."""
    facts, numbers = results["machine"], results["versions"]
    lines = [
        f"{results['date']}, {facts['cores']} cores of {facts['processor']}, load {facts['load']} at first; "
        + ", ".join(f"{name} {number}" for name, number in numbers.items())
        + ".",
    ]
    for name, entry in results["benchmarks"].items():
        command = " ".join(["python", f"benchmarks/{name}.py", *entry["options"]])
        lines += ["", f"`{command}`, {entry['seconds']:.0f} s:", "", "| claim | measured | target | |"]
        lines += ["|---|---|---|---|"]
        for claim, row in entry["claims"].items():
            target = "" if row["target"] is None else f"{row['bound']} {row['target']:g}"
            verdict = "" if row["target"] is None else "ok" if row["ok"] else "**missed**"
            lines.append(f"| {claim} | {_measured(row)} | {target} | {verdict} |")
    return "\n".join(lines)


def _measured(row: dict[str, Any]) -> str:
    return "none" if row["ratio"] is None else f"{row['ratio']:.3g} {row['unit']}".rstrip()


def headlines(results: dict[str, Any]) -> str:
    """Return the table of README.md: the claims of `HEADLINES`."""
    facts = results["machine"]
    lines = ["| claim | measured | command |", "|---|---|---|"]
    for name, pattern in HEADLINES:
        entry = results["benchmarks"].get(name, {"options": [], "claims": {}})
        command = " ".join(["python", f"benchmarks/{name}.py", *entry["options"]])
        lines += [
            f"| {claim} | {_measured(row)} | `{command}` |"
            for claim, row in entry["claims"].items()
            if re.search(pattern, claim)
        ]
    machine_text = f"{facts['cores']} cores of {facts['processor']}, load {facts['load']} at first"
    return "\n".join([*lines, "", f"Measured on {results['date']}, {machine_text}."])


def write_page(text: str, page: Path) -> None:
    """Replace the text between the markers of a page."""
    before, rest = page.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    page.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="run the short form of each")
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=SCRIPTS, help="run these only")
    parser.add_argument("--page", type=Path, metavar="RESULTS", help="write the pages, run nothing")
    options = parser.parse_args()
    if options.page:
        results = json.loads(options.page.read_text(encoding="utf-8"))
        write_page(tables(results), PAGE)
        write_page(headlines(results), README)
        return 0
    facts, date = machine(), f"{datetime.now(UTC):%Y-%m-%d}"
    path = results_path(date, facts["processor"])
    results = {"date": date, "machine": facts, "versions": versions(), "benchmarks": {}}
    if path.is_file():
        results["benchmarks"] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
    for name in options.only:
        print(f"\n== {name}", flush=True)
        results["benchmarks"][name] = run_script(name, options.quick)
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    entries = [results["benchmarks"][name] for name in options.only]
    claims = [row for entry in entries for row in entry["claims"].values()]
    print(f"\n{sum(row['ok'] for row in claims)} of {len(claims)} claims hold; {path}")
    return 1 if any(entry["exit_code"] for entry in entries) else 0


if __name__ == "__main__":
    sys.exit(main())
