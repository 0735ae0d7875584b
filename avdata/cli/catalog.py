"""Commands for recipes: `avdata recipes` and `avdata info`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli.console import format_bytes, print_json, print_line, print_table
from avdata.cli.options import Json, RecipeName, Silent

if TYPE_CHECKING:
    from avdata.manifest import Manifest


def recipes(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the names.")] = False,
    as_json: Json = False,
) -> None:
    """List the datasets that have a recipe."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe, recipe_names

    entries = [(load_recipe(name), load_manifest(name)) for name in recipe_names()]
    if as_json:
        print_json(
            [
                {"name": recipe.name, "title": recipe.title, "license": manifest.license.id}
                for recipe, manifest in entries
            ]
        )
        return
    if quiet:
        for recipe, _ in entries:
            print_line(recipe.name)
        return
    rows = [
        (recipe.name, recipe.title, str(len(recipe.labels) or "–"), manifest.license.id)
        for recipe, manifest in entries
    ]
    print_table(("recipe", "dataset", "labels", "license"), rows)


def info(
    recipe_name: RecipeName,
    quiet: Silent = False,
    as_json: Json = False,
) -> None:
    """Show the license, citation, size, splits, labels, defaults and known bad clips of a dataset."""
    from avdata.recipe import load_recipe

    recipe, manifest = load_recipe(recipe_name), _load_manifest(recipe_name)
    facts: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title,
        "homepage": manifest and manifest.homepage,
        "license": manifest and manifest.license.model_dump(),
        "citation": manifest and manifest.citation,
        "bytes": manifest and manifest.bytes,
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
    if as_json:
        print_json(facts)
    elif not quiet:
        print_table(("", ""), _info_rows(facts), header=False)


def _load_manifest(recipe_name: str) -> Manifest | None:
    """Return the manifest of a recipe or of a task's recipe; None for a recipe file."""
    from avdata.manifest import load_manifest
    from avdata.recipe import recipe_names

    if recipe_name.endswith(".py"):
        return None
    return load_manifest(recipe_name if recipe_name in recipe_names() else recipe_name.rpartition("-")[0])


def _info_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    labels = ", ".join(f"{index} {label}" for index, label in enumerate(facts["labels"]))
    splits = "\n".join(
        f"{name}{' (default)' if name == facts['default_split'] else ''}: {text}"
        for name, text in facts["splits"].items()
    )
    options = "\n".join(f"{name}: {text}" for name, text in facts["options"].items())
    known_bad = "\n".join(f"{key}: {reason}" for key, reason in facts["known_bad"].items())
    return [
        ("dataset", facts["title"]),
        *_source_rows(facts),
        ("labels", labels or "those of the source"),
        *([("task options", options)] if options else []),
        ("splits", splits),
        ("known bad", known_bad or "none"),
        ("defaults", _defaults(facts["defaults"])),
    ]


def _source_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    license = facts["license"]
    if license is None:
        return [("source", "unknown: a recipe file has no manifest with license and checksums")]
    return [
        ("homepage", facts["homepage"]),
        (
            "license",
            f"{license['name']}\npublishing prepared shards: {license['publish']}. {license['note']}",
        ),
        ("citation", facts["citation"]),
        ("download", format_bytes(facts["bytes"]) if facts["bytes"] else "unknown"),
        ("expected", ", ".join(f"{name} {count:,}" for name, count in facts["expected"].items())),
    ]


def _defaults(config: dict[str, Any]) -> str:
    audio, video, align = config["audio"], config["video"], config["align"]
    return (
        f"{align['seconds']} s from the {align['window']}, {video['num_frames']} steps; {audio['feature']} of"
        f" {audio['n_mels']} bands at {audio['sample_rate']} Hz, hop length {audio['hop_length']};"
        f" {video['num_frames']} frames of {video['size']}×{video['size']}"
    )
