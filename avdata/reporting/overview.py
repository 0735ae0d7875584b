"""First screen of a report: what the dataset is, what is wrong with it, and how to make, open and cite it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from avdata.config.overrides import diff_settings
from avdata.config.presets import PRESETS
from avdata.config.schema import Config
from avdata.errors import AvdataError
from avdata.manifest import read_facts
from avdata.recipe import Recipe, load_recipe, recipe_names
from avdata.reporting.html import count, format_value
from avdata.reporting.statistics import DatasetStatistics
from avdata.shards.citation import bibtex

OPTIONS = {
    "select.split_by": "--split-by", "select.group_leakage": "--group-leakage", "select.limit": "--limit",
    "audio.source": "--audio-source",
}  # fmt: skip
"""Settings with an option of their own."""


@dataclass(frozen=True)
class Setting:
    """Setting that differs from the recipe's defaults."""

    name: str
    default: Any
    value: Any


@dataclass(frozen=True)
class Overview:
    """First screen of a report.

    Attributes:
        is_mock: whether the media are generated.
        clips: sentence with the number of samples and of clips.
        warnings: what a user must know before training.
        shapes: (member, dtype, shape as text) of a sample.
        preset: preset whose settings are closest to the dataset's.
        changed: settings that differ from the preset.
        command: shell commands that prepare the same dataset.
        code: Python lines that open the dataset.
        bibtex: BibTeX entries.
    """

    is_mock: bool
    clips: str
    warnings: list[str]
    shapes: list[tuple[str, str, str]]
    preset: str
    changed: list[Setting]
    command: str
    code: str
    bibtex: str


def collect_overview(name: str, info: Mapping[str, Any], statistics: DatasetStatistics) -> Overview:
    """Return the first screen of a dataset's report.

    Args:
        name: folder or URL of the dataset.
        info: content of dataset.json.
        statistics: statistics of its index.
    """
    recipe = _recipe(info["recipe"]["name"])
    facts = {} if recipe is None else read_facts(recipe.name)
    summary = facts.get("summary") or {}
    preset, changed = _closest_preset(recipe, info["config"])
    return Overview(
        is_mock=info["source"]["checksums"] == "mock",
        clips=_describe_clips(info, statistics.samples, summary.get("clips")),
        warnings=_warnings(info),
        shapes=_shapes(info),
        preset=preset,
        changed=changed,
        command=_command(info, recipe, preset, changed),
        code=_code(name, info),
        bibtex=_bibtex(info, facts),
    )


