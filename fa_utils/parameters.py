"""Typed, commented, checked notebook parameters.

A notebook declares what can be changed in its cell tagged ``parameters``, one line each::

    eps: float = 10 / 255  # L-infinity budget; in (0, 1]
    method: str = "fim"  # base attack; one of ffm, fim
    n_pairs: int | None = None  # pairs attacked; in [1, 3000]

papermill accepts unknown names without a word, and turns some values into strings. So names, types and ranges are
checked here: before a run by ``fa run``, and inside the notebook by ``check_parameters(globals())``.
"""

import ast
import difflib
import io
import math
import operator
import re
import tokenize
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import nbformat


class ParameterError(ValueError):
    """A parameter that is unknown, of the wrong type, or outside what its declaration allows."""


@dataclass(frozen=True)
class Parameter:
    """One line of a ``parameters`` cell.

    ``bounds`` is ``(low, high, low_open, high_open)``; ``choices`` the accepted values. Both are ``None`` where the
    comment sets none, and both apply to each element of a list.
    """

    name: str
    type: object
    default: object
    text: str = ""
    bounds: tuple[float, float, bool, bool] | None = None
    choices: tuple | None = None

    @property
    def type_name(self) -> str:
        return self.type.__name__ if isinstance(self.type, type) and not typing.get_args(self.type) else str(self.type)

    @property
    def accepts(self) -> str:
        """What this parameter takes, in words: ``float in (0, 1]``."""
        if self.choices is not None:
            return f"{self.type_name}, one of " + ", ".join(map(str, self.choices))
        if self.bounds is not None:
            low, high, low_open, high_open = self.bounds
            return f"{self.type_name} in {'[('[low_open]}{low:g}, {high:g}{'])'[high_open]}"
        return self.type_name


# ---------------------------------------------------------------------------------------------------- declarations

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
              ast.UAdd: operator.pos, ast.USub: operator.neg}
_TYPES = {"int": int, "float": float, "str": str, "bool": bool}
_RANGE = re.compile(r"in\s*([\[(])\s*([^,]+),\s*([^\])]+)([\])])")


