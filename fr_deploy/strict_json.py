"""JSON into frozen dataclasses, and nothing that was not written by them: no unknown, missing or wrong-typed field."""

import json
import math
import types
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from fr_deploy.errors import ModelError

T = TypeVar("T")
_NAMES = {dict: "an object", list: "an array", type(None): "null"}


def to_json(value: Any) -> bytes:
    """A dataclass as indented JSON with a line's end; the same value gives the same bytes.

    Raises:
        ValueError: a number is not finite.
    """
    return (json.dumps(asdict(value), indent=2, allow_nan=False) + "\n").encode()


def of_json(kind: type[T], data: bytes, where: str, *, version: tuple[str, int] | None = None) -> T:
    """Read what `to_json` wrote.

    Args:
        kind: a dataclass of str, int, float, bool, Literal, None, tuple[X, ...], Mapping[str, X] and such dataclasses.
        data: UTF-8.
        where: the file, for messages.
        version: a field and the value it must have, looked at before every other field.

    Raises:
        ModelError: no JSON, another version, a name twice, a number that is not finite, or a field that is unknown,
            missing or of another type; the message names the field.
    """
    try:
        value = json.loads(data, object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{where} is damaged: {error}") from error
    if version is not None and isinstance(value, dict):
        name, expected = version
        if value.get(name, expected) != expected:
            raise ModelError(
                f"{where}: {name} is {value[name]!r}, and this version reads {expected}; write the file again with it"
            )
    return _read(kind, value, where, "")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"a name comes twice among {[name for name, _ in pairs]}")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _read(kind: Any, value: Any, where: str, field: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if is_dataclass(kind):
        return _read_fields(kind, value, where, field)
    if origin in (Union, types.UnionType):
        return _read_one_of(arguments, value, where, field)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool):
            _refuse(where, field, value, " or ".join(repr(a) for a in arguments))
        return value
    if origin is tuple:
        _require(list, value, where, field)
        return tuple(_read(arguments[0], v, where, f"{field}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        _require(dict, value, where, field)
        return {name: _read(arguments[1], v, where, f"{field}.{name}") for name, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    _require(kind, value, where, field)
    if kind is float and not math.isfinite(value):  # 1e999 is JSON
        _refuse(where, field, value, "a finite number")
    return value


def _read_fields(kind: Any, value: Any, where: str, field: str) -> Any:
    _require(dict, value, where, field)
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    prefix = f"{field}." if field else ""
    if missing := [name for name in names if name not in value]:
        raise ModelError(f"{where} has no field {prefix}{missing[0]}")
    if unknown := [name for name in value if name not in names]:
        raise ModelError(
            f"{where} has the field {prefix}{unknown[0]}, which this version does not know"
        )
    return kind(**{n: _read(hints[n], value[n], where, prefix + n) for n in names})


def _read_one_of(kinds: tuple[Any, ...], value: Any, where: str, field: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    left = [kind for kind in kinds if kind is not type(None)]
    if len(left) == 1:
        return _read(left[0], value, where, field)
    if type(value) not in left:
        _refuse(where, field, value, " or ".join(_name(kind) for kind in left))
    return value


def _require(kind: type, value: Any, where: str, field: str) -> None:
    if type(value) is not kind:
        _refuse(where, field, value, _name(kind))


def _refuse(where: str, field: str, value: Any, expected: str) -> NoReturn:
    shown = _NAMES[type(value)] if type(value) in (dict, list, type(None)) else repr(value)[:80]
    raise ModelError(f"{where}: {field or 'it'} is {shown}; expected {expected}")


def _name(kind: Any) -> str:
    return _NAMES.get(kind) or f"{kind.__name__}"
