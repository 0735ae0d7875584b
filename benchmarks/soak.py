"""Kill commands at random moments, and check that each resumes to the bytes of an undisturbed run.

    python benchmarks/soak.py --kills 50

The signals are SIGKILL, SIGTERM and SIGINT. The commands are `prepare` from a folder, `prepare
--no-keep-sources` and a download from a server that drops, delays and corrupts files, `pull` and `publish`
with a Hub on loopback, and `snnergy train`. A command that ends before its kill is compared and started
again. A problem is a difference of bytes, another exit code than the signal's, or a traceback of avdata.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claims import Claim, at_most, main, make_parser, set_quick

import avdata
from avdata.subprocesses import python_command, python_environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.http_server import LoopbackServer, corrupt_byte, drop_after, reply_status, running_server
from support.hub_server import TOKEN, HubServer

Digest = Mapping[str, str]

EXIT_CODES = {
    signal.SIGKILL: {-signal.SIGKILL},
    # Python itself ends with the signal until the first lines of the command run.
    signal.SIGTERM: {143, -signal.SIGTERM},
    signal.SIGINT: {130, -signal.SIGINT},
}

OWN_CODE = re.compile(r'File "[^"]*/(?:avdata|snnergy)/(?!__main__|__init__|interrupts)')

SETTINGS = ("--set", "video.size=48", "--set", "shards.samples_per_shard=2")

DOWNLOAD = """
import sys, typer, avdata
from avdata.cli.console import run_command
app = typer.Typer()
@app.command()
def work(manifest: str, output: str) -> None:
    avdata.download("cremad", manifest=manifest, output=output, connections=4)
