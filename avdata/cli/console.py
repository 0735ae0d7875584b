"""Output of the commands: text, tables, JSON, progress and errors. The only module that imports rich."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from avdata.cli.options import enable_debug
from avdata.errors import AvdataError, escape_controls
from avdata.progress import Progress


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def print_line(text: str) -> None:
    """Print a line to stdout."""
    _console().print(escape_controls(text), markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print a line to stderr, apart from the result of the command."""
    typer.echo(escape_controls(text), err=True)


def print_error(message: str, hint: str | None) -> None:
    """Print an error and its hint to stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), escape_controls(message)), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint:  ", "bold"), escape_controls(hint)), soft_wrap=True)


def print_page(path: Path, *, as_json: bool, quiet: bool, show: bool) -> None:
    """Print the path of a report page, and open the page in a browser.

    Args:
        path: page.
        as_json: print JSON.
        quiet: print nothing.
        show: open the page.
    """
    size = path.stat().st_size
    if as_json:
        print_json({"page": str(path), "bytes": size})
    elif not quiet:
        print_line(f"Wrote {path} ({format_bytes(size)}, self-contained).")
    if show:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    text = json.dumps(value, ensure_ascii=False, indent=1)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # for example a path that is not UTF-8
        text = json.dumps(value, indent=1)
    # JSON leaves some control characters as they are, and has its own form of their escapes.
    typer.echo("".join(char if escape_controls(char) == char else f"\\u{ord(char):04x}" for char in text))


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, header: bool = True) -> None:
    """Print rows in aligned columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=header, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")  # wraps long names instead of truncating them
    for row in rows:
        table.add_row(*(Text(escape_controls(cell)) for cell in row))
    console = _console()
    with console.capture() as capture:
        console.print(table)
    # rich pads cells with trailing blanks, which disturb copying and comparing.
    typer.echo("\n".join(line.rstrip() for line in capture.get().splitlines()))


def format_bytes(count: float) -> str:
    """Return a number of bytes with a decimal unit.

    >>> format_bytes(1234567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1000
    return f"{count:.3g} TB"


def format_count(value: float) -> str:
    """Return a number with three digits and a decimal prefix.

    >>> format_count(4718592), format_count(768)
    ('4.72 M', '768')
    """
    for unit in ("", " k", " M", " G"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g} T"


def format_duration(seconds: float) -> str:
    """Return seconds as a rounded duration.

    >>> format_duration(600)
    '10 min'
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


Number = Callable[[float], str]

EXIT_INTERRUPTED = 130

RESUME_HINT = "completed work is kept; run the same command again to resume"


@contextmanager
def show_progress(*, quiet: bool, number: Number = "{:,.0f}".format) -> Iterator[Progress]:
    """Show a progress bar on a terminal and one line per tenth elsewhere.

    Args:
        quiet: show nothing.
        number: formats a count, for example of clips or of bytes.
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
        TextColumn("{task.description:8}"), BarColumn(), TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, completed=done, counts="")
            speed = bars.tasks[tasks[stage]].speed or 0.0
            counts = f"{number(done)}/{number(total)} {_rate(speed, number)}/s"
            bars.update(tasks[stage], completed=done, total=total, counts=counts)

        yield show


def _progress_lines(number: Number) -> Progress:
    import time

    starts: dict[str, tuple[float, int]] = {}
    tenths: dict[str, int] = {}

    def show(stage: str, done: int, total: int) -> None:
        tenth = done * 10 // max(total, 1)
        # Work of an earlier run does not count towards the rate of this one.
        start, before = starts.setdefault(stage, (time.monotonic(), done))
        elapsed, count = time.monotonic() - start, done - before
        # Work of less than two seconds prints nothing.
        if elapsed > 2 and count and total > 1 and tenth > tenths.get(stage, 0):
            left = elapsed / count * (total - done)
            rate = _rate(count / elapsed, number)
            typer.echo(
                f"{stage}: {number(done)}/{number(total)}, {rate}/s, {format_duration(left)} left", err=True
            )
        tenths[stage] = max(tenth, tenths.get(stage, 0))

    return show


def _rate(value: float, number: Number) -> str:
    # A step of a large network takes many seconds.
    return number(value) if value >= 10 else f"{value:.2g}"


def command_line(app: typer.Typer) -> Any:
    """Return the command line of an app with `--debug` added to every command."""
    program = get_command(app)
    (debug,) = get_command(_debug_only).params
    commands: list[Any] = [program]
    while commands:
        command = commands.pop()
        commands += getattr(command, "commands", {}).values()
        if not any("--debug" in option.opts for option in command.params):
            command.params.append(debug)
    return program


_debug_only = typer.Typer(add_completion=False)
"""App with one option. Typer creates the option object, whose class differs between its versions."""


@_debug_only.command()
def _debug_callback(
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="Show the traceback of an error.", expose_value=False, callback=enable_debug
        ),
    ] = False,
) -> None:
    """Do nothing."""


class _LogHandler(logging.Handler):
    """Log handler that writes each message once, to the current stderr.

    rich replaces `sys.stderr` while it draws progress bars, so messages appear above them.
    """

    def __init__(self) -> None:
        super().__init__()
        self._printed: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.levelname.lower()}: {escape_controls(self.format(record))}\n"
        if text not in self._printed:
            self._printed.add(text)
            sys.stderr.write(text)


def run_command(app: typer.Typer, resume_hint: str = RESUME_HINT) -> None:
    """Run a command line; print errors without a traceback and exit with their code.

    Args:
        app: program to run.
        resume_hint: hint after Ctrl-C.
    """
    command = command_line(app)
    logging.basicConfig(format="%(message)s", handlers=[_LogHandler()], level=logging.WARNING)
    try:
        code = command(standalone_mode=False)
    except AvdataError as error:
        if os.environ.get("AVDATA_DEBUG"):
            raise
        _exit_with_error(error.exit_code, error.message, error.hint)
    except OSError as error:  # for example a full disk or missing permission
        if os.environ.get("AVDATA_DEBUG"):
            raise
        reason = error.strerror or str(error)
        _exit_with_error(
            1, f"{error.filename}: {reason}" if error.filename else reason, "show the traceback with --debug"
        )
    except Exception as error:
        _exit_with_usage_error(error, resume_hint)
        raise
    if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this without a message
        _exit_with_error(1, "interrupted", resume_hint)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_with_error(code: int, message: str, hint: str | None) -> NoReturn:
    """Print an error, with `--json` also as JSON, and exit."""
    print_error(message, hint)
    if "--json" in sys.argv:
        with suppress(OSError):  # stdout itself may be the full disk
            print_json({"error": message, "hint": hint, "exit_code": code})
    sys.exit(code)


def _exit_with_usage_error(error: Exception, resume_hint: str) -> None:
    """Exit if typer rejected the command line; its error classes differ between versions."""
    kind = type(error).__name__
    if kind == "Abort":
        _exit_with_error(1, "interrupted", resume_hint)
    if not hasattr(error, "format_message"):
        return
    if kind == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    message = error.format_message()
    context = getattr(error, "ctx", None)
    hint = f"{context.command_path} --help" if context else None
    _exit_with_error(getattr(error, "exit_code", 2), message[:1].lower() + message[1:].rstrip("."), hint)
