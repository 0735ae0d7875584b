"""Write the tables of docs/settings.md from the models of the settings: python docs/settings_tables.py."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from avdata.config.schema import Config
from avdata.errors import QuarantineReason, SampleFlag
from snnergy.models.config import ModelConfig
from snnergy.training.config import AugmentConfig, TrainConfig

PAGE = Path(__file__).parent / "settings.md"


def _value(value: object) -> str:
    return "–" if value is None else f"`{value}`".replace("True", "true").replace("False", "false")


def _row(name: str, field: FieldInfo) -> str:
    choices = ", ".join(f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str))
    text = "; ".join(part for part in (choices, field.description) if part)
    return f"| `{name}` | {_value(field.get_default(call_default_factory=True))} | {text} |"


def _rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _rows(kind, f"{prefix}{name}.")
        else:
            yield _row(prefix + name, field)


def settings() -> Iterator[str]:
    """Yield the lines of the settings of a preparation."""
    yield from ("| setting | default | |", "|---|---|---|")
    yield from _rows(Config)


def training() -> Iterator[str]:
    """Yield the lines of the settings of a training; `augment` has the defaults of the training preset."""
    yield from ("| setting | default | |", "|---|---|---|")
    defaults = TrainConfig()
    for name, field in TrainConfig.model_fields.items():
        if name != "augment":
            yield _row(name, field)
            continue
        for inner, part in AugmentConfig.model_fields.items():
            yield f"| `augment.{inner}` | {_value(getattr(defaults.augment, inner))} | {part.description} |"


def model() -> Iterator[str]:
    """Yield the lines of the settings of a network, described in the docstring of its class."""
    yield from ("| option | default | |", "|---|---|---|")
    texts = dict(re.findall(r"^\s+(\w+): (.+)$", inspect.getdoc(ModelConfig) or "", re.M))
    for field in fields(ModelConfig):
        default: Any = "by preset" if field.default is MISSING else _value(field.default)
        yield f"| `{field.name}` | {default} | {texts[field.name]} |"


def _codes(kind: type[QuarantineReason] | type[SampleFlag]) -> Iterator[str]:
    yield from (f"| {'flag' if kind is SampleFlag else 'reason'} | |", "|---|---|")
    yield from (f"| `{code.value}` | {code.description} |" for code in kind)


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "reasons": lambda: _codes(QuarantineReason),
    "flags": lambda: _codes(SampleFlag),
    "training": training,
    "model": model,
}


def regenerate(text: str) -> str:
    """Return the page with the tables that the code defines."""
    for name, lines in TABLES.items():
        begin, end = f"<!-- table: {name} -->\n", "<!-- end of table -->\n"
        before, _, rest = text.partition(begin)
        text = "".join((before, begin, "\n", "\n".join(lines()), "\n\n", end, rest.partition(end)[2]))
    return text


if __name__ == "__main__":
    PAGE.write_text(regenerate(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