def _constant(node: ast.expr):
    """The value of a constant, a list of constants, or arithmetic on constants such as ``10 / 255``."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in ("inf", "nan"):
        return float(node.id)
    if isinstance(node, ast.List):
        return [_constant(item) for item in node.elts]
    if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_constant(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        return _OPERATORS[type(node.op)](_constant(node.left), _constant(node.right))
    raise ValueError(f"{ast.unparse(node)} is not a constant")


def _evaluate(text: str):
    return _constant(ast.parse(text.strip(), mode="eval").body)


def _type(node: ast.expr):
    if isinstance(node, ast.Name) and node.id in _TYPES:
        return _TYPES[node.id]
    if isinstance(node, ast.Constant) and node.value is None:
        return types.NoneType
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _type(node.left) | _type(node.right)
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "list":
        return list[_type(node.slice)]
    raise ParameterError(f"the type {ast.unparse(node)} of a parameter is not understood; int, float, str, bool, "
                         "None, list[...] and unions of them with | are")


def _comments(source: str) -> dict[int, str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0]: token.string.lstrip("# ").rstrip() for token in tokens if token.type == tokenize.COMMENT}


def _limits(name: str, comment: str) -> tuple[str, tuple | None, tuple | None]:
    """The description, the bounds and the choices that a comment gives, its parts separated by semicolons."""
    text, bounds, choices = [], None, None
    for part in (part.strip() for part in comment.split(";")):
        if match := _RANGE.fullmatch(part):
            left, low, high, right = match.groups()
            try:
                bounds = (float(_evaluate(low)), float(_evaluate(high)), left == "(", right == ")")
            except (ValueError, TypeError, SyntaxError) as error:
                raise ParameterError(f"parameter {name}: the range {part!r} is not understood") from error
        elif part.startswith("one of "):
            choices = tuple(item.strip().strip("'\"") for item in part.removeprefix("one of ").split(","))
        else:
            text.append(part)
    return "; ".join(text), bounds, choices


def parse_parameters(source: str) -> dict[str, Parameter]:
    """Read the declarations ``name: type = default  # text; range`` at the top level of a cell's source.

    Parameters
    ----------
    source : str
        Python source. Statements that are not annotated assignments with a value are passed over.

    Returns
    -------
    dict
        Parameters by name, in order.

    Raises
    ------
    ParameterError
        A type, range or default that is not understood, or a default that its own declaration does not allow.
    """
    comments = _comments(source)
    found = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.AnnAssign) or node.value is None or not isinstance(node.target, ast.Name):
            continue
        name = node.target.id
        try:
            default = _constant(node.value)
        except ValueError as error:
            raise ParameterError(f"parameter {name}: the default must be a constant: {error}") from error
        text, bounds, choices = _limits(name, comments.get(node.end_lineno, ""))
        declared = _type(node.annotation)
        if choices is not None:
            choices = tuple(_from_choice(choice, declared) for choice in choices)
        parameter = Parameter(name, declared, default, text, bounds, choices)
        coerce(parameter, default)
        found[name] = parameter
    return found


def _from_choice(text: str, declared):
    """A choice is written without quotes, so it is text unless the declared type holds numbers alone."""
    held = members(declared)
    return text if str in held else _evaluate(text)


def members(declared) -> set:
    """The plain types in a declared type: ``{list, int}`` gives way to ``{int}``, a union to its parts."""
    arguments = typing.get_args(declared)
    return set().union(*map(members, arguments)) if arguments else {declared}


def read_parameters(notebook) -> dict[str, Parameter]:
    """Read the declarations of a notebook, given as a path or as a notebook node; none where no cell is tagged."""
    if isinstance(notebook, (str, Path)):
        notebook = nbformat.read(notebook, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return parse_parameters(cell.source)
    return {}


# ---------------------------------------------------------------------------------------------------------- values


def _from_text(text: str, declared):
    """The value that ``text`` (a word of a command line) means for a type, or ``ValueError``."""
    if declared is str:
        return text
    if declared is types.NoneType:
        if text.lower() in ("none", "null", ""):
            return None
        raise ValueError(text)
    if declared is bool:
        return {"true": True, "false": False}[text.lower()]
    if typing.get_origin(declared) is list:
        inner = text.strip().removeprefix("[").removesuffix("]")
        return [item.strip().strip("'\"") for item in inner.split(",") if item.strip()]
    return _evaluate(text)


def _convert(value, declared):
    """``value`` as ``declared`` (an int is accepted for a float, text is read), or ``ValueError``."""
    if typing.get_origin(declared) in (types.UnionType, typing.Union):
        members = sorted(typing.get_args(declared), key=lambda member: member is str)  # text last: it takes anything
        for member in members:
            try:
                return _convert(value, member)
            except ValueError:
                continue
        raise ValueError(value)
    if isinstance(value, str) and declared is not str:
        try:
            value = _from_text(value, declared)
        except (KeyError, TypeError, SyntaxError, ZeroDivisionError) as error:
            raise ValueError(value) from error
    if typing.get_origin(declared) is list:
        if not isinstance(value, (list, tuple)):
            raise ValueError(value)
        return [_convert(item, typing.get_args(declared)[0]) for item in value]
    if declared is float and type(value) is int:
        value = float(value)
    if type(value) is not declared:
        raise ValueError(value)
    return value


def coerce(parameter: Parameter, value):
    """The value that ``value`` means for ``parameter``.

    Text is read as the declared type (``"false"``, ``"1e-3"``, ``"10/255"``, ``"a,b"``), an int is accepted for a
    float; nothing else is converted.

    Raises
    ------
    ParameterError
        The value is of another type, not a number (NaN), outside the range or not among the choices.
    """
    try:
        converted = _convert(value, parameter.type)
    except ValueError:
        raise ParameterError(f"parameter {parameter.name} = {value!r} ({type(value).__name__}): "
                             f"accepted is {parameter.accepts}") from None
    for item in converted if isinstance(converted, list) else [converted]:
        _check_limits(parameter, item)
    return converted


def _check_limits(parameter: Parameter, value) -> None:
    if value is None:
        return
    message = f"parameter {parameter.name} = {value!r}: accepted is {parameter.accepts}"
    if isinstance(value, float) and math.isnan(value):
        raise ParameterError(message)
    if parameter.choices is not None and value not in parameter.choices:
        raise ParameterError(message + _nearest(str(value), map(str, parameter.choices)))
    if parameter.bounds is not None and isinstance(value, (int, float)):
        low, high, low_open, high_open = parameter.bounds
        above = value > low if low_open else value >= low
        below = value < high if high_open else value <= high
        if not (above and below):
            raise ParameterError(message)


def _nearest(name: str, names) -> str:
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def validate(parameters: Mapping[str, Parameter], given: Mapping[str, object]) -> dict[str, object]:
    """The given values, each checked against its declaration and converted to its type.

    Raises
    ------
    ParameterError
        A name that is not declared (the message offers the nearest), or a value that ``coerce`` refuses.
    """
    for name in given:
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise ParameterError(f"unknown parameter {name}{_nearest(name, parameters)} (parameters: {known})")
    return {name: coerce(parameters[name], value) for name, value in given.items()}


# ------------------------------------------------------------------------------------------------ inside a notebook


def _history(namespace: Mapping) -> list[str]:
    if "In" not in namespace:
        raise RuntimeError("check_parameters(globals()) reads the notebook's own cells: call it in a notebook, "
                           "in the cell after the one tagged parameters")
    return list(namespace["In"])


def _annotated_names(source: str) -> set[str]:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return set()
    return {node.target.id for node in body
            if isinstance(node, ast.AnnAssign) and node.value is not None and isinstance(node.target, ast.Name)}


def _declaring_cell(cells: list[str]) -> int:
    """Index of the parameters cell: the first cell with annotated assignments, in its last run."""
    annotated = [_annotated_names(cell) for cell in cells]
    first = next((names for names in annotated if names), None)
    if first is None:
        raise ParameterError("no parameters are declared: run the cell tagged parameters first")
    return max(index for index, names in enumerate(annotated) if names & first)


def _injected_names(source: str) -> list[str]:
    return [node.targets[0].id for node in ast.parse(source).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)]


def check_parameters(namespace: dict) -> dict[str, object]:
    """Check a running notebook's parameters; write their converted values back.

    Call it as ``check_parameters(globals())`` in the cell after the one tagged ``parameters``. It finds the
    declarations in IPython's history, and the cell ``# Parameters`` that papermill put after them.

    Returns
    -------
    dict
        Every parameter's value by name.

    Raises
    ------
    ParameterError
        As :func:`validate`; also when a declared parameter was deleted.
    """
    cells = _history(namespace)
    declared_at = _declaring_cell(cells)
    parameters = parse_parameters(cells[declared_at])
    injected = [cell for cell in cells[declared_at + 1:] if cell.lstrip().startswith("# Parameters")]
    for cell in injected:
        validate(parameters, {name: namespace[name] for name in _injected_names(cell)})
    missing = [name for name in parameters if name not in namespace]
    if missing:
        raise ParameterError(f"parameter {missing[0]} was declared but is no longer set: run the parameters cell")
    values = validate(parameters, {name: namespace[name] for name in parameters})
    namespace.update(values)
    return values


def profile_settings(profile: str, table: Mapping[str, Mapping], overrides: Mapping | None = None) -> SimpleNamespace:
    """The settings of a profile, with each override that is not ``None`` in its place.

    Parameters
    ----------
    profile : str
        A key of ``table``.
    table : mapping
        For each profile its settings; every profile must set the same names.
    overrides : mapping, optional
        Values by setting name; ``None`` means the profile's own value.

    Raises
    ------
    ParameterError
        An unknown profile or setting (the nearest is offered), or profiles that differ in what they set.
    """
    if profile not in table:
        raise ParameterError(f"unknown profile {profile!r}{_nearest(profile, table)} (profiles: {', '.join(table)})")
    settings = dict(table[profile])
    for other, values in table.items():
        if uneven := set(values) ^ set(settings):
            raise ParameterError(f"profiles {profile} and {other} do not both set {', '.join(sorted(uneven))}")
    for name, value in (overrides or {}).items():
        if name not in settings:
            raise ParameterError(f"unknown setting {name}{_nearest(name, settings)} (settings: {', '.join(settings)})")
        if value is not None:
            settings[name] = value
    return SimpleNamespace(profile=profile, **settings)
