"""Four processes of two launchers, as on two machines of two GPUs each, with gloo.

Where it is allowed the machines are two network namespaces that share nothing but a cable, else loopback.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.processes import wait_until

import avdata
from snnergy.training.checkpoint import load
from snnergy.training.distributed import TIMEOUT_S
from snnergy.training.evaluation import evaluate

# Twelve samples a step: the last of an epoch has eight, and four places that are padding.
SAMPLES, STEPS_AN_EPOCH = 32, 3

WORKER = '''
"""One process of a run that writes down the keys it is given, and may be killed."""
import json, os, signal, sys
from pathlib import Path

import snnergy.training.train_step
from snnergy.training.config import parse
from snnergy.training.trainer import train

folder, where, settings, kill_rank, kill_step, resume = sys.argv[1:]
rank = int(os.environ["RANK"])
log = Path(folder, f"keys-{os.environ['WORLD_SIZE']}-{rank}.jsonl")
learn = snnergy.training.train_step.TrainStep.__call__

def watched(self, batches, **options):
    if rank == int(kill_rank) and self.step == int(kill_step):
        os.kill(os.getpid(), signal.SIGKILL)
    made = learn(self, batches, **options)
    keys = [key for one in batches for key, weight in zip(one.key, one.weight.tolist()) if weight > 0]
    with log.open("a") as lines:
        lines.write(json.dumps({"step": self.step, "epoch": options["epoch"], "keys": keys}) + "\\n")
    return made

snnergy.training.train_step.TrainStep.__call__ = watched
try:
    train(where, Path(folder, "run"), parse(json.loads(settings)), device="cpu", resume=resume == "resume")
except snnergy.training.trainer.AvdataError as error:
    sys.exit(f"error: {error.message} / {error.hint}")
'''


def free_port() -> int:
    """One below those that the kernel gives out by itself: nobody gets it by chance before it is used."""
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        with socket.socket() as held:
            try:
                held.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass(frozen=True)
class Machine:
    """What stands before a launcher's command, the network's name there, and the first one's address."""

    command: list[str] = field(default_factory=list)
    interface: str = "lo"
    first: str = "127.0.0.1"


@contextmanager
def launched(
    machines: list[Machine], words: list[str], *, processes: int
) -> Iterator[list[subprocess.Popen[str]]]:
    """One torchrun a machine, so many processes each."""
    port = free_port()
    jobs = []
    for node, machine in enumerate(machines):
        env = {
            **os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": machine.interface,
            "TORCHELASTIC_ERROR_FILE": "",
        }  # fmt: skip
        command = [
            *machine.command, sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(machines)}",
            f"--node-rank={node}", f"--nproc-per-node={processes}", f"--master-addr={machine.first}",
            f"--master-port={port}", *words,
        ]  # fmt: skip
        jobs.append(
            subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                start_new_session=True,
            )
        )  # fmt: skip
    try:
        yield jobs
    finally:
        for job in jobs:
            job.terminate()  # a launcher then ends its processes, which are in groups of their own
        for job in jobs:
            try:
                job.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)


@contextmanager
def two_machines() -> Iterator[tuple[list[Machine], str]]:
    """Two network namespaces with a cable between them, or loopback and why it is no more than that."""
    ip = shutil.which("ip")
    name = uuid.uuid4().hex[:8]
    spaces = [f"avdata-{name}-{node}" for node in range(2)]
    ends = [f"av{name}{letter}" for letter in "ab"]
    steps = [["netns", "add", space] for space in spaces]
    steps.append(["link", "add", ends[0], "type", "veth", "peer", "name", ends[1]])
    for node, (space, end) in enumerate(zip(spaces, ends, strict=True)):
        steps += [
            ["link", "set", end, "netns", space, "name", "eth0"],
            ["-n", space, "addr", "add", f"10.77.0.{node + 1}/24", "dev", "eth0"],
            *(["-n", space, "link", "set", link, "up"] for link in ("lo", "eth0")),
        ]
    if not ip:
        yield [Machine(), Machine()], "there is no ip command"
        return
    try:
        for step in steps:
            if subprocess.run([ip, *step], capture_output=True, check=False).returncode:
                yield [Machine(), Machine()], f"ip {' '.join(step)} failed"
                return
        yield [Machine([ip, "netns", "exec", space], "eth0", "10.77.0.1") for space in spaces], ""
    finally:
        for space in spaces:
            subprocess.run([ip, "netns", "del", space], capture_output=True, check=False)


def words_of(folder: Path, where: Path, steps: int, **changes: int) -> list[str]:
    """The worker and its arguments, but for the last three."""
    from snnergy.training.config import resolve_config

    script = folder / "worker.py"
    script.write_text(WORKER)
    settings = {
        "model": "nano", "model_options": {"dims": [4, 8, 8], "heads": [1, 1, 1]}, "batch_size": 12,
        "steps": steps, "workers": 3, "save_every": 1, "mixup": 0.2,
    }  # fmt: skip
    config = resolve_config("quick", settings, changes)
    return [str(script), str(folder), str(where), config.model_dump_json()]


