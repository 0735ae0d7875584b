"""Commands for recipes: `avdata recipes` and `avdata info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli.console import format_bytes, print_json, print_line, print_table
from avdata.cli.options import Json, RecipeName, Silent

if TYPE_CHECKING:
    from avdata.manifest import Manifest
    from avdata.recipe import Recipe


def recipes(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the names.")] = False,
    as_json: Json = False,
) -> None:
    """List the datasets that have a recipe, with clips, hours, download size and license."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe, recipe_names

    if quiet and not as_json:
        for name in recipe_names():
            print_line(name)
        return
    entries = [(load_recipe(name), load_manifest(name, tables=False)) for name in recipe_names()]
    if as_json:
        print_json([_recipe_facts(recipe, manifest) for recipe, manifest in entries])
        return
    rows = [_recipe_row(recipe, manifest) for recipe, manifest in entries]
    print_table(("recipe", "labels", "clips", "hours", "download", "license", "publishable"), rows)


def _recipe_facts(recipe: Recipe, manifest: Manifest) -> dict[str, Any]:
    return {
        "name": recipe.name, "title": recipe.title, "labels": len(recipe.labels) or None,
        "clips": manifest.summary.clips, "hours": manifest.summary.hours,
        "download_bytes": _download_bytes(manifest), "downloads_clips": manifest.summary.downloads_clips,
        "license": manifest.license.id, "publish": manifest.license.publish,
    }  # fmt: skip


def _recipe_row(recipe: Recipe, manifest: Manifest) -> tuple[str, ...]:
    clips, hours = manifest.summary.clips, manifest.summary.hours
    return (
        recipe.name,
        str(len(recipe.labels) or "–"),
        "–" if clips is None else f"{clips:,}",
        "–" if hours is None else f"{hours:g}",
        _download_size(manifest),
        manifest.license.id,
        manifest.license.publish,
    )


def _download_bytes(manifest: Manifest) -> int | None:
    stated = manifest.summary.download_bytes
    return manifest.bytes if stated is None else stated


def _download_size(manifest: Manifest) -> str:
    if not manifest.summary.downloads_clips:
        return "lists"
    size = _download_bytes(manifest)
    if size is None:
        return "unknown" if manifest.sources else "–"
    return format_bytes(size) if size else "none"


def info(
    recipe_name: RecipeName,
    bibtex: Annotated[bool, typer.Option("--bibtex", help="Print only the BibTeX entries.")] = False,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Show the size, splits, labels, license and citation of a dataset, and the settings of its recipe."""
    from avdata.recipe import load_recipe

    recipe, manifest = load_recipe(recipe_name), _load_manifest(recipe_name)
    if bibtex:
        text = _bibtex(recipe_name, manifest)
        if as_json:
            print_json({"bibtex": text})
        elif not quiet:
            print_line(text)
        return
    facts = _info_facts(recipe, manifest)
    if as_json:
        print_json(facts)
    elif not quiet:
        print_table(("", ""), _info_rows(facts, manifest), header=False)


def _bibtex(recipe_name: str, manifest: Manifest | None) -> str:
    from avdata.errors import AvdataError

    if manifest is None or manifest.summary.bibtex is None:
        msg = f"No BibTeX entry is known for {recipe_name!r}."
        raise AvdataError(msg, hint=f"avdata info {recipe_name} shows what is known of its source.")
    return manifest.summary.bibtex


def _info_facts(recipe: Recipe, manifest: Manifest | None) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "title": recipe.title,
        "homepage": manifest and manifest.homepage,
        "license": manifest and manifest.license.model_dump(),
        "citation": manifest and manifest.citation,
        "bibtex": manifest and manifest.summary.bibtex,
        "clips": manifest and manifest.summary.clips,
        "hours": manifest and manifest.summary.hours,
        "bytes": manifest and _download_bytes(manifest),
        "expected": manifest.expected if manifest else {},
        "labels": list(recipe.labels),
        "label_orders": {order: list(labels) for order, labels in recipe.label_orders.items()},
        "background": recipe.background,
        "options": dict(recipe.options),
        "splits": dict(recipe.splits),
        "default_split": recipe.default_split,
        "known_bad": dict(recipe.known_bad),
        "defaults": recipe.configure(None).model_dump(mode="json"),
    }


def _load_manifest(recipe_name: str) -> Manifest | None:
    """Return the manifest of a recipe or of a task's recipe; None for a recipe file."""
    from avdata.manifest import load_manifest
    from avdata.recipe import recipe_names

    if recipe_name.endswith(".py"):
        return None
    name = recipe_name if recipe_name in recipe_names() else recipe_name.rpartition("-")[0]
    return load_manifest(name, tables=False)


def _info_rows(facts: dict[str, Any], manifest: Manifest | None) -> list[tuple[str, str]]:
    labels = ", ".join(f"{index} {label}" for index, label in enumerate(facts["labels"]))
    splits = "\n".join(
        f"{name}{' (default)' if name == facts['default_split'] else ''}: {text}"
        for name, text in facts["splits"].items()
    )
    options = "\n".join(f"{name}: {text}" for name, text in facts["options"].items())
    known_bad = "\n".join(f"{key}: {reason}" for key, reason in facts["known_bad"].items())
    return [
        ("dataset", facts["title"]),
        *(_size_rows(manifest) if manifest else []),
        ("splits", splits),
        ("labels", labels or "those of the source"),
        *_source_rows(facts),
        *([("task options", options)] if options else []),
        ("broken clips", known_bad or "none known"),
        ("defaults", _defaults(facts["defaults"])),
    ]


def _size_rows(manifest: Manifest) -> list[tuple[str, str]]:
    clips, hours = manifest.summary.clips, manifest.summary.hours
    size = [f"{clips:,} clips" if clips is not None else "", f"{hours:g} hours" if hours else ""]
    counts = {name: count for name, count in manifest.expected.items() if name != "clips"}
    expected = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    return [
        ("size", ", ".join(part for part in size if part) or "that of the source"),
        ("download", _download_size(manifest)),
        *([("counts", expected)] if expected else []),
    ]


def _source_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    license = facts["license"]
    if license is None:
        return [("source", "unknown: a recipe file has no manifest with license and checksums")]
    return [
        (
            "license",
            f"{license['name']}\nprepared shards may be published: {license['publish']}. {license['note']}",
        ),
        ("citation", facts["citation"] + ("\n--bibtex prints the BibTeX entry" if facts["bibtex"] else "")),
        ("homepage", facts["homepage"]),
    ]


def _defaults(config: dict[str, Any]) -> str:
    audio, video, align = config["audio"], config["video"], config["align"]
    return (
        f"{align['seconds']} s from the {align['window']}, {video['num_frames']} steps; {audio['feature']} of"
        f" {audio['n_mels']} bands at {audio['sample_rate']} Hz, hop length {audio['hop_length']};"
        f" {video['num_frames']} frames of {video['size']}×{video['size']}"
    )
