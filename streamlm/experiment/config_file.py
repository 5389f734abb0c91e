"""A config file before Snakemake reads it: plain YAML of bounded size, in which nothing is code."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import yaml

from streamlm.characters import without_steering
from streamlm.experiment.faults import KeyPath, key_name, show
from streamlm.limits import CONFIG_BYTES, CONFIG_DEPTH, CONFIG_VALUES, NUMBER_LETTERS

# What Snakemake itself does with a config before any check of it could refuse the key.
EARLY = {
    "__use_yte__": "runs the code in a config; write its values instead",
    "pathvars": "changes the paths of the rules; leave it out",
}


class _PlainLoader(yaml.SafeLoader):
    """YAML without tags, which ask for types of Python, and of bounded size."""

    def fetch_tag(self) -> None:
        problem = "a tag, such as !name, is not read; leave it out"
        raise yaml.scanner.ScannerError(None, None, problem, self.get_mark())

    def compose_scalar_node(self, anchor: dict[str, yaml.Node]) -> yaml.ScalarNode:
        node = super().compose_scalar_node(anchor)
        is_number = node.tag.endswith((":int", ":float"))
        if is_number and len(node.value) > NUMBER_LETTERS:  # turned into digits, it would take long
            problem = f"a number has more than {NUMBER_LETTERS} digits"
            raise yaml.composer.ComposerError(None, None, problem, node.start_mark)
        return node

    def get_single_node(self) -> yaml.Node | None:
        top = super().get_single_node()
        n_values, depth = (0, 0) if top is None else _size(top, {})
        if n_values > CONFIG_VALUES or depth > CONFIG_DEPTH:
            raise yaml.YAMLError(
                f"it has more than {CONFIG_VALUES:,} values, with what its aliases repeat, or more than "
                f"{CONFIG_DEPTH} levels"
            )
        return top


def _size(node: yaml.Node, known: dict[int, tuple[float, float]]) -> tuple[float, float]:
    """Return how many values a node stands for and how deep they go; infinite if it contains itself."""
    if id(node) not in known:
        known[id(node)] = (math.inf, math.inf)
        children = [] if isinstance(node, yaml.ScalarNode) else node.value
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        sizes = [_size(child, known) for child in children]
        deepest = max((depth for _, depth in sizes), default=0)
        known[id(node)] = 1 + sum(n_values for n_values, _ in sizes), 1 + deepest
    return known[id(node)]


def _read(file: Path | str) -> str:
    """Return the text of a file; of JSON, which Snakemake reads as well, with tabs as YAML takes them."""
    text = Path(file).read_text(encoding="utf-8")
    if "\t" in text:
        with suppress(ValueError, RecursionError):
            json.loads(text)
            return text.replace("\t", " ")
    return text


def check_file(file: Path | str) -> None:
    """Raise ValueError if a file exists that is not plain, short YAML with keys at its top."""
    if not Path(file).exists():
        return
    if not Path(file).is_file() or Path(file).stat().st_size > CONFIG_BYTES:
        raise ValueError(f"{file} is not a file of at most {CONFIG_BYTES:,} bytes; write a shorter config")
    try:
        config = yaml.load(_read(file), _PlainLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f" line {mark.line + 1}, column {mark.column + 1}"
        problem = without_steering(str(error.problem))
        raise ValueError(f"{file}{where}: not valid YAML: {problem}; correct it there") from None
    except (yaml.YAMLError, ValueError, RecursionError, OSError) as error:
        reason = without_steering(str(error).replace("\n", " "))
        raise ValueError(f"{file}: cannot be read: {reason}; write short, plain YAML in UTF-8") from None
    if not isinstance(config, dict):
        raise ValueError(
            f"{file}: {show(config)} is not a config; write keys at its top, like the project's config.yaml"
        )
    for key in EARLY.keys() & config.keys():
        raise ValueError(f"{file}: {key} {EARLY[key]}")


def repeated_keys(file: Path | str) -> Iterator[str]:
    """Yield a line for every key that a checked file has twice in a section; only the last one counts."""
    top = yaml.compose(_read(file), _PlainLoader)
    pending: list[tuple[KeyPath, yaml.Node | None]] = [((), top)]
    seen = set()
    while pending:
        path, node = pending.pop(0)
        if not isinstance(node, yaml.MappingNode) or id(node) in seen:
            continue
        seen.add(id(node))  # an alias is the same node again
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            pending.append(((*path, name), value))
            first = lines.setdefault(name, line)
            if first != line:
                full = key_name((*path, name))
                yield f"{full}: written twice in {file}, lines {first} and {line}; keep one of them"
