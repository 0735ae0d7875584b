"""MkDocs hook that writes the command line reference from the programs, a page for each."""

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

from mkdocs.structure.files import File, Files
from typer.main import get_command

from avdata.cli.options import load_choices

PROGRAMS = ("avdata", "snnergy")


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the full name and the object of each visible command of a program."""
    children = getattr(command, "commands", None)
    if children is None:
        yield name, command
        return
    for part, child in children.items():
        if not child.hidden:
            yield from commands(child, f"{name} {part}")


def page(program: str) -> str:
    """Return the Markdown of a program."""
    root = get_command(import_module(f"{program}.cli").app)
    parts = [f"# {program}", root.help]
    for name, command in commands(root, program):
        example = re.sub(r"^Example:\s+", "", command.epilog or "")
        parts += [f"## {name}", command.help, f"```text\n{example}\n```", _table(command)]
    return "\n\n".join(parts) + "\n"


def _table(command: Any) -> str:
    rows = ["| argument or option | |", "|---|---|"]
    rows += [
        f"| {_name(part)} | {_text(part)} |" for part in command.params if not getattr(part, "hidden", False)
    ]
    return "\n".join(rows)


def _name(parameter: Any) -> str:
    value = parameter.metavar or ""
    if parameter.param_type_name == "argument":
        return f"`{value}`"
    names = " / ".join([", ".join(reversed(parameter.opts)), *parameter.secondary_opts])
    return f"`{names}`" if parameter.is_flag else f"`{names} {value}`"


def _text(parameter: Any) -> str:
    text = re.sub(
        r"\{([\w.]+:[\w.]+)\}", lambda match: ", ".join(load_choices(match[1])), parameter.help or ""
    )
    if parameter.required:
        text += " Required."
    elif parameter.default not in {None, False, ""} and "(default" not in text:
        text += f" Default: `{parameter.default}`."
    return text.replace("|", "\\|")


def on_config(config: Any) -> None:
    """Append the pages to the section `Command line`, and put the version below every page."""
    reference = next(entry["Reference"] for entry in config["nav"] if "Reference" in entry)
    name = "Command line"
    section = next(entry[name] for entry in reference if isinstance(entry, dict) and name in entry)
    section += [f"cli/{program}.md" for program in PROGRAMS]
    config["copyright"] = f"avdata {version('avdata')}, Apache-2.0"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for program in PROGRAMS:
        files.append(File.generated(config, f"cli/{program}.md", content=page(program)))
    return files
