"""Prepare thousands of damaged files: clips with 1 to 3 changed bytes in the header, some of them cut.

    python benchmarks/fuzz.py --files 5000 --workers 2

Eleven containers. The run must end, and each file must become a sample or a row of the quarantine; the table
counts them by container and reason. A `decoder_error` is an exception that avdata did not expect, and a
`crash` one of a library. Neither ends a run, and both are worth a report.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from claims import Claim, at_least, main, make_parser, set_quick

import avdata
from avdata.shards.reader import read_index, read_quarantine
from avdata.testing.damaged_media import DAMAGED_CONTAINERS, DAMAGED_RECIPE, write_damaged_media


def measure(options: argparse.Namespace) -> list[Claim]:
    with tempfile.TemporaryDirectory() as folder:
        source, output = Path(folder) / "source", Path(folder) / "out"
        write_damaged_media(source, options.files, options.seed)
        began = time.perf_counter()
        avdata.prepare(
            DAMAGED_RECIPE, source=source, output=output, config={"video": {"size": 32}}, checksums=False,
            workers=options.workers, max_quarantine=1.0,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        outcomes = {row["key"]: "sample" for row in read_index(output).to_pylist()}
        outcomes |= {row["key"]: row["reason"] for row in read_quarantine(output).to_pylist()}
    counts = Counter((key.partition("-")[0], outcome) for key, outcome in outcomes.items())
    print("| outcome | " + " | ".join(DAMAGED_CONTAINERS) + " |")
    print("|---" * (1 + len(DAMAGED_CONTAINERS)) + "|")
    for outcome in sorted({outcome for _, outcome in counts}):
        row = " | ".join(str(counts[container, outcome]) for container in DAMAGED_CONTAINERS)
        print(f"| {outcome} | {row} |")
    print(f"{options.files} files in {seconds:.0f} s")
    share = len(outcomes) / options.files
    return [
        at_least(f"damaged files that are a sample or in quarantine, of {options.files:,}", share, 1.0, "")
    ]


if __name__ == "__main__":
    parser = make_parser(__doc__)
    parser.add_argument("--files", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    main(set_quick(parser, files=300), measure)
