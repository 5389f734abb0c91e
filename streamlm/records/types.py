"""The fields of the records, as JSON has them."""

from collections.abc import Mapping
from typing import Annotated, Any, NotRequired, TypedDict

Record = Mapping[str, Any]  # of any sort
Pair = Annotated[list[float], 2]  # low and high


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


class ScoredTokens(Tokens):
    """Which token ids were read, and how many were scored."""

    scored: int


class Bootstrap(TypedDict):
    """Settings of the intervals."""

    block: int
    resamples: int
    confidence: float
    seed: int


class Geometry(TypedDict):
    """What one run of a summary keeps."""

    n_sink: int
    window_size: int
    capacity: int


class Scores(TypedDict):
    """Mean loss and perplexity of some tokens, with its interval."""

    perplexity: float
    perplexity_interval: Pair
    nll_nats: float
    interval_blocks: float


class Tail(Scores):
    """The scores of the tokens whose query is `first_token` or later."""

    first_token: int
    scored: int


class Increase(TypedDict):
    """By how much losses exceed others, token by token on the same tokens."""

    nll_difference_nats: float
    nll_difference_interval: Pair
    ppl_increase_percent: float
    ppl_increase_percent_interval: Pair


class Compared(Tail, Increase):
    """Some tokens, alone and paired with dense."""


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


class MethodResult(Geometry):
    """One method of the main comparison."""

    streaming: Outcome
    metrics: Metrics
    common: Compared


class AblationRow(MethodResult):
    """One geometry on one text."""

    dataset: str


class DenseText(Outcome):
    """Dense on one text of an ablation."""

    tokens: ScoredTokens
    common: Tail | None


class LongStreamRow(Geometry):
    """One run along a long text."""

    method: str
    streaming: Outcome
    tokens_seen: list[int]
    running_perplexity: list[float]
    running_interval: list[Pair]
    part_difference_nats: list[float]
    kv_bytes: list[float]
    past_trained_length: Compared | None


class Recomputed(TypedDict):
    """The sample of tokens for which a window was computed from scratch."""

    paired_with: str
    first_token: int
    positions: list[int]
    losses_nats: list[float]
    difference_nats: float | None
    difference_interval: Pair | None


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
    yarn: NotRequired[float]  # how many times the trained length positions were stretched to
    protocol: str
    confidence: float
    bootstrap: Bootstrap
    baseline: Outcome | None
    streaming: Outcome
    metrics: Metrics
    common: NotRequired[Record | None]
    recomputed: NotRequired[Recomputed]
    tokens: ScoredTokens
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

    methods: dict[str, MethodResult]


class AblationRecord(TypedDict):
    """Runs over one setting, each paired with dense on the same tokens."""

    ablation: str
    first_token: int
    model: str
    protocol: str
    confidence: float
    environment: Environment
    baseline: dict[str, DenseText]
    rows: list[AblationRow]


class TextRecord(TypedDict):
    """What a record on one text says first."""

    model: str
    trained_length: int | None
    dataset: str
    protocol: str
    confidence: float
    environment: Environment


class LongStreamRecord(TextRecord):
    """Runs along one text far past the trained length."""

    tokens: ScoredTokens
    part: int
    rows: list[LongStreamRow]


class PressScores(Scores):
    """What one cache gave on one text under kvpress, or beside it."""

    kl_nats: float
    kl_nats_interval: Pair
    top1_agreement: float
    prefill_sec: float
    step_ms: float
    kv_bytes: int


class BudgetScores(PressScores):
    """The same where a context was cut once."""

    capacity: int
    kv_bytes_at_end: int


class CompressionText(TypedDict):
    """One text after contexts that were cut once."""

    dataset: str
    tokens: Tokens
    dense: BudgetScores
    budgets: list[BudgetScores]


class DecodingText(TypedDict):
    """One text, token by token."""

    dataset: str
    tokens: Tokens
    methods: dict[str, PressScores]


class PressResult(TypedDict):
    """One method of a comparison with kvpress."""

    method: str
    refused: str | None
    budgets: list[BudgetScores]


class CompressionRecord(TypedDict):
    """One method after contexts that were cut once, at several budgets."""

    model: str
    bootstrap: Bootstrap
    confidence: float
    environment: Environment
    method: str
    n_sink: int
    protocol: str
    contexts: dict[str, int]
    refused: str | None
    texts: list[CompressionText]


class DecodingRecord(TypedDict):
    """Every method token by token, with equal capacity."""

    model: str
    bootstrap: Bootstrap
    confidence: float
    environment: Environment
    n_sink: int
    protocol: str
    decoded: dict[str, int]
    texts: list[DecodingText]


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
    dense: BudgetScores
    paired_with: list[str]  # the methods that every entry has a difference to
    methods: dict[str, PressResult]


class Timing(TypedDict):
    """Milliseconds of a decoded token: over all tokens, and the medians of the runs."""

    median: float
    p95: float
    runs: list[float]
    spread: Pair


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
    decoded: dict[str, Any]
    step_ms: Timing
    cache_ms: float | None
    compile_sec: NotRequired[float]  # what the step took to compile, once
    kv_bytes: int
    step_peak_bytes: int | None


class BatchRow(TypedDict):
    """What a decoded token of one method costs in a batch."""

    batch: int  # rows
    method: str  # "dense", "streaming", or a press as it is written
    attended_tokens: int  # in a step
    step_ms: Timing
    tokens_per_sec: float  # of all rows
    kv_bytes: int


class BatchesRecord(TypedDict):
    """What batches cost."""

    model: str
    trained_length: int | None
    dataset: str
    protocol: str
    n_sink: int
    decoded: dict[str, int]
    rows: list[BatchRow]
    refused: dict[str, str]  # by press, why it cannot work on the model
    tokens: Tokens
    measured_at: str
    environment: Environment
