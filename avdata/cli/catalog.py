"""Catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from avdata.cli.console import (
    format_bytes,
    print_json,
    print_line,
    print_table,
)
from avdata.cli.options import Json, Name

if TYPE_CHECKING:
    from avdata.manifest import Manifest


def recipes(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the names.")] = False,
    as_json: Json = False,
) -> None:
    """List the datasets that can be prepared."""
    from avdata.manifest import load_manifest
    from avdata.recipe import load_recipe, recipe_names

    found = [(load_recipe(name), load_manifest(name)) for name in recipe_names()]
    if as_json:
        print_json(
            [
                {"name": recipe.name, "title": recipe.title, "license": facts.license.id}
                for recipe, facts in found
            ]
        )
        return
    if quiet:
        for recipe, _ in found:
            print_line(recipe.name)
        return
    rows = [(recipe.name, recipe.title, str(len(recipe.labels)), facts.license.id) for recipe, facts in found]
    print_table(("recipe", "dataset", "labels", "license"), rows)


def info(
    name: Name,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")] = False,
    as_json: Json = False,
) -> None:
    """License, citation, size, splits, labels, defaults and known bad clips of a dataset."""
    from avdata.recipe import load_recipe

    recipe, facts = load_recipe(name), _source_facts(name)
    said: dict[str, Any] = {
        "name": recipe.name,
        "title": recipe.title,
        "homepage": facts and facts.homepage,
        "license": facts and facts.license.model_dump(),
        "citation": facts and facts.citation,
        "bytes": facts and facts.bytes,
        "expected": facts.expected if facts else {},
        "labels": list(recipe.labels),
        "label_orders": {order: list(labels) for order, labels in recipe.label_orders.items()},
        "background": recipe.background,
        "splits": dict(recipe.splits),
        "default_split": recipe.default_split,
        "known_bad": dict(recipe.known_bad),
        "defaults": recipe.configure(None).model_dump(mode="json"),
    }
    if as_json:
        print_json(said)
        return
    if not quiet:
        _show_info(said)


def _source_facts(name: str) -> Manifest | None:
    """The facts of a recipe's source; a task's are its recipe's, and a recipe file has none."""
    from avdata.manifest import load_manifest
    from avdata.recipe import recipe_names

    if name.endswith(".py"):
        return None
    return load_manifest(name if name in recipe_names() else name.rpartition("-")[0])


def _show_info(said: dict[str, Any]) -> None:
    rows = [("dataset", said["title"]), *_source_rows(said)]
    rows += [
        ("labels", ", ".join(f"{index} {label}" for index, label in enumerate(said["labels"]))),
        (
            "splits",
            "\n".join(
                _mark_default(name, text, said["default_split"]) for name, text in said["splits"].items()
            ),
        ),
        ("known bad", "\n".join(f"{key}: {why}" for key, why in said["known_bad"].items()) or "none"),
        ("defaults", _defaults(said["defaults"])),
    ]
    print_table(("", ""), rows, header=False)


def _source_rows(said: dict[str, Any]) -> list[tuple[str, str]]:
    license = said["license"]
    if license is None:
        return [("source", "a recipe file has no manifest: its license and checksums are yours to know")]
    return [
        ("homepage", said["homepage"]),
        (
            "license",
            f"{license['name']}\npublishing prepared shards: {license['publish']}. {license['note']}",
        ),
        ("citation", said["citation"]),
        ("download", format_bytes(said["bytes"]) if said["bytes"] else "unknown"),
        ("expected", ", ".join(f"{name} {count:,}" for name, count in said["expected"].items())),
    ]


def _mark_default(name: str, text: str, default: str) -> str:
    return f"{name}{' (default)' if name == default else ''}: {text}"


def _defaults(config: dict[str, Any]) -> str:
    audio, video, align = config["audio"], config["video"], config["align"]
    return (
        f"{align['seconds']} s from the {align['window']}, {video['num_frames']} steps; {audio['feature']} of"
        f" {audio['n_mels']} bands at {audio['sample_rate']} Hz, hop {audio['hop_length']};"
        f" {video['num_frames']} frames of {video['size']}×{video['size']}"
    )
