"""The page of settings names what the code has: every row of its tables is made here from the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from avdata.config.schema import Config
from avdata.errors import QuarantineReason, SampleFlag
from snnergy.fusion.registry import FUSIONS
from snnergy.models.config import ModelConfig
from snnergy.training.config import AugmentConfig, TrainConfig

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def said(value: object) -> str:
    return "–" if value is None else f"`{value}`".replace("True", "true").replace("False", "false")


def choices(field: FieldInfo) -> str:
    held = [one for one in get_args(field.annotation) if isinstance(one, str)]
    return ", ".join(f"`{one}`" for one in held)


def row(name: str, field: FieldInfo) -> str:
    about = "; ".join(part for part in (choices(field), field.description) if part)
    value = field.get_default(call_default_factory=True)
    return f"| `{name}` | {said(value)} | {about} |"


def settings_rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        held = field.annotation
        if isinstance(held, type) and issubclass(held, BaseModel):
            yield from settings_rows(held, f"{prefix}{name}.")
        else:
            yield row(prefix + name, field)


def settings() -> Iterator[str]:
    yield from ("| setting | default | |", "|---|---|---|")
    yield from settings_rows(Config)


def training() -> Iterator[str]:
    yield from ("| setting | default | |", "|---|---|---|")
    shown = TrainConfig()
    for name, field in TrainConfig.model_fields.items():
        if name == "augment":
            for inner, its in AugmentConfig.model_fields.items():
                yield f"| `augment.{inner}` | {said(getattr(shown.augment, inner))} | {its.description} |"
        else:
            yield row(name, field)


def model() -> Iterator[str]:
    yield from ("| option | default | |", "|---|---|---|")
    told = dict(re.findall(r"^\s+(\w+): (.+)$", inspect.getdoc(ModelConfig) or "", re.M))
    for field in fields(ModelConfig):
        default: Any = "by preset" if field.default is MISSING else said(field.default)
        yield f"| `{field.name}` | {default} | {told[field.name]} |"


def words(kind: type[QuarantineReason] | type[SampleFlag]) -> Iterator[str]:
    yield from (f"| {'flag' if kind is SampleFlag else 'reason'} | |", "|---|---|")
    yield from (f"| `{one.value}` | {one.description} |" for one in kind)


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    "settings": settings,
    "reasons": lambda: words(QuarantineReason),
    "flags": lambda: words(SampleFlag),
    "training": training,
    "model": model,
}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_of_settings_has_a_row_for_each_that_the_code_has(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert "\n".join(TABLES[name]()) in text


def test_the_page_of_settings_names_each_fusion() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| `fusion` | how")[2]
    assert set(re.findall(r"`(\w+)`", table)) == set(FUSIONS)