def rows_of(folder: Path) -> dict[str, list[dict]]:
    """What each process wrote down, by number of processes and rank."""
    return {
        path.stem.removeprefix("keys-"): [json.loads(line) for line in path.read_text().splitlines()]
        for path in folder.glob("keys-*.jsonl")
    }


def tell(folder: Path, where: Path) -> None:
    """Four processes train; one is killed in the second epoch; two processes finish the run."""
    words = words_of(folder, where, 3 * STEPS_AN_EPOCH)
    killed_at, log = STEPS_AN_EPOCH + 2, folder / "keys-4-3.jsonl"
    # Those that are left notice at once; what would not be noticed would be waited for longer.
    soon = 0.9 * TIMEOUT_S
    with two_machines() as (machines, apart):
        with launched(machines, [*words, "3", str(killed_at), "begin"], processes=2) as jobs:
            wait_until(lambda: log.is_file() and log.read_text().count("\n") == killed_at, TIMEOUT_S)
            errors = [job.communicate(timeout=soon)[1] for job in jobs]
            codes = [job.returncode for job in jobs]
        state = load((folder / "run" / "last.ckpt").read_bytes(), folder)
        with launched(machines, [*words, "-1", "-1", "resume"], processes=1) as jobs:
            refused = [(job.communicate(timeout=soon)[1], job.returncode) for job in jobs]
        # Batch norms see as many samples in two parts of two processes as in one part of four.
        words = words_of(folder, where, 3 * STEPS_AN_EPOCH, accumulate=2)
        with launched(machines, [*words, "-1", "-1", "resume"], processes=1) as jobs:
            again = [(job.communicate(timeout=soon)[1], job.returncode) for job in jobs]
    result = json.loads((folder / "run" / "result.json").read_text())
    alone = evaluate(folder / "run" / result["chosen"], where, device="cpu")["test"]
    told = {
        "errors": errors, "codes": codes, "step": state["step"], "refused": refused, "again": again,
        "rows": rows_of(folder), "killed_at": killed_at, "result": result, "alone": alone, "apart": apart,
    }  # fmt: skip
    (folder / "story.pickle").write_bytes(pickle.dumps(told))


@pytest.fixture(scope="module")
def story(once: Callable[..., Path], tiny_set: Path) -> dict:
    def make(folder: Path) -> None:
        folder.mkdir()
        tell(folder, tiny_set)

    return dict(pickle.loads((once("story", make) / "story.pickle").read_bytes()))


pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]


def test_distributed_epoch_contains_each_key_once(story: dict, tiny_set: Path) -> None:
    expected = Counter(avdata.open(tiny_set, "train", rank=0, world_size=1).keys)
    assert sum(expected.values()) == SAMPLES
    assert len(list((tiny_set / "train").glob("*.tar"))) == 7
    seen = Counter(
        key for name, rows in story["rows"].items() if name.startswith("4-")
        for row in rows if row["epoch"] == 0 for key in row["keys"]
    )  # fmt: skip
    assert seen == expected


def test_ranks_run_equal_number_of_steps(story: dict) -> None:
    counts = {name: len(rows) for name, rows in story["rows"].items()}
    assert [counts[f"4-{rank}"] for rank in range(4)] == [story["killed_at"]] * 4
    assert counts["2-0"] == counts["2-1"] == 3 * STEPS_AN_EPOCH - story["killed_at"]


def test_killed_rank_stops_job_with_error_message(story: dict) -> None:
    assert all(story["codes"])
    assert any("lost the connection to another rank" in said for said in story["errors"])
    assert any("SIGKILL" in said or "Signal 9" in said for said in story["errors"])


def test_resume_on_fewer_ranks_covers_remaining_keys_exactly(story: dict, tiny_set: Path) -> None:
    assert [code for _, code in story["again"]] == [0, 0], story["again"]
    assert story["step"] == story["killed_at"]
    expected = Counter(avdata.open(tiny_set, "train", rank=0, world_size=1).keys)
    for epoch in (1, 2):
        seen = Counter(
            key for rows in story["rows"].values() for row in rows if row["epoch"] == epoch
            for key in row["keys"]
        )  # fmt: skip
        assert seen == expected
    result = story["result"]
    assert (result["steps"], result["processes"]) == (3 * STEPS_AN_EPOCH, 2)
    assert result["test"]["samples"] == 8


def test_resume_refuses_another_batch_norm_size(story: dict) -> None:
    assert all(code for _, code in story["refused"])
    said = " ".join(text for text, _ in story["refused"])
    assert "see 3 samples (4 processes, accumulate 1), requested 6 (2 processes, accumulate 1)" in said
    assert "--set accumulate=2" in said


def test_ranks_evaluate_each_sample_once(story: dict) -> None:
    """The confusion matrix summed over two ranks, with padding, is that of one process."""
    together, alone = story["result"]["test"], story["alone"]
    assert together.pop("loss") == pytest.approx(alone.pop("loss"), abs=1e-5)
    assert together == alone


def test_machines_share_only_one_network_link(story: dict) -> None:
    if story["apart"]:
        pytest.skip(f"no network namespaces here: {story['apart']}; all this was on loopback")
