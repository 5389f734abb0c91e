"""Whether the numbers of an experiment are in the ranges that other people's findings suggest."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamlm.experiment.follow import find_inside
from streamlm.records.files import read_json, read_record
from streamlm.records.names import check_name


@dataclass(frozen=True)
class Expectation:
    """A number of a record, and the range that it should be in, ends included."""

    what: str
    value: float
    low: float
    high: float

    @property
    def holds(self) -> bool:
        """Whether the number is in its range."""
        return self.low <= self.value <= self.high

    def __str__(self) -> str:
        verdict = "as expected" if self.holds else "NOT as expected"
        return f"{self.what}: {self.value:.4g}, expected {self.low:g} to {self.high:g}: {verdict}"


def compare_expected(results: Path, expected: Path) -> Iterator[Expectation]:
    """Yield every number that a file has a range for, with the range.

    Args:
        results: the `results_dir` of an experiment.
        expected: JSON, a list of objects with `what`, `record`, `field`, `low` and `high`.

    Raises:
        ValueError: if the file does not say this, or a record or a field is missing.
    """
    for what, record, field, low, high in _read(expected):
        yield Expectation(what, _number(find_inside(results, record), field), low, high)


def _read(expected: Path) -> list[tuple[str, str, str, float, float]]:
    """Return what, record, field, low and high of each entry of a file."""
    try:
        entries = [_entry(one) for one in read_json(expected)]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{expected} does not say what is expected ({error!r}); configs/pythia-70m.expected.json does"
        ) from error
    if not entries:
        raise ValueError(f"{expected} expects nothing; write entries like configs/pythia-70m.expected.json")
    return entries


def _entry(one: Any) -> tuple[str, str, str, float, float]:
    """Return an entry; raise ValueError unless it is a range of a number in a record."""
    what, record, field, low, high = (one[key] for key in ("what", "record", "field", "low", "high"))
    for text in (what, record, field):
        check_name(text, "an entry")
    if not all(type(end) in (int, float) for end in (low, high)) or not -math.inf < low <= high < math.inf:
        raise ValueError(f"{low!r:.40} to {high!r:.40} is no range")
    return what, record, field, float(low), float(high)


def _number(path: Path, field: str) -> float:
    """Return the number under a name such as `metrics.speedup` in a record."""
    value: Any = read_record(path)
    for key in field.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{path} has no number {field}; measure again")
    return float(value)