def _bibtex(info: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return the entries of `avdata info --bibtex`, or those of another citation; empty without one."""
    # A preparation without checksums stores nothing of the manifest.
    citation = info["citation"] or facts.get("citation")
    stated = (facts.get("summary") or {}).get("bibtex")
    if stated and citation == facts.get("citation"):
        return str(stated)
    homepage = info["source"].get("homepage") or facts.get("homepage")
    if not (citation or homepage):
        return ""
    return bibtex(citation, name=info["name"], title=info["title"], homepage=homepage)


def _code(name: str, info: Mapping[str, Any]) -> str:
    """Return Python lines that open the dataset, with the shapes of a batch."""
    split = next((name for name in ("train", *info["splits"]) if name in info["splits"]), "train")
    where = json.dumps(name, ensure_ascii=False)
    steps, bands, columns = info["shape"]["mel"]
    lines = [
        "import avdata",
        "",
        f'dataset = avdata.open({where}, split="{split}", shuffle=True)',
        "for batch in dataset.loader(batch_size=32):",
        f"    batch.mel     # float32 [32, {steps}, 1, {bands}, {columns}]",
    ]
    if info["shape"]["frames"]:
        steps, height, width, channels = info["shape"]["frames"]
        lines.append(f"    batch.frames  # uint8 [32, {steps}, {channels}, {height}, {width}]")
    return "\n".join([*lines, "    batch.label   # int64 [32]"])


def _recipe(name: str) -> Recipe | None:
    """Return an installed recipe. dataset.json may come from anywhere: no file that it names is run."""
    names = recipe_names()
    if name not in names and name.rpartition("-")[0] not in names:
        return None
    try:
        return load_recipe(name)
    except AvdataError:
        return None


def _closest_preset(recipe: Recipe | None, config: Mapping[str, Any]) -> tuple[str, list[Setting]]:
    """Return the preset with the fewest differences, the default one if several are equal."""
    names = ["snnergy"] if recipe is None else list(dict.fromkeys(["snnergy", *PRESETS, *recipe.presets]))
    changes = {}
    for name in names:
        defaults = (Config() if recipe is None else recipe.configure(name)).model_dump(mode="json")
        changes[name] = [Setting(*row) for row in diff_settings(defaults, config)]
    name = min(names, key=lambda name: len(changes[name]))
    return name, changes[name]


def _describe_clips(info: Mapping[str, Any], samples: int, expected: int | None) -> str:
    excluded = sum(info["quarantine"].values())
    text = f"{count(samples)} {'sample' if samples == 1 else 'samples'}"
    if excluded:
        text += f"; {count(excluded)} {'clip is' if excluded == 1 else 'clips are'} in quarantine"
    return f"{text}. {info['title']} has {count(expected)} clips." if expected else f"{text}."


def _warnings(info: Mapping[str, Any]) -> list[str]:
    warnings = []
    if info["source"]["checksums"] == "mock":
        warnings.append(f"Mock: the media are generated and are not those of {info['title']}.")
    if info["leaks"]:
        groups = f"{count(info['leaks'])} {'group is' if info['leaks'] == 1 else 'groups are'}"
        text = f"Leakage: {groups} in more than one split; scores on held-out data will be too high."
        if info["config"]["select"]["group_leakage"] == "keep":
            text += " --group-leakage drop-train excludes their train clips."
        warnings.append(text)
    train = info["splits"].get("train")
    if train is None:
        warnings.append("No train split: the dataset can be evaluated, not trained on.")
    warnings += filter(None, (_absent_labels(info, split) for split in info["splits"]))
    if train is not None and not {"val", "test"} & set(info["splits"]):
        warnings.append("No val or test split: a training on this dataset cannot be evaluated.")
    if info["source"]["checksums"] == "off":
        warnings.append("The source files were not verified: checksums were off.")
    return warnings


def _absent_labels(info: Mapping[str, Any], split: str) -> str:
    """Return the warning about labels without a sample in a split; empty if there are none."""
    labels = info["labels"]
    absent = [label for label in labels if not info["splits"][split]["labels"].get(label)]
    names = ", ".join(absent[:10]) + ", …" * (len(absent) > 10)
    what = f"{split.capitalize()} has no sample of {len(absent)} of {len(labels)} labels: {names}."
    return what if absent else ""


def _shapes(info: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    audio = info["config"]["audio"]
    steps, bands, columns = info["shape"]["mel"]
    hop_ms = 1000 * audio["hop_length"] / audio["sample_rate"]
    kind = "STFT bins" if audio["feature"] == "log-stft" else "mel bands"
    every = "" if audio["resize"] else f" of {hop_ms:.3g} ms"
    shapes = [("mel", "float16", f"[T = {steps} steps, F = {bands} {kind}, L = {columns} columns{every}]")]
    if info["shape"]["frames"]:
        steps, height, width, channels = info["shape"]["frames"]
        colors = f"C = {channels} {'RGB' if channels == 3 else 'gray'}"
        shapes.append(("frames", "uint8", f"[T = {steps} steps, H = {height}, W = {width} pixels, {colors}]"))
    else:
        shapes.append(("frames", "none", "no frames: the dataset has audio only"))
    if audio["flac"]:
        shapes.append(("waveform", "float32", f"[samples at {count(audio['sample_rate'])} Hz, mono]"))
    shapes.append(("label", "int", f"0 to {len(info['labels']) - 1}, one of {len(info['labels'])} classes"))
    return shapes


def _command(info: Mapping[str, Any], recipe: Recipe | None, preset: str, changed: Sequence[Setting]) -> str:
    """Return the commands that prepare an equal dataset."""
    name = info["recipe"]["name"]
    output = f"out/{info['name']}"
    arguments = ["avdata", "prepare", name if recipe else f"{name}.py", "--output", output]
    lines = []
    if info["source"]["checksums"] == "mock" and not (recipe and recipe.generated):
        lines.append(shlex.join(["avdata", "mock", name, "--output", f"mock/{name}"]))
        arguments += ["--source", f"mock/{name}"]
    elif recipe is None or recipe.source_kind == "tars":
        arguments += ["--source", "DIR"]
    if info["source"]["checksums"] == "off":
        arguments.append("--no-checksums")
    if preset != "snnergy":
        arguments += ["--preset", preset]
    for setting in changed:
        arguments += _argument(setting)
    return "\n".join([*lines, shlex.join(arguments)])


def _argument(setting: Setting) -> list[str]:
    name, value = setting.name, setting.value
    if name.startswith("select.task_options"):
        pairs = {name.rpartition(".")[2]: value} if name.count(".") > 1 else value
        return [part for key, text in pairs.items() for part in ("--task-option", f"{key}={text}")]
    if name in OPTIONS:
        return [OPTIONS[name], str(value)]
    return ["--set", f"{name}={_yaml(value)}"]


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_yaml, value))}]"
    return "null" if value is None else str(value)


def describe_rate(fps: Mapping[float, int]) -> str:
    """Return the frame rates of the source videos, the most frequent first.

    >>> describe_rate({25.0: 1, 29.97: 9})
    '29.97 fps (90 %), 25 fps'
    """
    total = sum(fps.values())
    rates = sorted(fps.items(), key=lambda item: -item[1])
    if not rates:
        return "no frame rate"
    first = f"{format_value(rates[0][0])} fps" + (f" ({rates[0][1] / total:.0%})" * (len(rates) > 1))
    rest = [f"{format_value(rate)} fps" for rate, _ in rates[1:3]]
    text = ", ".join([first.replace("%", " %"), *rest])
    return text + f" and {len(rates) - 3} more" * (len(rates) > 3)
