"""Whether a record that was read has the fields of its type, at every depth."""

import re
from collections.abc import Iterator, Mapping
from types import UnionType
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict


def check_record(record: Mapping[str, Any], record_type: Any, name: str) -> None:
    """Raise ValueError unless a record has the fields of a type, at every depth.

    Args:
        record: as it was read.
        record_type: one of the TypedDicts here.
        name: of the record, in the message.
    """
    for path, fits in _fields(record, record_type, ""):
        if not fits:
            what = re.sub(r"\B([A-Z])", r" \1", record_type.__name__).lower()  # RunRecord: run record
            raise ValueError(
                f"{name} is not a {what} of this version of streamlm: {path!r} is missing or of another "
                "type; measure again, or use the version that made it"
            )


def _fields(value: Any, wanted: Any, path: str) -> Iterator[tuple[str, bool]]:
    """Yield the path of every field that a type has, and whether the value has it."""
    if get_origin(wanted) in (UnionType, Union):
        if value is None:
            yield path, True
            return
        (wanted,) = (choice for choice in get_args(wanted) if choice is not type(None))
    if get_origin(wanted) is Annotated:
        wanted, length = get_args(wanted)
        yield path, isinstance(value, list) and len(value) == length
    if is_typeddict(wanted):
        yield from _typed_fields(value, wanted, path)
        return
    plain = get_origin(wanted) or wanted
    fits = plain is Any or (
        isinstance(value, (int, float) if plain is float else plain)
        and (plain is bool or not isinstance(value, bool))
    )
    yield path, fits
    if fits and plain is list:
        for i, each in enumerate(value):
            yield from _fields(each, get_args(wanted)[0], f"{path}[{i}]")
    elif fits and plain is dict:
        for key, each in value.items():
            yield from _fields(each, get_args(wanted)[1], f"{path}.{key}")


def _typed_fields(value: Any, wanted: Any, path: str) -> Iterator[tuple[str, bool]]:
    if not isinstance(value, Mapping):
        yield path, False
        return
    for key, hint in sorted(get_type_hints(wanted, include_extras=True).items()):
        where = f"{path}.{key}".strip(".")
        if get_origin(hint) is NotRequired:
            (hint,) = get_args(hint)
        if key in value:
            yield from _fields(value[key], hint, where)
        elif key in wanted.__required_keys__:
            yield where, False
