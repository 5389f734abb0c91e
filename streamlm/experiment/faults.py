"""The faults that a schema finds in a config, one line each: key, value, rule, remedy."""

import math
import re
import reprlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

import jsonschema

Schema = Mapping[str, Any]
KeyPath = tuple[Hashable, ...]  # keys from the top of a config down


class Fault(NamedTuple):
    """A fault of a config."""

    line: str  # of the report
    unsound: KeyPath | None  # what other checks must not read because of it


def _required(validator: Any, names: Any, section: Any, schema: Any) -> Iterator[Any]:
    """Report each missing key under its own path."""
    if isinstance(section, dict):
        for name in names:
            if name not in section:
                yield jsonschema.ValidationError("", path=[name])


def _additional(validator: Any, rule: Any, section: Any, schema: Any) -> Iterator[Any]:
    """Report each unknown key under its own path."""
    if rule is not False:
        usual = jsonschema.Draft202012Validator.VALIDATORS["additionalProperties"]
        yield from usual(validator, rule, section, schema)
    elif isinstance(section, dict):
        for name in section.keys() - schema["properties"].keys():
            yield jsonschema.ValidationError("", path=[name], instance=section[name])


def _names(validator: Any, rule: Any, section: Any, schema: Any) -> Iterator[Any]:
    """Report each bad name of a section under its own path."""
    if isinstance(section, dict):
        for name in section:
            yield from validator.descend(name, rule, path=name)


Validator: Any = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"required": _required, "additionalProperties": _additional, "propertyNames": _names},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            # In JSON 4.0 is an integer; in a label or a size it is not.
            "integer": lambda _, value: type(value) is int,
            # YAML's .nan and .inf are not caught by limits.
            "number": lambda _, value: type(value) is int or (type(value) is float and math.isfinite(value)),
        }
    ),
)

_RULES = {
    "enum": "is not known",
    "minimum": "is too small",
    "exclusiveMinimum": "is too small",
    "exclusiveMaximum": "is too large",
    "maxLength": "is too long",
    "minItems": "is empty",
    "minProperties": "is empty",
}
_TYPES = {
    "array": "a list",
    "boolean": "true or false",
    "integer": "an integer",
    "null": "null",
    "number": "a number",
    "object": "a section",
    "string": "text",
}


def schema_faults(config: Any, schema: Schema) -> list[Fault]:
    """Return every fault that a schema finds in a config."""
    errors = [(tuple(error.absolute_path), error) for error in Validator(schema).iter_errors(config)]
    faulty = {path for path, _ in errors}
    mistyped = {path for path, error in errors if error.validator == "type"}
    faults = []
    for path, error in errors:
        rules, is_kind = set(error.absolute_schema_path), path[-1:] == ("kind",)
        # The other keys of a source depend on its kind: if the kind is wrong, they cannot be judged.
        has_bad_kind = not is_kind and any((*path[:depth], "kind") in faulty for depth in range(len(path)))
        if has_bad_kind and not rules.isdisjoint({"then", "else"}):
            continue
        # The rules of each kind require `kind` once more, without its values.
        if is_kind and error.validator == "required" and not error.schema["properties"]["kind"]:
            continue
        unsound: KeyPath | None = path[:-1] if is_kind else path
        if "propertyNames" in rules or (error.validator in ("enum", "uniqueItems") and unsound == path):
            unsound = None  # a bad or repeated name makes nothing else wrong
        if error.validator == "type" or path not in mistyped:
            faults.append(Fault(_line(error, schema), unsound))
    return faults


def without(value: Any, paths: Collection[KeyPath], here: KeyPath = ()) -> Any:
    """Return a config without the values at some paths, and without lists that become empty."""
    if here in paths:
        return {}
    if not any(path[: len(here)] == here for path in paths):
        return value
    if isinstance(value, list):
        items = [((*here, i), item) for i, item in enumerate(value)]
        return [without(item, paths, path) for path, item in items if path not in paths]
    if not isinstance(value, dict):
        return value
    kept = {
        key: without(item, paths, (*here, key)) for key, item in value.items() if (*here, key) not in paths
    }
    return {key: item for key, item in kept.items() if item != [] or value[key] == []}


