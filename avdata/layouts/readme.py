"""README.md of an export: what it is, how it was made, provenance and license."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter

from avdata.config.overrides import diff_settings
from avdata.config.schema import Config
from avdata.errors import AvdataError
from avdata.layouts.base import ExportJob
from avdata.recipe import load_recipe
from avdata.shards.card import card_title, code_span, escape_markdown, is_mock
from avdata.shards.provenance import describe_verification

_PLAIN = re.compile(r"[\w.:-]+")
"""Text that YAML reads as text, and that cannot end a code block."""

_MOCK = "**Generated mock media, not the dataset itself.** The license below is that of the dataset."


def render_readme(job: ExportJob) -> str:
    """Return the README as Markdown. Equal exports give equal bytes."""
    info, counts = job.info, Counter(row["split"] for row in job.rows)
    license = info["license"]
    sections = [
        f"# {escape_markdown(card_title(info))}, in the layout {job.name}",
        *([_MOCK] if is_mock(info) else []),
        f"Read by: {escape_markdown(job.layout.readers)}.",
        "\n".join(f"- {split}: {counts[split]:,} clips" for split in info["splits"]),
        "\n".join(f"- {note}" for note in _notes(job)),
        "## How it was made",
        f"```sh\n{_prepare_command(job)}\n{_export_command(job)}\n```",
        f"Config hash {code_span(info['config_hash'])}, plan {code_span(info['plan'])}.",
        "## Provenance",
        escape_markdown(describe_verification(info["source"])),
        *([f"Commit {code_span(info['source']['commit'])}."] if info["source"].get("commit") else []),
        *([escape_markdown(info["ethics"])] if info.get("ethics") else []),
        "## License and citation",
        escape_markdown(f"{license['name']}. {license['note']}") if license else "Unknown.",
        *([escape_markdown(info["citation"])] if info.get("citation") else []),
    ]
    return "\n\n".join(str(section) for section in sections if section) + "\n"


def _notes(job: ExportJob) -> list[str]:
    notes = list(job.layout.notes(job))
    if "val" in job.info["splits"]:
        merged = f"the train list {'has' if job.options.merge_val else 'does not have'} the clips of val"
        hint = "" if job.options.merge_val else " (`--merge-val` adds them, as published lists do)"
        notes.append(f"Splits by {code_span(job.info['split_by'])}: {merged}{hint}.")
    quarantined = sum(job.info["quarantine"].values())
    if quarantined:
        notes.append(f"{quarantined:,} clips are missing because they are in quarantine.")
    return notes


def _prepare_command(job: ExportJob) -> str:
    """Return a command that prepares the dataset, with all settings that differ from the defaults."""
    info = job.info
    default = _default_config(info["name"]).model_dump(mode="json")
    words = ["avdata", "prepare", info["name"], "-o", "DATASET"]
    for setting, _, value in diff_settings(default, info["config"]):
        text = value if isinstance(value, str) and _PLAIN.fullmatch(value) else json.dumps(value)
        words += ["--set", f"{setting}={text}"]
    return shlex.join(words)


def _default_config(name: str) -> Config:
    """Return the settings of a preparation without a preset."""
    try:
        return load_recipe(name).configure(None)
    except AvdataError:  # a recipe of the user's
        return Config()


def _export_command(job: ExportJob) -> str:
    options = job.options
    words = ["avdata", "export", "DATASET", job.name, "-o", "DIR"]
    words += ["--fbank-frames", str(options.fbank_frames)] if options.fbank_frames else []
    words += ["--merge-val"] if options.merge_val else []
    words += [word for name in options.media or () for word in ("--media", name)]
    return shlex.join(words)
