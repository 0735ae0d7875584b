"""Parse filter conditions on the index, such as `group != '1001' and pad_fraction < 0.1`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

from avdata.errors import UsageError, did_you_mean

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
    ast.NotIn: lambda column, values: ~column.isin(values),
}  # fmt: skip


def parse_filter(text: str, schema: Any) -> Any:
    """Return a condition as a pyarrow expression.

    A condition compares columns with values, combined by `and`, `or` and `not`.

    >>> import pyarrow as pa
    >>> index = pa.schema([("label", pa.int32()), ("group", pa.string())])
    >>> str(parse_filter("label in (0, 1) and not group == 'a'", index))[:15]
    '(is_in(label, {'

    Args:
        text: Condition in Python syntax. It is parsed, never executed.
        schema: Schema of the index.

    Raises:
        UsageError: Invalid syntax, unknown column, or a value of another type than its column.
    """
    try:
        expression = _expression(ast.parse(text, mode="eval").body, schema.names)
        # pyarrow checks types only when it evaluates the expression.
        schema.empty_table().filter(expression)
    except (SyntaxError, ValueError, TypeError, NotImplementedError, OverflowError) as error:
        msg = f"Invalid filter {text!r}: {error}"
        hint = "for example: group != '1001' and label in (0, 3); column label_name holds label names"
        raise UsageError(msg, hint=hint) from error
    return expression


def _expression(node: ast.expr, columns: list[str]) -> Any:
    import pyarrow.compute as pc  # noqa: PLC0415

    match node:
        case ast.BoolOp(op=operation, values=operands):
            expressions = [_expression(operand, columns) for operand in operands]
            return reduce(operator.and_ if isinstance(operation, ast.And) else operator.or_, expressions)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return ~_expression(inner, columns)
        case ast.Compare(left=ast.Name(id=name), ops=[comparison], comparators=[value]) if (
            type(comparison) in _COMPARISONS
        ):
            if name not in columns:
                msg = f"Unknown column {name!r} in filter."
                raise UsageError(msg, hint=did_you_mean(name, columns))
            literal = ast.literal_eval(value)
            return _COMPARISONS[type(comparison)](
                pc.field(name), list(literal) if isinstance(literal, tuple) else literal
            )
    msg = f"{ast.unparse(node)!r} is not a comparison of a column with a value"
    raise ValueError(msg)
