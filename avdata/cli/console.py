"""Output of the commands: text, tables, JSON, progress and errors. The only module that imports rich."""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from avdata.cli.options import enable_debug
from avdata.errors import AvdataError, escape_controls, redact_url
from avdata.interrupts import (
    EXIT_INTERRUPTED,
    EXIT_TERMINATED,
    Terminated,
    exit_code_of_signal,
    handle_interrupts,
)
from avdata.progress import BYTE_STAGES, Progress, format_duration
from avdata.storage.atomic import full_disk_error


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _printable(text: str) -> str:
    """Return a text without control characters and without the secrets of its URLs."""
    return escape_controls(redact_url(text))


def print_line(text: str) -> None:
    """Print a line to stdout."""
    _console().print(_printable(text), markup=False, soft_wrap=True)


def print_note(text: str) -> None:
    """Print a line to stderr, apart from the result of the command."""
    typer.echo(_printable(text), err=True)


def print_error(message: str, hint: str | None) -> None:
    """Print an error and its hint to stderr."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    console.print(Text.assemble(("error: ", "bold red"), _printable(message)), soft_wrap=True)
    if hint:
        console.print(Text.assemble(("hint:  ", "bold"), _printable(hint)), soft_wrap=True)


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
    """Print a value as JSON. It has no NaN and infinity: they are printed as null."""
    value = _without_nan(value)
    text = redact_url(json.dumps(value, ensure_ascii=False, indent=1, allow_nan=False))
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:  # for example a path that is not UTF-8
        text = redact_url(json.dumps(value, indent=1))
    # JSON leaves some control characters as they are, and has its own form of their escapes.
    typer.echo("".join(char if escape_controls(char) == char else f"\\u{ord(char):04x}" for char in text))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, header: bool = True) -> None:
    """Print rows in aligned columns."""
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=header, box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")  # wraps long names instead of truncating them
    for row in rows:
        table.add_row(*(Text(_printable(cell)) for cell in row))
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


Number = Callable[[float], str]

RESUME_HINT = "Completed work is kept; run the same command again to resume"


@contextmanager
def show_progress(*, quiet: bool, number: Number = "{:,.0f}".format) -> Iterator[Progress]:
    """Show a progress bar on a terminal and one line per tenth elsewhere.

    The stages of a download count bytes. The callback has `describe` and `print_line`, see `avdata.progress`.

    Args:
        quiet: show nothing.
        number: formats a count of the other stages, for example of clips.
    """
    if quiet:
        yield lambda stage, done, total: None
    elif sys.stderr.isatty():
        yield from _progress_bars(number)
    else:
        yield _ProgressLines(number)


def _progress_bars(number: Number) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:8}"), BarColumn(), TextColumn("{task.fields[counts]}"),
        TimeRemainingColumn(), TextColumn("{task.fields[detail]}", markup=False),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        yield _ProgressBars(bars, number)


class _ProgressBars:
    """Bars of rich, one per stage, with the detail of a stage after it."""

    def __init__(self, bars: Any, number: Number) -> None:
        self._bars, self._number = bars, number
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        number = _stage_number(stage, self._number)
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total, completed=done, counts="", detail="")
        task = self._tasks[stage]
        speed = self._bars.tasks[task].speed or 0.0
        counts = f"{number(done)}/{number(total)} {_rate(speed, number)}/s"
        self._bars.update(task, completed=done, total=total, counts=counts)

    def describe(self, stage: str, detail: str) -> None:
        if stage in self._tasks:
            self._bars.update(self._tasks[stage], detail=escape_controls(detail))

    def print_line(self, text: str) -> None:
        print_note(text)  # rich moves the bars below it


class _ProgressLines:
    """Lines for logs, one per tenth of a stage."""

    def __init__(self, number: Number) -> None:
        self._number = number
        self._starts: dict[str, tuple[float, int]] = {}
        self._tenths: dict[str, int] = {}
        self._details: dict[str, str] = {}
        self._has_printed = False

    def __call__(self, stage: str, done: int, total: int) -> None:
        number, now = _stage_number(stage, self._number), time.monotonic()
        tenth = done * 10 // max(total, 1)
        # Work of an earlier run does not count towards the rate of this one.
        start, before = self._starts.setdefault(stage, (now, done))
        elapsed, count = now - start, done - before
        # Work of less than two seconds prints nothing.
        is_due = elapsed > 2 and count and total > 1 and tenth > self._tenths.get(stage, 0)
        # Lines of other text already show that the stage proceeds.
        if is_due and not self._has_printed:
            left = elapsed / count * (total - done)
            rate = _rate(count / elapsed, number)
            text = f"{stage}: {number(done)}/{number(total)}, {rate}/s, {format_duration(left)} left"
            detail = self._details.get(stage)
            typer.echo(escape_controls(f"{text} ({detail})" if detail else text), err=True)
        if is_due:
            self._has_printed = False
        self._tenths[stage] = max(tenth, self._tenths.get(stage, 0))

    def describe(self, stage: str, detail: str) -> None:
        self._details[stage] = detail

    def print_line(self, text: str) -> None:
        self._has_printed = True
        print_note(text)


def _stage_number(stage: str, number: Number) -> Number:
    return format_bytes if stage in BYTE_STAGES else number


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
        text = f"{record.levelname.lower()}: {_printable(self.format(record))}\n"
        if text not in self._printed:
            self._printed.add(text)
            sys.stderr.write(text)


def run_command(app: typer.Typer, resume_hints: Mapping[str, str | Callable[[], str]] = {}) -> None:
    """Run a command line; print errors without a traceback and exit with their code.

    Args:
        app: program to run.
        resume_hints: hint after Ctrl-C or SIGTERM, or a function that returns it, by name of the command.
    """
    logging.basicConfig(format="%(message)s", handlers=[_LogHandler()], level=logging.WARNING)
    code: object = 0
    try:
        with handle_interrupts():
            code = command_line(app)(standalone_mode=False)
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt, Terminated) as error:
        _exit_with(error, resume_hints)
    if code == EXIT_INTERRUPTED:  # typer turns Ctrl-C into this without a message
        _exit_with(KeyboardInterrupt(), resume_hints)
    sys.exit(code if isinstance(code, int) else 0)


def _exit_with(error: BaseException, resume_hints: Mapping[str, str | Callable[[], str]]) -> NoReturn:
    """Exit with the code and the message of an exception."""
    code = exit_code_of_signal()
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        code = EXIT_INTERRUPTED
    elif isinstance(error, Terminated):
        code = EXIT_TERMINATED
    if code is not None:
        message = "terminated" if code == EXIT_TERMINATED else "interrupted"
        name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
        resume = resume_hints.get(name, "Nothing to resume: run the command again")
        _exit_with_error(code, message, resume if isinstance(resume, str) else resume())
    if os.environ.get("AVDATA_DEBUG"):
        _exit_with_traceback(error)
    if isinstance(error, AvdataError):
        _exit_with_error(error.exit_code, error.message, error.hint)
    if isinstance(error, OSError):  # for example missing permission
        if full := full_disk_error(error, error.filename or "standard output"):
            hint = full.hint if error.filename else "Redirect the output to a larger disk"
            _exit_with_error(1, full.message, hint)
        reason = error.strerror or str(error)
        message = f"{error.filename}: {reason}" if error.filename else reason
        _exit_with_error(1, message, "show the traceback with --debug")
    _exit_with_usage_error(error)
    _exit_with_traceback(error)


def _exit_with_traceback(error: BaseException) -> NoReturn:
    # Lines of a traceback may contain URLs.
    sys.stderr.write(_printable("".join(traceback.format_exception(error))))
    sys.exit(1)


def _exit_with_error(code: int, message: str, hint: str | None) -> NoReturn:
    """Print an error, with `--json` also as JSON, and exit."""
    print_error(message, hint)
    try:
        if "--json" in sys.argv:
            print_json({"error": message, "hint": hint, "exit_code": code})
        sys.stdout.flush()
    except OSError:  # stdout itself is the full disk: Python would flush again and replace the exit code
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    sys.exit(code)


def _exit_with_usage_error(error: BaseException) -> None:
    """Exit if typer rejected the command line; its error classes differ between versions."""
    if not hasattr(error, "format_message"):
        return
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # type: ignore[attr-defined]
        sys.exit(2)
    message = error.format_message()
    message, suggestion = _one_suggestion(message[:1].lower() + message[1:].rstrip("."))
    context = getattr(error, "ctx", None)
    usage = f"{context.command_path} --help" if context else None
    hint = " ".join(part for part in (suggestion, usage) if part) or None
    _exit_with_error(getattr(error, "exit_code", 2), message, hint)


def _one_suggestion(message: str) -> tuple[str, str | None]:
    """Return a message of typer without its list of similar names, and a hint with the closest one.

    >>> _one_suggestion("no such option: --sorce (Possible options: --set, --source)")
    ('no such option: --sorce', "Did you mean '--source'?")
    """
    found = re.search(r"^(.*?(['\w-]+?)'?)\.? +(?:Did you mean|\(Possible options:) (.+?)[?)]$", message)
    if found is None:
        return message, None
    names = re.findall(r"[\w-]+", found[3])
    (closest,) = difflib.get_close_matches(found[2].strip("'"), names, n=1, cutoff=0)
    return found[1], f"Did you mean {closest!r}?"
