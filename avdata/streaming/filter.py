"""Choosing samples by a condition on the index, such as `group != '1001' and pad_fraction < 0.1`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from avdata.errors import UsageError, did_you_mean

_COMPARED: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}  # fmt: skip


def parse_filter(text: str, schema: Any) -> Any:
    """A condition as an expression of pyarrow: comparisons of columns with values, `and`, `or`, `not`, `in`.

    >>> import pyarrow as pa
    >>> index = pa.schema([("label", pa.int32()), ("group", pa.string())])
    >>> str(parse_filter("label in (0, 1) and not group == 'a'", index))[:15]
    '(is_in(label, {'

    Args:
        text: the condition, in Python's notation; nothing in it is executed.
        schema: the columns of the index.

    Raises:
        UsageError: it is no such condition, names a column that is not there, or compares one with a value of
            another kind.
    """
    try:
        made = _expression(ast.parse(text, mode="eval").body, schema.names)
        # Whether a value fits its column shows only when they are compared.
        schema.empty_table().filter(made)
    except (SyntaxError, ValueError, TypeError, NotImplementedError, OverflowError) as error:
        msg = f"the filter {text!r} cannot be understood ({error})"
        hint = "write for example: group != '1001' and label in (0, 3); a label's name is its label_name"
        raise UsageError(msg, hint=hint) from error
    return made


def _expression(node: ast.expr, columns: list[str]) -> Any:
    import pyarrow.compute as pc  # noqa: PLC0415

    match node:
        case ast.BoolOp(op=joined, values=parts):
            made = [_expression(part, columns) for part in parts]
            for other in made[1:]:
                made[0] = made[0] & other if isinstance(joined, ast.And) else made[0] | other
            return made[0]
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return ~_expression(inner, columns)
        case ast.Compare(left=ast.Name(id=name), ops=[compared], comparators=[value]) if (
            type(compared) in _COMPARED
        ):
            if name not in columns:
                msg = f"the index has no column {name!r}"
                raise UsageError(msg, hint=did_you_mean(name, columns))
            literal = ast.literal_eval(value)
            return _COMPARED[type(compared)](
                pc.field(name), list(literal) if isinstance(literal, tuple) else literal
            )
    msg = f"{ast.unparse(node)!r} is not a comparison of a column with a value"
    raise ValueError(msg)
