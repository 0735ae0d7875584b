"""Read thousands of damaged datasets, journals, loader states and stored networks.

    python benchmarks/fuzz_sets.py --cases 2000

Every reader must succeed, or raise one `AvdataError` whose message is one line, within 5 s of CPU time and
1 GB. Each case runs in a forked process, so that crashes are counted too. The table counts the outcomes by
what was damaged. Every other outcome is a failure and printed with its seed, which `--first SEED --cases 1`
repeats.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import torch
from claims import Claim, at_most, main, make_parser, set_quick

import avdata
from avdata.errors import AvdataError, UsageError
from avdata.pipeline import prepare as preparation
from avdata.shards.verify import VerificationReport
from snnergy.models.config import configure
from snnergy.models.dataset_facts import DatasetFacts
from snnergy.models.network import SNNergy
from snnergy.training.checkpoint import load_network, save, write_json
from snnergy.training.config import TrainConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.damaged_sets import MUTATIONS, READERS, copy_set, mutate_bytes, mutate_json

MAX_SECONDS, MAX_BYTES = 5.0, 1 << 30

MAX_CASE_SECONDS, HANG_S = 60, 900.0
"""CPU time of a case, which ends a loop without end; wall-clock time, which ends one that only waits."""

SETTINGS = {
    "video": {"size": 32, "storage": "jpeg"}, "audio": {"n_mels": 16, "hop_length": 320, "flac": True},
    "shards": {"samples_per_shard": 5},
}  # fmt: skip

Check = Callable[[], object]


# -- what is damaged ---------------------------------------------------------------------------------------


def make_bases(root: Path) -> None:
    """Write a dataset, an interrupted preparation, a checkpoint with its run, and a saved network."""
    avdata.mock("synthetic", root / "raw", clips=16)
    prepare(root, root / "set")
    finalize, preparation.finalize_dataset = preparation.finalize_dataset, interrupt
    with suppress(KeyboardInterrupt):
        prepare(root, root / "journal")
    preparation.finalize_dataset = finalize
    config = configure("nano", num_classes=2)
    facts = DatasetFacts(("a", "b"), None, {}, {}, {}, has_frames=True).dump()
    network = SNNergy(config)
    network.save_pretrained(root / "network")
    (root / "run").mkdir()
    run = {
        "config": TrainConfig().model_dump(), "model": asdict(config), "dataset": "data", "facts": facts,
        "processes": 1,
    }  # fmt: skip
    write_json(root / "run" / "run.json", run)
    state = {"network": network.state_dict(), "ema": None, "facts": facts, "calibrated": True}
    save(root / "run" / "last.ckpt", state)


def prepare(root: Path, output: Path) -> None:
    avdata.prepare("synthetic", source=root / "raw", output=output, config=SETTINGS, workers=0)


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def damage_set(root: Path, work: Path, rng: random.Random) -> tuple[str, str, dict[str, Check]]:
    copy_set(root / "set", work)
    kind = rng.choice(list(MUTATIONS))
    what = MUTATIONS[kind](work, rng)
    names = [name for name in READERS if name != "report" or rng.random() < 0.2]
    return kind, what, {name: lambda name=name: READERS[name](work) for name in names}


def damage_file(path: Path, rng: random.Random) -> str:
    """Change values of a JSON file, or bytes of any file."""
    data = path.read_bytes()
    head, separator, text = (
        data.rpartition(b"\n") if path.parent.name in ("done", ".avdata") else (b"", b"", data)
    )
    if path.suffix == ".json" and rng.random() < 0.6:
        document, what = mutate_json(json.loads(text), rng)
        path.write_bytes(head + separator + json.dumps(document).encode())
        return f"{path.name} {what}"
    path.write_bytes(mutate_bytes(data, rng))
    return f"{path.name} bytes"


def damage_journal(root: Path, work: Path, rng: random.Random) -> tuple[str, str, dict[str, Check]]:
    copy_set(root / "journal", work)
    what = damage_file(rng.choice(sorted((work / ".avdata").rglob("*.json"))), rng)

    def resume() -> None:
        prepare(root, work)
        if not avdata.verify(work).ok:
            msg = "the resumed dataset is damaged"
            raise RuntimeError(msg)

    return "journal", what, {"prepare": resume}


def damage_state(root: Path, work: Path, rng: random.Random) -> tuple[str, str, dict[str, Check]]:
    loader = avdata.open(root / "set", "train", shuffle=True).loader(3, num_workers=0)
    next(iter(loader))
    state, what = mutate_json(loader.state_dict(), rng)

    def resume() -> None:
        other = avdata.open(root / "set", "train", shuffle=True).loader(3, num_workers=0)
        other.load_state_dict(state)
        list(other)

    return "loader state", what, {"resume": resume}


def damage_run(root: Path, work: Path, rng: random.Random) -> tuple[str, str, dict[str, Check]]:
    copy_set(root / "run", work)
    path = work / rng.choice(("run.json", "last.ckpt"))
    if path.suffix == ".ckpt" and rng.random() < 0.5:
        state = torch.load(path, weights_only=True)
        name = rng.choice(list(state["network"]))
        value = rng.choice((None, torch.zeros(1), torch.zeros(3, 3, dtype=torch.int8), "x"))
        state["network"][name] = value
        torch.save(state, path)
        return "checkpoint", f"{name} = {value!r:.30}", {"load": lambda: load_network(work / "last.ckpt")}
    return "checkpoint", damage_file(path, rng), {"load": lambda: load_network(work / "last.ckpt")}


def damage_network(root: Path, work: Path, rng: random.Random) -> tuple[str, str, dict[str, Check]]:
    copy_set(root / "network", work)
    path = work / rng.choice(("config.json", "config.json", "model.safetensors"))
    return "config.json", damage_file(path, rng), {"load": lambda: SNNergy.from_pretrained(work)}


SUBJECTS = [damage_set] * 13 + [damage_journal] * 2 + [damage_state] + [damage_run] * 2 + [damage_network] * 2


# -- one case, in a process of its own ---------------------------------------------------------------------


def outcome(check: Check) -> str:
    """Return `intact` or `refused`, else what must not happen."""
    began = time.process_time()
    try:
        result = check()
        has_problems = isinstance(result, VerificationReport) and not result.ok
        found = "refused" if has_problems else "intact"
    except UsageError as error:
        # A split that dataset.json no longer lists was asked for.
        found = "refused" if error.message.startswith("Unknown split") else f"UsageError: {error.message}"
    except AvdataError as error:
        is_sentence = "\n" not in error.message and 0 < len(error.message) < 1000
        found = "refused" if is_sentence else f"not one sentence: {error.message[:200]!r}"
    except BaseException as error:
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if "site-packages" not in frame.filename
        ]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
        found = f"{type(error).__name__} in {where}: {str(error)[:150]}"
    seconds = time.process_time() - began  # CPU time, which other processes do not change
    return found if seconds <= MAX_SECONDS else f"{seconds:.1f} s, {found}"


def run_case(root: Path, seed: int, results: Path) -> None:
    warnings.simplefilter("ignore")
    logging.disable()
    rng = random.Random(seed)  # noqa: S311  # for reproducible cases
    kind, what, checks = rng.choice(SUBJECTS)(root, results.with_name("work"), rng)
    outcomes = {name: outcome(check) for name, check in checks.items()}
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if size > MAX_BYTES:
        outcomes["memory"] = f"{size / 1e9:.1f} GB"
    results.write_text(json.dumps([kind, what.encode("ascii", "replace").decode(), outcomes]))


def run_forked_case(root: Path, seed: int, results: Path) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (MAX_CASE_SECONDS, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    run_case(root, seed, results)


def run_cases(root: Path, options: argparse.Namespace) -> Counter[tuple[str, str]]:
    """Run each case in a forked process, print the failures, and return the counts by kind and outcome."""
    counts: Counter[tuple[str, str]] = Counter()
    results = root / "results.json"
    for seed in range(options.first, options.first + options.cases):
        results.unlink(missing_ok=True)
        process = multiprocessing.get_context("fork").Process(
            target=run_forked_case, args=(root, seed, results)
        )
        process.start()
        process.join(HANG_S)
        if process.is_alive():
            process.kill()
            process.join()
        kind, what, outcomes = (
            json.loads(results.read_text())
            if results.is_file()
            else ["unknown", "", {"process": f"ended with {process.exitcode}"}]
        )
        failures = {name: found for name, found in outcomes.items() if found not in ("intact", "refused")}
        refused = "refused" if "refused" in outcomes.values() else "intact"
        counts[kind, "failed" if failures else refused] += 1
        for name, found in failures.items():
            print(f"seed {seed}: {kind}, {what}: {name}: {found}", flush=True)
        for folder in ("work", "exported"):
            shutil.rmtree(root / folder, ignore_errors=True)
    return counts


def measure(options: argparse.Namespace) -> list[Claim]:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["AVDATA_CACHE"] = str(root / "cache")
        make_bases(root)
        run_case(root, options.first, root / "results.json")  # imports what the cases need before they fork
        began = time.perf_counter()
        counts = run_cases(root, options)
        print(f"{options.cases} cases in {time.perf_counter() - began:.0f} s")
    print("| damaged | intact for all readers | refused | failed |\n|---|---|---|---|")
    for kind in sorted({kind for kind, _ in counts}):
        row = " | ".join(str(counts[kind, name]) for name in ("intact", "refused", "failed"))
        print(f"| {kind} | {row} |")
    bad = sum(count for (_, outcome), count in counts.items() if outcome == "failed")
    return [at_most(f"damaged datasets and states with a failure, of {options.cases:,}", bad, 0, "cases")]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    main(set_quick(parser, cases=60), measure)