def _line(error: Any, schema: Schema) -> str:
    key, value = key_name(error.absolute_path), show(error.instance)
    match error.validator:
        case "required":
            name = error.absolute_path[-1]
            return f"{key}: {name!r} is missing; add {describe(error.schema['properties'][name], schema)}"
        case "additionalProperties":
            known = sorted(error.schema["properties"])
            meant = did_you_mean(error.absolute_path[-1], known)
            return f"{key}: {value} is under an unknown key; {meant}known are {', '.join(known)}"
        case "uniqueItems":
            twice = [show(item) for i, item in enumerate(error.instance) if item in error.instance[:i]]
            return f"{key}: {value} names {', '.join(twice)} twice; name each once"
        case "maxItems" | "maxProperties":
            return f"{key}: {value} has {len(error.instance):,} items; use {error.validator_value} or fewer"
        case "maximum":
            return f"{key}: {value} is too large; use {error.validator_value} or less"
        case "type":
            wanted = describe(error.schema, schema) + _quotes(error)
            return f"{key}: {value} is of the wrong type; use {wanted}"
    rule = _RULES.get(error.validator, "is not allowed")
    meant = did_you_mean(error.instance, error.schema.get("enum", ()))
    return f"{key}: {value} {rule}; {meant}use {describe(error.schema, schema)}"


def _quotes(error: Any) -> str:
    """Return what a remedy says about quotes, if they or their lack caused the wrong type."""
    wanted = error.validator_value
    if isinstance(error.instance, str):
        if "integer" in wanted or "number" in wanted:
            return ", in digits without quotes (YAML reads 1e3 as text)"
        return ", without quotes" if wanted == "boolean" else ""
    return ", in quotes" if wanted == "string" and isinstance(error.instance, (bool, int, float)) else ""


def describe(rule: Schema, schema: Schema) -> str:
    """Return in words what a rule of a schema allows."""
    if "$ref" in rule:
        rule = schema["$defs"][rule["$ref"].rpartition("/")[2]]
    if "description" in rule:
        return str(rule["description"])
    if "const" in rule:
        return show(rule["const"])
    if "enum" in rule:
        return f"one of {', '.join(map(str, rule['enum']))}"
    if "oneOf" in rule:
        return " or ".join(describe(option, schema) for option in rule["oneOf"])
    types = [rule["type"]] if isinstance(rule["type"], str) else rule["type"]
    return " or ".join(_TYPES[name] + _limits(name, rule, schema) for name in types)


def _limits(name: str, rule: Schema, schema: Schema) -> str:
    match name:
        case "array":
            return f" whose every item is {describe(rule['items'], schema)}"
        case "object" if "properties" in rule:
            return f" with {', '.join(rule['properties'])}"
        case "integer" if "minimum" in rule:
            return f" of {rule['minimum']} or more"
        case "number" if {"exclusiveMinimum", "exclusiveMaximum"} <= rule.keys():
            return f" between {rule['exclusiveMinimum']} and {rule['exclusiveMaximum']}"
    return ""


def did_you_mean(value: Any, known: Iterable[Any]) -> str:
    """Return "did you mean NAME? " if a known name is similar to the value, else nothing."""
    close = get_close_matches(str(value)[:99], [str(name) for name in known], n=1)
    return f"did you mean {close[0]}? " if close else ""


def key_name(path: Iterable[Hashable]) -> str:
    """Return a key as a report names it: corpora.pg19.source."""
    plain = (key if re.fullmatch(r"[\w.-]+", str(key)) else show(key) for key in path)
    return ".".join(map(str, plain)) or "config"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def show(value: Any) -> str:
    """Return a value as a report shows it: short, on one line, in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _SHORT.repr(value).replace("\n", " ")
