"""Values of a clip from its text and JSON members in a tar: label, group, split."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from avdata.sources.tar_index import TarMember, read_chunks
from avdata.sources.tar_source import TarSample

MAX_TEXT_BYTES = 16 << 20
"""Size in bytes above which a member is not read as text."""


@dataclass(frozen=True, slots=True)
class ValueField:
    """Where a value is: a text member, or a field of a JSON member.

    Attributes:
        extension: extension of the member, such as `cls`, `txt` or `meta.json`.
        path: names of nested JSON fields; empty for a text member.
    """

    extension: str
    path: tuple[str, ...] = ()


def parse_field(text: str) -> ValueField:
    """Return the field of `EXTENSION`, or of `EXTENSION:FIELD` for a JSON member.

    >>> parse_field("cls"), parse_field("json:meta.emotion").path
    (ValueField(extension='cls', path=()), ('meta', 'emotion'))

    Raises:
        ValueError: a JSON member without a field, or another member with one.
    """
    extension, _, path = text.partition(":")
    is_json = extension.lower().rpartition(".")[2] == "json"
    names = tuple(path.split(".")) if path else ()
    if not extension or is_json != bool(names) or not all(names):
        raise ValueError(text)
    return ValueField(extension.lower(), names)


class MissingValueError(Exception):
    """A value that is missing or malformed.

    Attributes:
        detail: what is missing, in which clip and tar.
        hint: which members or fields exist.
    """

    def __init__(self, detail: str, hint: str | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.hint = hint


@dataclass
class SampleValues:
    """Values of a clip. Each JSON member is parsed once."""

    sample: TarSample
    _documents: dict[str, Any] = field(default_factory=dict)

    def read(self, value_field: ValueField) -> str:
        """Return a value as text: a text, an integer, `true` or `false`; white space becomes one space.

        Raises:
            MissingValueError: the member or field is missing, or has another type.
            SourceError: the tar cannot be read.
        """
        extension = value_field.extension
        if extension not in self.sample.members:
            msg = f"Member {extension} missing in {self._where}"
            raise MissingValueError(msg, self._members_hint())
        member = self.sample.members[extension]
        value = self._find(value_field) if value_field.path else self._text(member)
        if isinstance(value, str):
            value = " ".join(value.split())
        if isinstance(value, bool):
            return str(value).lower()
        if not isinstance(value, str | int) or value == "":
            what = f"Field {'.'.join(value_field.path)} of the {extension}" if value_field.path else extension
            msg = f"{what} is neither text nor an integer in {self._where}"
            raise MissingValueError(msg, f"Its value is {json.dumps(value)[:60]}.")
        return str(value)

    @property
    def _where(self) -> str:
        return f"clip {self.sample.key!r} of {self.sample.tar}"

    def _find(self, value_field: ValueField) -> Any:
        value = self._document(value_field.extension)
        for depth, name in enumerate(value_field.path):
            if not isinstance(value, dict) or name not in value:
                missing = ".".join(value_field.path[: depth + 1])
                detail = f"Field {missing} missing in the {value_field.extension} of {self._where}"
                raise MissingValueError(detail, f"Fields there: {_names(value)}.")
            value = value[name]
        return value

    def _document(self, extension: str) -> Any:
        if extension not in self._documents:
            text = self._text(self.sample.members[extension])
            try:
                self._documents[extension] = json.loads(text)
            except (ValueError, RecursionError) as error:
                msg = f"Invalid JSON in the {extension} of {self._where}"
                raise MissingValueError(msg) from error
        return self._documents[extension]

    def _text(self, member: TarMember) -> str:
        if member.size > MAX_TEXT_BYTES:
            detail = f"Member of {member.size:,} bytes where text is expected in {self._where}"
            raise MissingValueError(detail, f"The limit is {MAX_TEXT_BYTES:,} bytes.")
        try:
            return b"".join(read_chunks(member)).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            msg = f"Text member that is not UTF-8 in {self._where}"
            raise MissingValueError(msg) from error

    def _members_hint(self) -> str:
        """Return a hint that lists the members and the fields of the JSON member."""
        hint = f"Its members: {', '.join(sorted(self.sample.members))}."
        if "json" not in self.sample.members:
            return hint
        try:
            return f"{hint} Fields of the json: {_names(self._document('json'))}."
        except MissingValueError:
            return hint


def _names(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, dict) and value else "none"
