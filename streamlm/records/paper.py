"""The fields of the records of `snakemake paper`, as JSON has them."""

from typing import NotRequired, TypedDict

from streamlm.records.types import (
    AblationRow,
    Bootstrap,
    Compared,
    Environment,
    Geometry,
    Increase,
    Pair,
    ScoredTokens,
    TextRecord,
    Tokens,
)


class PositionsRow(Geometry):
    """Positions in the text against positions in the cache, in one geometry."""

    yarn: NotRequired[float]
    tokens_seen: list[int]
    difference_nats: list[float]
    difference_interval: list[Pair]
    apart_from: int | None  # the token from which on every interval is above zero
    within_trained: Increase | None
    past_trained: Increase | None


class PositionsRecord(TextRecord):
    """Positions in the text against positions in the cache along one text."""

    tokens: ScoredTokens
    part: int
    rows: list[PositionsRow]


class MethodAlong(Geometry):
    """The mean loss of every stretch of a stream under one method."""

    method: str
    sampled: int | None  # tokens from which it is estimated
    tokens_seen: list[int]
    nll_nats: list[float]
    nll_interval: list[Pair]


class MethodsAlongRecord(TextRecord):
    """Every method along one text."""

    tokens: ScoredTokens
    part: int
    rows: list[MethodAlong]


class LayerMap(TypedDict):
    """The mean attention of one layer over short sentences, and how much of it goes to the first token."""

    layer: int
    logits: list[list[float]]  # of query t over keys 0 .. t, in the mean over heads
    weights: list[list[float]]
    first_token: float  # share of the attention of the last token
    first_token_interval: Pair
    first_token_by_head: list[float]


class AttentionMapsRecord(TextRecord):
    """The mean attention over short sentences of one text."""

    bootstrap: Bootstrap
    sentences: dict[str, int]
    layers: list[LayerMap]
    tokens: Tokens


class LayerShares(TypedDict):
    """The share of attention that the first tokens get in one layer."""

    share: list[float]  # of each of them, in the mean over heads
    share_interval: list[Pair]
    by_head: list[float]  # of all of them together


class SharesAlong(TypedDict):
    """The share of attention on the sinks along a stream, over all layers and heads."""

    tokens_seen: list[int]
    share: list[float]
    share_interval: list[Pair]


class SinkMassRecord(TextRecord):
    """The share of attention that the first tokens of one text get."""

    bootstrap: Bootstrap
    sizes: dict[str, int]
    methods: dict[str, list[LayerShares]]
    along: SharesAlong
    ablation: NotRequired[list[AblationRow]]  # of the number of sinks, on the same text
    tokens: Tokens


class SinkTokensRow(Geometry):
    """One kind of sinks."""

    sinks: str
    prefix: list[int]  # token ids put before the stream
    common: Compared  # paired with the stream's own first tokens


class SinkTokensRecord(TextRecord):
    """One stream with sinks of several kinds."""

    bootstrap: Bootstrap
    first_token: int
    rows: list[SinkTokensRow]
    tokens: ScoredTokens


class Answers(TypedDict):
    """The answers to some questions."""

    asked: int
    exact: list[bool]  # whether greedy decoding writes the value
    chosen: list[bool]  # whether no other candidate is as likely
    exact_share: float
    exact_interval: Pair
    chosen_share: float
    chosen_interval: Pair
    nll_nats: float  # of the value


class AnswersAt(Answers):
    """The answers to the questions of one distance."""

    distance: int  # lines back
    tokens_back: int  # at most


class TaskAnswers(Answers):
    """The answers to the questions of one task."""

    task: str
    tokens: int  # of its longest text


class AskedRow(TypedDict):
    """One method or press at one capacity."""

    method: str  # its name, or a press as it is written
    n_sink: int | None  # None: the press says what it keeps
    window_size: int | None
    capacity: int


class AskedStreams(TypedDict):
    """What the streams of StreamEval contain."""

    lines: int
    every: int
    distances: list[int]
    streams: int
    candidates: int
    seed: int


class StreamEvalRow(AskedRow):
    """StreamEval under one method or press at one capacity."""

    distances: list[AnswersAt]


class StreamEvalRecord(TextRecord):
    """StreamEval under every method and press."""

    bootstrap: Bootstrap
    task: AskedStreams
    texts_sha256: str
    example: str
    rows: list[StreamEvalRow]
    refused: dict[str, str]  # by press, why it cannot work on the model
    tokens: Tokens


class RetrievalRow(AskedRow):
    """All tasks under one method or press at one capacity."""

    tasks: list[TaskAnswers]


class RetrievalRecord(TextRecord):
    """Tasks of retrieval under every method and press."""

    bootstrap: Bootstrap
    task: dict[str, int]
    texts_sha256: str
    examples: dict[str, str]  # by task, its first text
    rows: list[RetrievalRow]
    refused: dict[str, str]  # as of StreamEval
    tokens: Tokens


class TrainingRecord(TypedDict):
    """How a twin was trained."""

    model: str
    twin: str
    seed: int
    parameters: int
    dataset: str
    shape: dict[str, int]
    training: dict[str, float]
    tokens: Tokens  # all bytes of the text; a step reads a few contexts of it
    part: int  # steps in the mean of one point of `nll_nats`
    nll_nats: list[float]  # per byte
    environment: Environment


class TwinLayer(LayerMap):
    """The mean attention of a layer of a twin."""

    zero_sink: float  # share of the attention of the last token that no key gets


class TwinRow(Geometry):
    """A twin with one number of sinks."""

    common: Compared  # paired with the largest number of sinks


class TwinRecord(TextRecord):
    """What a twin loses with fewer sinks, and where it looks."""

    bootstrap: Bootstrap
    twin: str
    seed: int
    training: TrainingRecord
    rows: list[TwinRow]
    contexts: dict[str, int]
    layers: list[TwinLayer]
    tokens: ScoredTokens


class TwinResult(TypedDict):
    """One twin of one seed in the record of all."""

    twin: str
    seed: int
    part: int
    training_nats: list[float]
    rows: list[TwinRow]
    layers: list[TwinLayer]


class TwinsRecord(TextRecord):
    """All twins of all seeds."""

    parameters: int
    training: dict[str, float]
    shape: dict[str, int]
    contexts: dict[str, int]
    tokens: ScoredTokens
    twins: list[TwinResult]
