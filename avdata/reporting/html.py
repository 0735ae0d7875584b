"""Rendering of report pages with jinja2, and the formatting of numbers in them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from avdata.errors import encodable
from avdata.visualization.html import web_url


def render(template: str, package: str = "avdata.reporting", **context: Any) -> str:
    """Render a self-contained HTML page.

    Args:
        template: file name of the template.
        package: package whose `templates` folder holds the template. It can extend those of avdata.reporting.
        context: variables of the template. Strings are escaped.
    """
    from jinja2 import (  # noqa: PLC0415
        ChoiceLoader,
        Environment,
        PackageLoader,
        StrictUndefined,
        select_autoescape,
    )
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("avdata.reporting")]),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        size=size, count=count, text=format_value, share=share, percent=percent, duration=duration,
        web_url=web_url,
    )  # fmt: skip
    folder = files("avdata.reporting").joinpath("templates")
    for name in ("style.css", "page.js"):
        # Files of this package are trusted markup.
        content = folder.joinpath(name).read_text(encoding="utf-8")
        environment.globals[name.replace(".", "_")] = Markup(content)  # noqa: S704
    return encodable(environment.get_template(template).render(**context))


def size(value: float) -> str:
    """Format a number of bytes.

    >>> size(1234567)
    '1.23 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def count(value: float) -> str:
    """Format a number with thousands separators.

    >>> count(12345)
    '12,345'
    """
    return f"{value:,.0f}"


def share(value: float) -> str:
    """Format a fraction as a CSS percentage.

    >>> share(0.125)
    '12.5%'
    """
    return f"{round(value * 100, 3):g}%"


def percent(value: float) -> str:
    """Format a fraction as a percentage.

    >>> percent(0.1234), percent(1)
    ('12.3 %', '100.0 %')
    """
    return f"{value * 100:.1f} %"


def duration(seconds: float) -> str:
    """Format a length of time.

    >>> duration(12.34), duration(320), duration(19_000)
    ('12.3 s', '5.33 min', '5.28 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.{2 if seconds < 10 * length else 1}f} {unit}"
    return f"{seconds:.3g} s"


def format_value(value: Any) -> str:
    """Format any value of a row or a setting.

    >>> format_value(0.0250568), format_value(["a", "b"]), format_value(None)
    ('0.025057', 'a, b', '–')
    """
    if value is None or value == []:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float | np.floating):
        return f"{value:.5g}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {format_value(item)}" for name, item in value.items())
    return str(value)