run_command(app)
"""


@dataclass
class Command:
    """Command to kill.

    Attributes:
        name: shown in the table.
        arguments: arguments of Python; called before each start.
        digest: checksums of the result by name.
        reset: removes the result.
        env: further variables of the environment.
    """

    name: str
    arguments: Callable[[], list[str]]
    digest: Callable[[], Digest]
    reset: Callable[[], None]
    env: dict[str, str] = field(default_factory=dict)

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        return subprocess.Popen(
            python_command(*self.arguments()), env=python_environment(**self.env),
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self) -> float:
        """Run to the end; return the seconds."""
        began = time.perf_counter()
        process = self.start()
        _, errors = process.communicate()
        if process.returncode:
            msg = f"{self.name} failed with {process.returncode}:\n{errors}"
            raise RuntimeError(msg)
        return time.perf_counter() - began


def soak(command: Command, kills: int, rng: random.Random) -> list[str]:
    """Kill a command `kills` times; print a row of the table and return the problems."""
    command.reset()
    seconds = command.run()
    reference, problems = command.digest(), list[str]()
    command.reset()
    sent, compared, equal = Counter[str](), 0, 0

    def compare() -> None:
        nonlocal compared, equal
        result = command.digest()
        compared += 1
        equal += result == reference
        different = sorted(name for name in {*result, *reference} if result.get(name) != reference.get(name))
        if different:
            problems.append(f"{command.name}: {', '.join(different[:5])} differ after kills")
        command.reset()

    while sent.total() < kills:
        process = command.start()
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.0, 1.05 * seconds))
        except subprocess.TimeoutExpired:
            number = rng.choice(list(EXIT_CODES))
            process.send_signal(number)
            _, errors = process.communicate()
            sent[number.name] += 1
            if process.returncode and process.returncode not in EXIT_CODES[number]:
                problems.append(
                    f"{command.name}: exit code {process.returncode} after {number.name}: {errors[-500:]}"
                )
            if OWN_CODE.search(errors):
                problems.append(f"{command.name}: traceback after {number.name}: {errors[-1500:]}")
        else:
            if process.returncode:
                problems.append(
                    f"{command.name}: exit code {process.returncode} without a signal: {errors[-500:]}"
                )
        if process.returncode == 0:
            compare()
    command.run()
    compare()
    signals = ", ".join(f"{count} {name}" for name, count in sorted(sent.items()))
    print(f"| {command.name} | {seconds:.1f} s | {signals} | {equal} of {compared} |", flush=True)
    return problems


def tree(root: Path, *, without: tuple[str, ...] = ()) -> Digest:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not any(part in without for part in path.parts)
    }


def remove(*folders: Path) -> Callable[[], None]:
    return lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in folders] and None


@contextmanager
def faulty_server(mock: Path, rng: random.Random, folder: Path) -> Iterator[Path]:
    """Serve a mock; every eighth answer is cut, delayed or corrupt. Yield the manifest."""
    facts = json.loads((mock / "manifest.json").read_text(encoding="utf-8"))
    files = {entry["path"]: (mock / entry["path"]).read_bytes() for entry in facts["files"]}

    def fault(handler: Any, content: bytes) -> bool:
        faults = (drop_after(len(content) // 2), reply_status(503, {"Retry-After": "0"}), corrupt_byte())
        return rng.random() < 0.125 and rng.choice(faults)(handler, content)

    with running_server(files) as server:
        assert isinstance(server, LoopbackServer)
        server.always = fault
        facts["sources"] = [{"name": "media", "urls": [server.url + "/{path}"]}]
        manifest = folder / "served.json"
        manifest.write_text(json.dumps(facts), encoding="utf-8")
        yield manifest


def source_commands(folder: Path, mock: Path, manifest: Path) -> list[Command]:
    out, cache, raw = folder / "out", folder / "cache", folder / "raw"
    prepare = ["-m", "avdata", "prepare", "cremad", "--output", str(out), "--workers", "2", *SETTINGS]
    streamed = [*prepare, "--manifest", str(manifest)]
    env = {"AVDATA_CACHE": str(cache)}
    return [
        Command("prepare", lambda: [*prepare, "--source", str(mock)], lambda: tree(out), remove(out), env),
        Command(
            "prepare --no-keep-sources", lambda: [*streamed, "--no-keep-sources"],
            lambda: tree(out), remove(out, cache), env,
        ),
        Command(
            "download", lambda: ["-c", DOWNLOAD, str(manifest), str(raw)],
            lambda: tree(raw, without=(".avdata",)), remove(raw), env,
        ),
    ]  # fmt: skip


def hub_commands(folder: Path, dataset: Path, hub: HubServer) -> list[Command]:
    env = {
        "HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(folder / "hf"),
        "AVDATA_CACHE": str(folder / "cache"),
    }  # fmt: skip
    pulled = folder / "pulled"

    def published() -> Digest:
        hub.served()
        return {name: hashlib.sha256(data).hexdigest() for name, data in hub.content("me/set").items()}

    def forget() -> None:
        hub.served()
        hub.repos.clear()
        hub.objects.clear()

    publish = ["-m", "avdata", "publish", str(dataset), "--repo", "me/set", "--allow-mock"]
    pull = ["-m", "avdata", "pull", "me/set", "--output", str(pulled)]
    return [
        Command("publish", lambda: publish, published, forget, env),
        Command("pull", lambda: pull, lambda: tree(pulled), remove(pulled), env),
    ]


def train_command(folder: Path, dataset: Path) -> Command:
    run = folder / "run"

    def arguments() -> list[str]:
        start = ["-m", "snnergy", "train", str(dataset), "--output", str(run)]
        settings = ["--train-preset", "quick", "--model", "nano", "--steps", "40", "--set", "save_every=2"]
        return [*start, *settings, *(["--resume"] if (run / "run.json").exists() else [])]

    def digest() -> Digest:
        import torch

        digests = {"metrics.csv": hashlib.sha256((run / "metrics.csv").read_bytes()).hexdigest()}
        for name in ("last.ckpt", "best.ckpt"):
            network = torch.load(run / name, weights_only=True)["network"]
            data = b"".join(network[key].numpy().tobytes() for key in sorted(network))
            digests[name] = hashlib.sha256(data).hexdigest()
        return digests

    return Command("train", arguments, digest, remove(run), {"AVDATA_CACHE": str(folder / "cache")})


def measure(options: argparse.Namespace) -> list[Claim]:
    rng, claims = random.Random(options.seed), list[Claim]()  # noqa: S311  # no secrets
    with tempfile.TemporaryDirectory() as name, HubServer() as hub:
        folder = Path(name)
        mock = avdata.mock("cremad", folder / "mock", clips=14)
        dataset, synthetic = folder / "set", folder / "synthetic"
        config: dict[str, Any] = {"video": {"size": 48}, "shards": {"samples_per_shard": 2}}
        avdata.prepare("cremad", source=mock, output=dataset, config=config, workers=2)
        avdata.prepare("synthetic", output=synthetic, config={**config, "select": {"limit": 44}}, workers=2)
        print("| command | undisturbed | signals | equal bytes |\n|---|---|---|---|")
        with faulty_server(mock, rng, folder) as manifest:
            publish, pull = hub_commands(folder, dataset, hub)
            commands = [*source_commands(folder, mock, manifest), publish, pull]
            for command in [*commands, train_command(folder, synthetic)]:
                if options.only is None or command.name in options.only:
                    if command is pull:
                        publish.run()
                    problems = soak(command, options.kills, rng)
                    print("".join(f"{problem}\n" for problem in problems), end="", flush=True)
                    title = f"{command.name}: problems after {options.kills} kills"
                    claims.append(at_most(title, len(problems), 0, "problems"))
    return claims


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--kills", type=int, default=50, help="kills of each command")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of commands")
    main(set_quick(parser, kills=2, only=["prepare", "download", "pull"]), measure)
