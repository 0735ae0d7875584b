"""Arguments, options and command registration shared by `avdata` and `snnergy`."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperCommand


def recipe_choices() -> list[str]:
    """Return the names of all recipes."""
    from avdata.recipe import recipe_names

    return recipe_names()


def split_choices() -> list[str]:
    """Return the split schemes of all recipes; the numbered folds are one entry."""
    from avdata.recipe import load_recipe

    schemes = (scheme for recipe in recipe_choices() for scheme in load_recipe(recipe).splits)
    return list(dict.fromkeys(re.sub(r"^fold:\d+$", "fold:K", scheme) for scheme in schemes))


def _complete_recipe(incomplete: str) -> list[str]:
    return [name for name in recipe_choices() if name.startswith(incomplete)]


def load_choices(reference: str) -> list[str]:
    """Import a table and return its names.

    Args:
        reference: `module:NAME` of a mapping, a sequence or a function that returns one, or
            `module:Model.field` of a settings field that is a `Literal`.
    """
    module, _, path = reference.partition(":")
    name, _, field = path.partition(".")
    table: Any = getattr(import_module(module), name)
    if field:
        return [str(value) for value in get_args(table.model_fields[field].annotation)]
    names = table() if callable(table) else table
    return [str(value) for value in names]


def choice(option: str, reference: str, help: str) -> Any:
    """Return an option that accepts the names of a table.

    The table is imported when the command runs or prints its help, so that `avdata --help` imports none.

    Args:
        option: name of the option, with its dashes.
        reference: see `load_choices`.
        help: help text; `{choices}` stands for the names.
    """

    def check(value: str | list[str] | None) -> str | list[str] | None:
        from avdata.errors import UsageError, did_you_mean

        for text in [value] if isinstance(value, str) else value or []:
            if text not in (names := load_choices(reference)):
                msg = f"unknown value of {option}: {text!r}"
                raise UsageError(msg, hint=did_you_mean(text, names))
        return value

    def complete(incomplete: str) -> list[str]:
        return [name for name in load_choices(reference) if name.startswith(incomplete)]

    text = help.replace("{choices}", f"{{{reference}}}")
    metavar = option.removeprefix("--").replace("-", "_").upper()
    return typer.Option(option, metavar=metavar, help=text, callback=check, autocompletion=complete)


class Command(TyperCommand):
    """Command whose help lists the choices of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Insert the choices into the help texts, then parse."""
        for parameter in self.params:
            text = getattr(parameter, "help", None) or ""
            parameter.help = re.sub(  # type: ignore[attr-defined]
                r"\{([\w.]+:[\w.]+)\}", lambda match: ", ".join(load_choices(match[1])), text
            )
        return super().parse_args(ctx, args)


def add_command(
    app: typer.Typer,
    function: Callable[..., None],
    example: str,
    *,
    name: str | None = None,
    summary: str | None = None,
    hidden: bool = False,
) -> None:
    """Register a function as a command.

    Args:
        app: program or command group.
        function: command; the first line of its docstring is its help.
        example: command line at the end of the help.
        name: name of the command (default: the function's).
        summary: line in the list of commands, where the docstring's first line is too long.
        hidden: leave the command out of the list of commands.
    """
    app.command(name, cls=Command, short_help=summary, epilog=f"Example:  {example}", hidden=hidden)(function)


def create_app(name: str, help: str, example: str) -> typer.Typer:
    """Return a program without commands, with `--version` and `--debug`."""
    app = typer.Typer(
        name=name,
        help=help,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        epilog=f"First steps:  {example}",
    )
    app.callback()(_global_options)
    return app


def _show_version(context: typer.Context, value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"{context.command.name} {version('avdata')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
]


def enable_debug(value: bool) -> None:
    """Make errors show their traceback."""
    if value:
        os.environ["AVDATA_DEBUG"] = "1"


def _global_options(
    version: Version = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    enable_debug(debug)


def output_option(help: str, *, can_be_url: bool = False) -> Any:
    """Return the option `--output`/`-o`, which is refused as a URL unless `can_be_url` is set."""

    def check(value: Path | None) -> Path | None:
        from avdata.storage.paths import local_path

        return None if value is None else local_path(value)

    return typer.Option("--output", "-o", metavar="OUTPUT", help=help, callback=None if can_be_url else check)


def settings_option(example: str) -> Any:
    """Return the option `--set`."""
    return typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help=f"Set one setting, such as {example}; repeat for more (default: those of the preset).",
    )


def parse_task_options(
    texts: Sequence[str], option: str = "--task-option", example: str = "label=json:emotion"
) -> dict[str, str]:
    """Return options by name from `NAME=VALUE`. The last of several values counts.

    >>> parse_task_options(["label=json:emotion", "split=hash"])
    {'label': 'json:emotion', 'split': 'hash'}

    Raises:
        UsageError: a text has no name or no `=`.
    """
    from avdata.errors import UsageError

    options = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            msg = f"Invalid {option} {text!r}: the form is NAME=VALUE."
            raise UsageError(msg, hint=f"Example: {option} {example}")
        options[name] = value
    return options


RecipeName = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="Name of a recipe (see `avdata recipes`), or path of a recipe file.",
        autocompletion=_complete_recipe,
    ),
]

DatasetPath = Annotated[
    str, typer.Argument(metavar="DATASET", help="Directory or URL of a prepared dataset.")
]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Hide progress.")]

Silent = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")]

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan and exit.")]

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="Read settings from a YAML file (default: none)."),
]

SplitBy = Annotated[
    str | None,
    typer.Option(
        "--split-by",
        metavar="SCHEME",
        help="Split by this scheme of the recipe: {avdata.cli.options:split_choices}"
        " (default: the recipe's, see `avdata info`).",
    ),
]

Task = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="Select a task of the recipe synthetic: xor4 or agree (default: XOR)."),
]

Rehash = Annotated[
    bool, typer.Option("--rehash", help="Recompute checksums of all files, also unchanged ones.")
]

ManifestFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Read the manifest of the source files from FILE (default: the bundled one)."
    ),
]

GiveUpAfter = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="Fail files of a host that sent nothing for this time (default: 600).",
    ),
]

OpenPage = Annotated[bool, typer.Option("--open", help="Open the page in a browser.")]
