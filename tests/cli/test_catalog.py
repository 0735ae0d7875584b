"""`avdata recipes` and `avdata info`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import avdata
from avdata.cli.main import app
from avdata.manifest import load_manifest

PUBLISHED = [name for name in avdata.recipe_names() if name not in {"synthetic", "webdataset"}]


def shown(*words: str) -> str:
    done = CliRunner().invoke(app, list(words), catch_exceptions=False, env={"COLUMNS": "80"})
    assert done.exit_code == 0
    return done.output


def test_recipes_shows_clips_hours_download_license_and_publication() -> None:
    header, *rows = shown("recipes").splitlines()
    assert header.split() == ["recipe", "labels", "clips", "hours", "download", "license", "publishable"]
    cells = {row.split()[0]: re.split(r"\s{2,}", row)[1:] for row in rows}
    assert cells["cremad"] == ["6", "7,442", "5.26", "3.05 GB", "odbl", "yes"]
    assert cells["kinetics-sounds"] == ["31", "17,396", "48.3", "lists", "other", "no"]
    assert cells["ave"][3:] == ["unknown", "unknown", "no"]


def test_recipes_json_has_the_same_facts() -> None:
    facts = {row["name"]: row for row in json.loads(shown("recipes", "--json"))}
    assert facts["cremad"]["download_bytes"] == load_manifest("cremad", tables=False).bytes == 3_049_077_359
    assert (facts["vggsound"]["clips"], facts["vggsound"]["publish"]) == (199_176, "no")


def test_cremad_hours_are_those_of_its_wav_files() -> None:
    manifest = load_manifest("cremad")
    wavs = [entry for entry in manifest.files if entry.path.startswith("AudioWAV/")]
    bytes_per_hour = 16_000 * 2 * 3600
    hours = sum((entry.bytes or 0) - 44 for entry in wavs) / bytes_per_hour
    assert len(wavs) == manifest.summary.clips
    assert manifest.summary.hours == round(hours, 2)


def test_info_leads_with_size_splits_labels_and_license() -> None:
    names = [line.partition("  ")[0] for line in shown("info", "cremad").splitlines() if line[0] != " "]
    assert names[:7] == ["dataset", "size", "download", "counts", "splits", "labels", "license"]
    assert "7,442 clips, 5.26 hours" in shown("info", "cremad")


@pytest.mark.parametrize("name", PUBLISHED)
def test_info_bibtex_prints_balanced_entries_of_the_cited_year(name: str) -> None:
    text = shown("info", name, "--bibtex")
    assert json.loads(shown("info", name, "--bibtex", "--json"))["bibtex"] == text.rstrip("\n")
    assert text.count("{") == text.count("}")
    keys = re.findall(r"^@(?:article|inproceedings)\{(\w+),$", text, re.M)
    assert 0 < len(keys) == len(set(keys)) == text.count("\n}\n")
    years = set(re.findall(r"^  year = \{(\d{4})\},?$", text, re.M))
    assert years <= set(re.findall(r"\d{4}", load_manifest(name, tables=False).citation + " 2017"))


def test_info_bibtex_without_entry_is_an_error() -> None:
    with pytest.raises(avdata.AvdataError, match="No BibTeX entry"):
        shown("info", "synthetic", "--bibtex")


def test_download_plan_states_unknown_sizes(tmp_path: Path) -> None:
    output = shown("download", "grid", "--dry-run", "--output", str(tmp_path / "grid"))
    rows = dict(re.findall(r"^(\w+(?: \w+)*) {2,}(.+)$", output, re.M))
    assert rows["size"] == "unknown: the manifest states none"
    assert rows["files"] == "34 to download, 0 present"
    plan = json.loads(shown("download", "cremad", "--limit", "2", "--dry-run", "--json"))
    assert (plan["unknown"], plan["files"]) == (0, 4)


def test_summary_is_not_part_of_the_manifest_hash() -> None:
    manifest = load_manifest("ave")
    changed = manifest.model_copy(update={"summary": manifest.summary.model_copy(update={"hours": 1.0})})
    assert changed.hash == manifest.hash
