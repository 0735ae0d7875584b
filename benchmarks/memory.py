"""Memory per clip of the commands that hold a whole dataset: plan, finish, verify, open, report.

    python benchmarks/scale.py --memory

Each number of clips runs in a new process. The slope between the two largest numbers does not include the
libraries, which the smallest number shows.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import avdata
from avdata.subprocesses import python_command, python_environment

sys.path.insert(0, str(Path(__file__).parent))
import sizes
from claims import Claim, at_most

TARGETS = {"plan": 600.0, "finish": 90.0, "verify": 10.0, "verify, 2 workers": 10.0, "open": 60.0}
"""Bytes per clip. The libraries are in none of them. `finish` includes the packed plan, 75 bytes a clip."""


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the peak memory of this process during a call."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    result = run()
    (peak,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    del result
    return int(peak) << 10


def plan_and_finish(folder: Path, clips: int) -> dict[str, int]:
    """Plan clips whose files are links to one file, and finish the dataset in the same process."""
    source, recipe = sizes.tiny_source(folder, clips)
    plans: list[Any] = []
    peaks = {"plan": peak_bytes(lambda: plans.append(avdata.plan(recipe, source=source, checksums=False)))}
    return {**peaks, "finish, after the plan": peak_bytes(finish_run(folder, plans[0]))}


def finish_only(folder: Path, clips: int) -> dict[str, int]:
    """Finish a dataset whose plan is generated, so that the process never held the clips as objects."""
    from avdata.clips import Clip
    from avdata.pipeline.planning import plan_preparation
    from avdata.pipeline.sharding import assign_shards
    from avdata.pipeline.validation import SourceFile, ValidClip

    source, recipe = sizes.tiny_source(folder, 1)
    plan = plan_preparation(recipe, source=source, checksums=False)

    def candidates() -> Iterator[ValidClip]:
        for number in range(clips):
            key = f"c{number * 7919 % clips:07d}"
            path = f"{number // 10_000:03d}/{key}.wav"
            file = SourceFile(path, f"{number % 1000:064x}", 8044)
            yield ValidClip(Clip(key, "ab"[number % 2], key, "train", None, source / path), None, file)

    jobs = assign_shards("tiny", candidates(), plan.config.shards.samples_per_shard)
    return {"finish": peak_bytes(finish_run(folder, replace(plan, jobs=jobs)))}


def finish_run(folder: Path, plan: Any) -> Callable[[], None]:
    """Return a function that finishes the dataset of a plan with generated rows."""
    from avdata.manifest import load_manifest
    from avdata.pipeline.finalize import Provenance, finalize_dataset
    from avdata.pipeline.row_spool import RowSpool
    from avdata.shards.mel_sums import MelSums

    out = folder / "finished"
    out.mkdir(parents=True)
    bands = plan.config.audio.n_mels
    plan = replace(plan, manifest=load_manifest("cremad"))  # with a manifest, files are counted

    def finish() -> None:
        spool, entries = RowSpool(out), []
        for number, (shard, candidates) in enumerate(plan.jobs):
            rows = [
                row_of(candidate.clip.key, candidate.clip.label, shard, position)
                for position, candidate in enumerate(candidates)
            ]
            entry = {"shard": shard, "bytes": 40_000 * len(rows), "sha256": f"{number:064x}"}
            sums = MelSums(len(rows), [number] * bands, [1 << 48] * bands).to_json()
            entries.append(spool.store({**entry, "rows": rows, "quarantine": [], "mel": sums}))
        finalize_dataset(out, Provenance(plan, []), entries, spool, [])

    return finish


def row_of(key: str, label: str, shard: str, position: int) -> dict[str, Any]:
    """Return a row of the index."""
    return {
        "key": key, "split": "train", "shard": shard, "offset": 40_000 * position, "nbytes": 40_000,
        "label": "ab".index(label), "label_name": label, "group": key, "window_start": 0.0,
        "window_end": 0.25, "av_offset": None, "av_peak": None, "duration_audio": 0.25,
        "duration_video": None, "pad_fraction": 0.0, "flags": [], "sha256": f"{position:064x}",
    }  # fmt: skip


def read_large(folder: Path, dataset: Path, rows: int) -> dict[str, int]:
    """Verify, open and report an index of many rows, whose shards are missing: only the index counts here."""
    root = folder / "large"
    peaks = {"open": peak_bytes(lambda: avdata.open(root))}
    peaks["verify"] = peak_bytes(lambda: avdata.verify(root))
    peaks["verify, 2 workers"] = peak_bytes(lambda: avdata.verify(root, workers=2))
    peaks["report"] = peak_bytes(lambda: avdata.report(root))
    return peaks


def in_process(name: str, *arguments: object) -> dict[str, int]:
    """Run a function of this module in a new process, and return its peaks in bytes."""
    command = python_command(__file__, name, *map(str, arguments))
    done = subprocess.run(command, env=python_environment(), stdout=subprocess.PIPE, check=True)
    peaks: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return peaks


def print_table(clips: Sequence[int], rows: Sequence[int]) -> list[Claim]:
    """Measure and print the peak of each command by number of clips; return the slopes as claims."""
    peaks: dict[str, dict[int, int]] = {}
    with tempfile.TemporaryDirectory() as name:
        dataset = sizes.small_dataset(Path(name))
        for count in clips:
            with tempfile.TemporaryDirectory(dir=name) as folder:
                for step, peak in in_process("plan_and_finish", folder, count).items():
                    peaks.setdefault(step, {})[count] = peak
        for count in rows:
            with tempfile.TemporaryDirectory(dir=name) as folder:
                peaks.setdefault("finish", {})[count] = in_process("finish_only", folder, count)["finish"]
            with tempfile.TemporaryDirectory(dir=name) as folder:
                sizes.write_large_index(Path(folder, "large"), dataset, count)
                for step, peak in in_process("read_large", folder, dataset, count).items():
                    peaks.setdefault(step, {})[count] = peak
    print("| step | " + " | ".join(f"{count:,} clips" for count in sorted({*clips, *rows})) + " | a clip |")
    print("|---" * (len({*clips, *rows}) + 2) + "|")
    claims = []
    for step, by_count in peaks.items():
        cells = [
            f"{by_count[count] / 2**20:,.0f} MiB" if count in by_count else ""
            for count in sorted({*clips, *rows})
        ]
        first, last = sorted(by_count)[-2:]
        slope = (by_count[last] - by_count[first]) / (last - first)
        print(f"| {step} | " + " | ".join(cells) + f" | {slope:,.0f} B |", flush=True)
        name = f"{step}: peak memory per clip, {first:,} to {last:,} clips"
        target = TARGETS.get(step)
        claims.append(Claim(name, slope, unit="B") if target is None else at_most(name, slope, target, "B"))
    return claims


if __name__ == "__main__":
    function, folder, *rest = sys.argv[1:]
    if function == "read_large":
        print(json.dumps(read_large(Path(folder), Path(rest[0]), int(rest[1]))))
    else:
        step = {"plan_and_finish": plan_and_finish, "finish_only": finish_only}[function]
        print(json.dumps(step(Path(folder), int(rest[0]))))
