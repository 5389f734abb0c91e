"""The fields of the records, as JSON has them."""

import re
from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

Record = Mapping[str, Any]  # of any sort


class Environment(TypedDict):
    """What a measurement was made with."""

    code: list[str]
    python: str
    packages: dict[str, str]
    system: str
    processor: str
    cores: int
    device: str
    dtype: str
    torch_threads: int
    products: NotRequired[str]  # how linear layers are computed; older records do not say
    seed: NotRequired[int]


class Tokens(TypedDict):
    """Which token ids were read."""

    count: int
    sha256: str


class Scores(TypedDict):
    """Mean loss and perplexity of some tokens, with its interval."""

    perplexity: float
    perplexity_interval: list[float]
    nll_nats: float
    interval_blocks: float


class Tail(Scores):
    """The scores of the tokens whose query is `first_token` or later."""

    first_token: int
    scored: int


class Increase(TypedDict):
    """By how much losses exceed others, token by token on the same tokens."""

    nll_difference_nats: float
    nll_difference_interval: list[float]
    ppl_increase_percent: float
    ppl_increase_percent_interval: list[float]


class Outcome(Scores):
    """The scores of one method, its time, and its memory at the end of the stream."""

    runtime_sec: float | None  # None where only a sample of tokens was timed
    tokens_per_sec: float
    kv_tokens: float  # in the mean over the layers
    kv_bytes: int
    after_eviction: Tail | None


class Metrics(TypedDict):
    """What a run costs and saves against its baseline; None without one."""

    speedup: float | None
    compression_ratio: float
    ppl_increase_percent: float | None


class Recomputed(TypedDict):
    """The sample of tokens for which a window was computed from scratch."""

    paired_with: str
    first_token: int
    positions: list[int]
    losses_nats: list[float]
    difference_nats: float | None
    difference_interval: list[float] | None


class RunRecord(TypedDict):
    """One stream scored by one method."""

    model: str
    trained_length: int | None
    dataset: str
    method: str
    n_sink: int
    window_size: int
    capacity: int
    layers: NotRequired[list[Record]]  # what how many layers keep
    storage: str
    protocol: str
    confidence: float
    bootstrap: dict[str, Any]
    baseline: Outcome | None
    streaming: Outcome
    metrics: Metrics
    common: NotRequired[Record | None]
    recomputed: NotRequired[Recomputed]
    tokens: Record
    warnings: list[str]
    environment: Environment


class LongRunRecord(TypedDict):
    """Decoding along one long stream, against young streams beside it."""

    model: str
    dataset: str
    capacity: int
    environment: Environment
    method: str
    n_sink: int
    decoded: dict[str, int]
    tokens_seen: list[int]
    step_ms: Record
    trend_percent_per_1000_tokens: Record
    kv_bytes: int


class ResultRecord(RunRecord):
    """The main comparison of one text: the streaming run, and every method."""

    methods: dict[str, Record]


class AblationRecord(TypedDict):
    """Runs over one setting, each paired with dense on the same tokens."""

    ablation: str
    first_token: int
    model: str
    protocol: str
    confidence: float
    environment: Environment
    baseline: dict[str, Record]
    rows: list[Record]


class LongStreamRecord(TypedDict):
    """Runs along one text far past the trained length."""

    model: str
    trained_length: int | None
    dataset: str
    protocol: str
    confidence: float
    tokens: Record
    environment: Environment
    part: int
    rows: list[Record]


class CompressionRecord(TypedDict):
    """One method after contexts that were cut once, at several budgets."""

    model: str
    bootstrap: dict[str, Any]
    confidence: float
    environment: Environment
    method: str
    n_sink: int
    protocol: str
    contexts: dict[str, int]
    refused: str | None
    texts: list[Record]


class DecodingRecord(TypedDict):
    """Every method token by token, with equal capacity."""

    model: str
    bootstrap: dict[str, Any]
    confidence: float
    environment: Environment
    n_sink: int
    protocol: str
    decoded: dict[str, int]
    texts: list[Record]


class ComparisonRecord(TypedDict):
    """Methods of kvpress and of streamlm on one text, at equal budgets."""

    model: str
    dataset: str
    n_sink: int
    capacity: int
    protocol: str
    contexts: dict[str, int]
    confidence: float
    environment: Record
    dense: Record
    methods: dict[str, Record]


class Timing(TypedDict):
    """Milliseconds of a decoded token: over all tokens, and the medians of the runs."""

    median: float
    p95: float
    runs: list[float]
    spread: list[float]


class LatencyRecord(TypedDict):
    """What a decoded token of one method costs at a full cache."""

    model: str
    trained_length: int | None
    dataset: str
    capacity: int
    tokens: Tokens
    measured_at: str
    environment: Environment
    method: str
    n_sink: int
    window_size: int
    protocol: str
    decoded: dict[str, int]
    step_ms: Timing
    cache_ms: float | None
    compile_sec: NotRequired[float]  # what the step took to compile, once
    kv_bytes: int
    step_peak_bytes: int | None


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


def _fields(value: Any, wanted: Any, path: str) -> Any:
    """Yield the path of every field that a type requires, and whether the value has it."""
    if is_typeddict(wanted):
        if not isinstance(value, Mapping):
            yield path, False
            return
        hints = get_type_hints(wanted)
        for key in sorted(wanted.__required_keys__):
            where = f"{path}.{key}".strip(".")
            if key in value:
                yield from _fields(value[key], hints[key], where)
            else:
                yield where, False
        return
    choices = get_args(wanted) if type(None) in get_args(wanted) else (wanted,)
    if value is None:
        yield path, type(None) in choices
        return
    (choice,) = (part for part in choices if part is not type(None))
    if is_typeddict(choice):
        yield from _fields(value, choice, path)
    elif choice is not Any:
        plain = get_origin(choice) or choice
        yield path, isinstance(value, (int, float) if plain is float else plain)
