"""What the commands print: tables, sentences, progress and errors; the only room that knows rich."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from avdata.errors import AvdataError
from avdata.progress import Progress


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def print_line(text: str) -> None:
    """Print a sentence."""
    _console().print(text, markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print a sentence to stderr, beside what the command is asked for."""
    typer.echo(text, err=True)


def print_error(message: str, hint: str | None) -> None:
    """Print an error and its hint to stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint:  ", "bold"), hint), soft_wrap=True)


def _show_version(context: typer.Context, value: bool) -> None:
    if value:
        from importlib.metadata import version

        typer.echo(f"{context.command.name} {version('avdata')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", help="Print the version and stop.", callback=_show_version, is_eager=True)
]


def print_json(value: Any) -> None:
    """Print a value for machines."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # such as a path that is not UTF-8
        text = json.dumps(value, indent=1)
    typer.echo(text)


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, header: bool = True) -> None:
    """Print rows in columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=header, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")  # names are never cut off
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console = _console()
    with console.capture() as held:
        console.print(table)
    # Cells are filled up with blanks, which nobody who copies or compares lines wants.
    typer.echo("\n".join(line.rstrip() for line in held.get().splitlines()))


def format_bytes(count: float) -> str:
    """Bytes for people.

    >>> format_bytes(1234567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"


def format_count(value: float) -> str:
    """A number for people.

    >>> format_count(4718592), format_count(768)
    ('4.72 M', '768')
    """
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def format_duration(seconds: float) -> str:
    """Seconds for people.

    >>> format_duration(600)
    '10 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


Number = Callable[[float], str]

EXIT_INTERRUPTED = 130

RESUME_HINT = "what was finished is kept; to go on, give the same command again"


@contextmanager
def show_progress(*, quiet: bool, number: Number = "{:,.0f}".format) -> Iterator[Progress]:
    """A bar with rate and ETA on a terminal, a line for each tenth elsewhere, nothing when quiet.

    `number` writes a count: of clips, or as a size in bytes.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        yield from _progress_bars(number)
    else:
        yield _progress_lines(number)


def _progress_bars(number: Number) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:8}"), BarColumn(), TextColumn("{task.fields[said]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, completed=done, said="")
            speed = bars.tasks[tasks[stage]].speed or 0.0
            said = f"{number(done)}/{number(total)} {_rate(speed, number)}/s"
            bars.update(tasks[stage], completed=done, total=total, said=said)

        yield show


def _progress_lines(number: Number) -> Progress:
    import time

    began: dict[str, tuple[float, int]] = {}
    tenths: dict[str, int] = {}

    def show(stage: str, done: int, total: int) -> None:
        tenth = done * 10 // max(total, 1)
        # What an earlier run has done says nothing of this one's rate.
        since, before = began.setdefault(stage, (time.monotonic(), done))
        took, made = time.monotonic() - since, done - before
        # Short work stays silent: it is over before anyone would read of it.
        if took > 2 and made and total > 1 and tenth > tenths.get(stage, 0):
            left = took / made * (total - done)
            rate = _rate(made / took, number)
            typer.echo(
                f"{stage}: {number(done)}/{number(total)}, {rate}/s, {format_duration(left)} left", err=True
            )
        tenths[stage] = max(tenth, tenths.get(stage, 0))

    return show


def _rate(value: float, number: Number) -> str:
    # A step of a large network takes many seconds.
    return number(value) if value >= 10 else f"{value:.2g}"


def command_line(app: typer.Typer) -> Any:
    """The command line of an app, each command of which knows `--debug` too."""
    whole = get_command(app)
    (debug,) = get_command(_debug_only).params
    commands: list[Any] = [whole]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        if not any("--debug" in option.opts for option in command.params):
            command.params.append(debug)
    return whole


_debug_only = typer.Typer(add_completion=False)
"""An app of that one option: typer makes the object, whatever its version calls it."""


def _set_debug(value: bool) -> None:
    if value:
        os.environ["AVDATA_DEBUG"] = "1"


@_debug_only.command()
def _debug_callback(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error.", expose_value=False, callback=_set_debug
        ),
    ] = False,
) -> None:
    """Do nothing."""


class _LogHandler(logging.Handler):
    """Says what is logged, once, on what stderr is then: above the bars while they are drawn."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {self.format(record)}\n"
        if text not in self._said:
            self._said.add(text)
            sys.stderr.write(text)


def run_command(app: typer.Typer, resume_hint: str = RESUME_HINT) -> None:
    """Run a command line; errors end in one sentence and their exit code, without a traceback.

    `resume_hint` is said after Ctrl-C.
    """
    command = command_line(app)
    logging.basicConfig(format="%(message)s", handlers=[_LogHandler()], level=logging.WARNING)
    try:
        code = command(standalone_mode=False)
    except AvdataError as error:
        if os.environ.get("AVDATA_DEBUG"):
            raise
        _exit_with_error(error.exit_code, error.message, error.hint)
    except OSError as error:  # the machine's, not ours: no room, no permission
        if os.environ.get("AVDATA_DEBUG"):
            raise
        what = error.strerror or str(error)
        _exit_with_error(
            1, f"{error.filename}: {what}" if error.filename else what, "--debug shows where it happened"
        )
    except Exception as error:
        _exit_with_usage_error(error, resume_hint)
        raise
    if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this and says nothing
        _exit_with_error(1, "stopped", resume_hint)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_with_error(code: int, message: str, hint: str | None) -> NoReturn:
    """End in one sentence; for machines, as what `--json` prints as well."""
    print_error(message, hint)
    if "--json" in sys.argv:
        with suppress(OSError):  # it may be stdout that is full
            print_json({"error": message, "hint": hint, "exit_code": code})
    sys.exit(code)


def _exit_with_usage_error(error: Exception, resume_hint: str) -> None:
    """End where the command line itself is wrong: typer's own errors, whatever library it has them from."""
    kind = type(error).__name__
    if kind == "Abort":
        _exit_with_error(1, "stopped", resume_hint)
    if not hasattr(error, "format_message"):
        return
    if kind == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    message = error.format_message()
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context else None
    _exit_with_error(getattr(error, "exit_code", 2), message[:1].lower() + message[1:].rstrip("."), hint)
