"""Options."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]

Task = Annotated[str | None, typer.Option(help="Of synthetic: xor4 or agree; xor without.")]

Rehash = Annotated[bool, typer.Option("--rehash", help="Prove unchanged files again.")]


def complete_recipe(incomplete: str) -> list[str]:
    """Recipes that begin so, for the shell's completion."""
    from avdata.recipe import recipe_names

    return [name for name in recipe_names() if name.startswith(incomplete)]


Name = Annotated[
    str,
    typer.Argument(help="A recipe, as `avdata recipes` lists them.", autocompletion=complete_recipe),
]
