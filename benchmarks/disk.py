"""Disk space of the sources while a dataset is prepared with `--no-keep-sources`.

    python benchmarks/disk.py                # about two minutes
    python benchmarks/disk.py --clips 7442 --samples 512

Generated clips with CREMA-D's names are served on loopback; `avdata prepare` fetches, decodes and removes
them. The bytes below its cache are counted twenty times a second. The target is a tenth of all sources.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from avdata.recipes.cremad import LABELS, SENTENCES
from claims import Claim, at_most, main, make_parser, set_quick

import avdata


def stems(count: int) -> list[str]:
    """Names by the grammar of CREMA-D's, so many of them."""
    names = itertools.product(range(1001, 1092), SENTENCES, LABELS, ("LO", "MD", "HI", "XX"))
    return ["_".join(map(str, name)) for name in itertools.islice(names, count)]


def lay_out(folder: Path, count: int) -> int:
    """Fill `folder` with `count` clips, few of them different, and its manifest's files; bytes of media."""
    mock = avdata.mock("cremad", folder / "mock", clips=14)
    facts = json.loads((mock / "manifest.json").read_text())
    kinds: dict[str, list[dict[str, object]]] = {
        "VideoFlash": [one for one in facts["files"] if one["path"].endswith(".flv")],
        "AudioWAV": [one for one in facts["files"] if one["path"].endswith(".wav")],
    }
    files = []
    for number, stem in enumerate(stems(count)):
        for kind, listed in kinds.items():
            one = listed[number % len(listed)]
            path = f"{kind}/{stem}{Path(str(one['path'])).suffix}"
            place = folder / "served" / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(mock / str(one["path"]))
            files.append({**one, "path": path})
    facts["files"] = files
    (folder / "facts.json").write_text(json.dumps(facts))
    return sum(int(str(one["bytes"])) for one in files)


def held(folder: Path) -> int:
    """Bytes of all files below a folder that others add to and remove from."""
    total = 0
    for name, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.stat(os.path.join(name, file)).st_size
            except FileNotFoundError:
                continue
    return total


def peak_of_sources(folder: Path, manifest: Path, keep: str, options: argparse.Namespace) -> int:
    """Prepare the dataset, and return the most bytes of sources in the cache."""
    began, most = time.perf_counter(), 0
    command = [
        "prepare", "cremad", "--output", str(folder / "out"), "--manifest", str(manifest),
        "--workers", str(options.workers), "--set", f"shards.samples_per_shard={options.samples}",
        keep, "--quiet",
    ]  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", "from avdata.cli import main; main()", *command],
        env={**os.environ, "AVDATA_CACHE": str(folder / "cache")}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None:
        most = max(most, held(folder / "cache" / "sources"))
        time.sleep(0.05)
    if process.returncode:
        sys.exit(f"avdata prepare failed with {process.returncode}")
    print(f"{keep:17}: {most / 1e6:6.1f} MB of sources at most; {time.perf_counter() - began:.0f} s")
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "cache")
    return most


def measure(options: argparse.Namespace) -> list[Claim]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        everything = lay_out(folder, options.clips)
        server = subprocess.Popen(
            [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--protocol", "HTTP/1.1",
             "--directory", str(folder / "served")],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split("port ")[1].split()[0]
            facts = json.loads((folder / "facts.json").read_text())
            facts["sources"] = [{"name": "media", "urls": [f"http://127.0.0.1:{port}/{{path}}"]}]
            manifest = folder / "manifest.json"
            manifest.write_text(json.dumps(facts))
            peaks = [
                peak_of_sources(folder, manifest, keep, options)
                for keep in ("--keep-sources", "--no-keep-sources")
            ]
        finally:
            server.terminate()
            server.wait()
    name = f"sources on disk without keeping them, {options.clips:,} clips in shards of {options.samples}"
    return [
        Claim("sources on disk when they are kept", peaks[0] / everything, unit="of all"),
        at_most(name, peaks[1] / everything, 0.1, "of all"),
    ]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--clips", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=100, help="samples per shard")
    parser.add_argument("--workers", type=int, default=1)
    main(set_quick(parser, clips=500, samples=10), measure)
