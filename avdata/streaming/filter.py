"""Parse filter conditions on the index, such as `group != '1001' and 'silent_audio' not in flags`."""

from __future__ import annotations

import ast
import itertools
import operator
from collections.abc import Callable, Mapping
from typing import Any, cast

from avdata.errors import SampleFlag, UsageError, did_you_mean, shorten

_COMPARISONS: Mapping[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge,
}  # fmt: skip

MAX_DEPTH = 100
"""Largest depth of the syntax tree of a condition."""

MAX_COMPARISONS = 1000
"""Largest number of comparisons in a condition: pyarrow recurses over them, and its stack is limited."""

_HINT = "For example: group != '1001' and label in (0, 3) and 'silent_audio' not in flags"


def parse_filter(text: str, schema: Any) -> Any:
    """Return a condition as a pyarrow expression.

    A condition compares columns with values, combined by `and`, `or` and `not`: `label < 3`,
    `label_name in ('a', 'b')`, `'silent_audio' in flags`. A missing value equals no value, and is neither
    less nor greater than any.

    >>> import pyarrow as pa
    >>> index = pa.table({"label": [0, 1, 2], "flags": [[], ["silent_audio"], ["no_face"]]})
    >>> index.filter(parse_filter("label in (0, 1) and 'silent_audio' not in flags", index.schema))["label"]
    <pyarrow.lib.ChunkedArray object at ...>
    [
      [
        0
      ]
    ]

    Args:
        text: Condition in Python syntax. It is parsed, never executed.
        schema: Schema of the index.

    Raises:
        UsageError: Invalid syntax, unknown column or flag, or a value of another type than its column.
    """
    try:
        tree = ast.parse(text, mode="eval").body
        if _depth(tree) > MAX_DEPTH:
            raise RecursionError
        if (count := sum(isinstance(node, ast.Compare) for node in ast.walk(tree))) > MAX_COMPARISONS:
            msg = f"{count:,} comparisons, more than {MAX_COMPARISONS:,}; use COLUMN in (VALUE, VALUE)"
            raise ValueError(msg)
        expression = _expression(tree, schema)
        # pyarrow checks types only when it evaluates the expression.
        schema.empty_table().filter(expression)
    except (SyntaxError, ValueError, TypeError, NotImplementedError, OverflowError) as error:
        msg = f"Invalid filter {shorten(text)!r}: {shorten(str(error))}"
        raise UsageError(msg, hint=_HINT) from error
    except (RecursionError, MemoryError) as error:  # of Python's parser, depending on its version
        msg = f"Invalid filter {shorten(text)!r}: too deeply nested"
        raise UsageError(msg, hint=_HINT) from error
    return expression


def _depth(tree: ast.expr) -> int:
    """Return the depth of a syntax tree. It is computed level by level, since deep trees end a recursion."""
    depth, level = 0, [cast("ast.AST", tree)]
    while level:
        depth, level = depth + 1, [child for node in level for child in ast.iter_child_nodes(node)]
    return depth


def _expression(node: ast.expr, schema: Any) -> Any:
    match node:
        case ast.BoolOp(op=operation, values=operands):
            expressions = [_expression(operand, schema) for operand in operands]
            return _combine(operator.and_ if isinstance(operation, ast.And) else operator.or_, expressions)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            return ~_expression(inner, schema)
        case ast.Compare(left=left, ops=[ast.NotIn()], comparators=comparators):
            return ~_expression(ast.Compare(left, [ast.In()], comparators), schema)
        case ast.Compare(left=ast.Name(id=name), ops=[ast.In()], comparators=[values]):
            return _is_in(_field(name, schema), _literal(values))
        case ast.Compare(left=value, ops=[ast.In()], comparators=[ast.Name(id=name)]):
            return _contains(_field(name, schema), _literal(value))
        case ast.Compare(left=ast.Name(id=name), ops=[comparison], comparators=[value]) if (
            type(comparison) in _COMPARISONS
        ):
            return _compare(_field(name, schema), type(comparison), _literal(value))
    msg = f"{ast.unparse(node)!r} is not a comparison of a column with a value"
    raise ValueError(msg)


def _combine(operation: Callable[[Any, Any], Any], expressions: list[Any]) -> Any:
    """Combine expressions in pairs: pyarrow recurses, and a chain of thousands would be as deep."""
    while len(expressions) > 1:
        pairs = zip(expressions[::2], expressions[1::2], strict=False)
        rest = expressions[-1:] if len(expressions) % 2 else []
        expressions = [*itertools.starmap(operation, pairs), *rest]
    return expressions[0]


def _field(name: str, schema: Any) -> Any:
    """Return the pyarrow field of a column."""
    if name not in schema.names:
        msg = f"Unknown column {name!r} in filter."
        raise UsageError(msg, hint=did_you_mean(name, schema.names))
    return schema.field(name)


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        msg = f"{ast.unparse(node)!r} is not a value; text needs quotes"
        raise ValueError(msg) from error


def _is_in(field: Any, values: Any) -> Any:
    """Return whether a column has one of several values."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    _check_not_list(field)
    if not isinstance(values, (tuple, list, set)):
        msg = f"{values!r} after `in` is not a tuple, list or set"
        raise TypeError(msg)
    if None in values:
        raise TypeError(_missing(field))
    try:
        array = pa.array(list(values), field.type)
    except (ValueError, TypeError, OverflowError):
        array = None
    # pyarrow truncates numbers.
    if array is None or array.to_pylist() != list(values):
        msg = f"{values!r} are not all values of column {field.name} ({field.type})"
        raise TypeError(msg)
    return pc.field(field.name).isin(array)


def _contains(field: Any, value: Any) -> Any:
    """Return whether a list column contains a value."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    if not pa.types.is_list(field.type):
        msg = f"column {field.name} is not a list; use {field.name} in ({value!r},)"
        raise TypeError(msg)
    flags = [flag.value for flag in SampleFlag]
    if value not in flags:
        msg = f"Unknown flag {value!r} in filter."
        raise UsageError(msg, hint=did_you_mean(str(value), flags))
    # pyarrow has no function for it. Flags contain no comma.
    joined = pc.binary_join(pc.field(field.name), ",")
    return pc.coalesce(pc.match_substring_regex(joined, f"(^|,){value}(,|$)"), pc.scalar(False))


def _compare(field: Any, comparison: type[ast.cmpop], value: Any) -> Any:
    import pyarrow.compute as pc  # noqa: PLC0415

    _check_not_list(field)
    if value is None:
        raise TypeError(_missing(field))
    # Without a value for missing ones, `not` of a comparison would exclude them as the comparison does.
    met = _COMPARISONS[comparison](pc.field(field.name), value)
    return pc.coalesce(met, pc.scalar(comparison is ast.NotEq))


def _check_not_list(field: Any) -> None:
    import pyarrow as pa  # noqa: PLC0415

    if pa.types.is_list(field.type):
        msg = f"column {field.name} is a list; use 'value' in {field.name}"
        raise TypeError(msg)


def _missing(field: Any) -> str:
    return f"column {field.name} cannot be compared with None"
