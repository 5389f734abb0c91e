"""What a config's schema and files tell is wrong with it, in lines for people: key, value, rule, remedy."""

import math
import re
import reprlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import yaml

Schema = Mapping[str, Any]
Place = tuple[Hashable, ...]  # keys from the top of a config down


class Fault(NamedTuple):
    """One line, and where in the config something cannot be relied on because of it, if anywhere."""

    line: str
    unsound: Place | None


def _required(validator: Any, names: Any, section: Any, schema: Any) -> Iterator[Any]:
    """Find missing keys, each where it should be."""
    if isinstance(section, dict):
        for name in names:
            if name not in section:
                yield jsonschema.ValidationError("", path=[name])


def _additional(validator: Any, rule: Any, section: Any, schema: Any) -> Iterator[Any]:
    """Find unknown keys, each where it is."""
    if rule is not False:
        usual = jsonschema.Draft202012Validator.VALIDATORS["additionalProperties"]
        yield from usual(validator, rule, section, schema)
    elif isinstance(section, dict):
        for name in section.keys() - schema["properties"].keys():
            yield jsonschema.ValidationError("", path=[name], instance=section[name])


def _names(validator: Any, rule: Any, section: Any, schema: Any) -> Iterator[Any]:
    """Find bad names of sections, each where it is."""
    if isinstance(section, dict):
        for name in section:
            yield from validator.descend(name, rule, path=name)


Validator: Any = jsonschema.validators.extend(
    jsonschema.Draft202012Validator,
    {"required": _required, "additionalProperties": _additional, "propertyNames": _names},
    type_checker=jsonschema.Draft202012Validator.TYPE_CHECKER.redefine_many(
        {
            # JSON takes 4.0 for an integer; in a label or a size it is not.
            "integer": lambda _, value: type(value) is int,
            # YAML's .nan and .inf would pass limits.
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
    """Return everything that a schema finds wrong with a config."""
    errors = list(Validator(schema).iter_errors(config))
    places = {tuple(error.absolute_path) for error in errors}
    mistyped = {tuple(error.absolute_path) for error in errors if error.validator == "type"}
    faults = []
    for error in errors:
        place, rules = tuple(error.absolute_path), set(error.absolute_schema_path)
        # What else a source takes depends on its kind: where that is wrong, it cannot be judged.
        is_kind = place[-1:] == ("kind",)
        unjudged = not is_kind and any((*place[:depth], "kind") in places for depth in range(len(place)))
        if unjudged and not rules.isdisjoint({"then", "else"}):
            continue
        # Each kind's own rules name the key once more, without its values.
        if is_kind and error.validator == "required" and not error.schema["properties"]["kind"]:
            continue
        unsound: Place | None = place[:-1] if is_kind else place
        if "propertyNames" in rules or (error.validator in ("enum", "uniqueItems") and unsound == place):
            unsound = None  # a bad name, or one name twice, makes nothing else wrong
        if error.validator == "type" or place not in mistyped:
            faults.append(Fault(_line(error, schema), unsound))
    return faults


def without(value: Any, places: Collection[Place], here: Place = ()) -> Any:
    """Return a config without what stands at some places, nor lists that nothing is left of."""
    if here in places:
        return {}
    if not any(place[: len(here)] == here for place in places):
        return value
    if isinstance(value, list):
        parts = [((*here, i), part) for i, part in enumerate(value)]
        return [without(part, places, place) for place, part in parts if place not in places]
    if not isinstance(value, dict):
        return value
    kept = {
        key: without(part, places, (*here, key)) for key, part in value.items() if (*here, key) not in places
    }
    return {key: part for key, part in kept.items() if part != [] or value[key] == []}


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
        case "maximum":
            return f"{key}: {value} is too large; use {error.validator_value} or less"
        case "type":
            wanted = describe(error.schema, schema) + _quotes(error)
            return f"{key}: {value} is of the wrong type; use {wanted}"
    rule = _RULES.get(error.validator, "is not allowed")
    meant = did_you_mean(error.instance, error.schema.get("enum", ()))
    return f"{key}: {value} {rule}; {meant}use {describe(error.schema, schema)}"


def _quotes(error: Any) -> str:
    """Return the end of a remedy where quotes, or their lack, made the type."""
    wanted = error.validator_value
    if isinstance(error.instance, str):
        if "integer" in wanted or "number" in wanted:
            return ", in digits without quotes (YAML reads 1e3 as text)"
        return ", without quotes" if wanted == "boolean" else ""
    return ", in quotes" if wanted == "string" and isinstance(error.instance, (bool, int, float)) else ""


def describe(rule: Schema, schema: Schema) -> str:
    """Return in words what a part of a schema takes."""
    if "$ref" in rule:
        rule = schema["$defs"][rule["$ref"].rpartition("/")[2]]
    if "description" in rule:
        return str(rule["description"])
    if "const" in rule:
        return show(rule["const"])
    if "enum" in rule:
        return f"one of {', '.join(map(str, rule['enum']))}"
    if "oneOf" in rule:
        return " or ".join(describe(part, schema) for part in rule["oneOf"])
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
    """Return the beginning of a remedy if one of the known names is much like the value, else nothing."""
    close = get_close_matches(str(value)[:99], [str(name) for name in known], n=1)
    return f"did you mean {close[0]}? " if close else ""


def key_name(place: Iterable[Hashable]) -> str:
    """Return a place as it is named in a report: corpora.pg19.source."""
    plain = (part if re.fullmatch(r"[\w.-]+", str(part)) else show(part) for part in place)
    return ".".join(map(str, plain)) or "config"


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def show(value: Any) -> str:
    """Return a value as it is named in a report: short, on one line, and in YAML's words."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _SHORT.repr(value).replace("\n", " ")


def check_syntax(file: Path | str) -> None:
    """Raise ValueError unless a file, if there is one, is YAML with keys at its top."""
    if not Path(file).exists():
        return
    try:
        config = yaml.load(Path(file).read_text(encoding="utf-8"), yaml.FullLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{file}{where}: no valid YAML: {error.problem}; correct it there") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{file}: it cannot be read: {reason}; write it as YAML in UTF-8") from None
    if not isinstance(config, dict):
        raise ValueError(
            f"{file}: {show(config)} is no config; write keys at its top, as in config.yaml of the project"
        )


def repeated_keys(file: Path | str) -> Iterator[str]:
    """Yield a fault for every key written twice in one section of a YAML file: the later would win."""
    if not Path(file).is_file():
        return
    try:
        top = yaml.compose(Path(file).read_text(encoding="utf-8"))
    except yaml.YAMLError:  # JSON with tabs, which Snakemake reads
        return
    pending: list[tuple[Place, Any]] = [((), top)]
    seen = set()
    while pending:
        place, node = pending.pop(0)
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias is the same node again
        lines: dict[Hashable, int] = {}
        for key, value in node.value:
            pending.append(((*place, str(key.value)), value))
            line = key.start_mark.line + 1
            if str(key.value) in lines:
                name = key_name((*place, str(key.value)))
                first = lines[str(key.value)]
                yield f"{name}: written twice in {file}, lines {first} and {line}; keep one of them"
            lines.setdefault(str(key.value), line)
