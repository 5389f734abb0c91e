"""Time and memory per decoded token at a full cache, by any method.

All methods of one capacity are decoded in one process and take turns, so that a noisy neighbour meets all and
their times can be compared turn by turn.
"""

import copy
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from streamlm.cache import SinkCache
from streamlm.config import METHODS
from streamlm.memory import measure_rise
from streamlm.models import choose_device, device_name, model_title, parse_dtype, prepare, read_model
from streamlm.perplexity import trained_length, use_threads
from streamlm.progress import progress
from streamlm.provenance import describe_environment
from streamlm.records import Record, hash_ids
from streamlm.scoring import CHUNK, check_ids
from streamlm.stats import trend

PROTOCOL = "greedy decoding at a full cache, methods in turns, every step awaited"
CACHE_STEPS = 3  # untimed steps in which the cache's own share and the memory are measured
LONG_RUN_PARTS = 60  # medians that are kept of a long run
YOUNG_TOKENS = 50  # tokens after which the stream beside a long run begins anew


@dataclass(frozen=True, kw_only=True)
class LatencyConfig:
    """How much is decoded, in tokens.

    Raises:
        ValueError: if a number is too small.
    """

    warmup_tokens: int  # before the first run, not timed
    timed_tokens: int  # a run
    recompute_tokens: int  # a run of `recompute`, whose every token costs a pass over the whole cache
    runs: int

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            least = 2 if name == "runs" else 1
            if value < least:
                raise ValueError(f"{name} must be >= {least}, got {value}")


class Decoder:
    """A model at a full cache that reads its own greedy tokens.

    Args:
        model: prepared for the cache.
        cache: empty.
        ids: (1, capacity) what fills it.
    """

    cache_calls: tuple[str, ...] = ()  # methods of the cache that a step calls

    def __init__(self, model: PreTrainedModel, cache: Cache | None, ids: Tensor) -> None:
        self.model, self.cache, self.capacity = model, cache, ids.shape[1]
        self.token = ids[:, -1:]
        self.fill(ids)

    def fill(self, ids: Tensor) -> None:
        """Read `ids` in blocks."""
        for part in ids.split(CHUNK, dim=1):
            hidden = self.model.base_model(part, past_key_values=self.cache).last_hidden_state
        self.token = self.model.get_output_embeddings()(hidden[:, -1]).argmax(-1, keepdim=True)

    def make_ready(self) -> None:
        """Do what a step needs that is not part of it."""

    def step(self) -> None:
        """Decode one token."""
        logits = self.model(self.token, past_key_values=self.cache).logits  # (1, 1, V)
        self.token = logits[:, -1].argmax(-1, keepdim=True)

    @property
    def kv_bytes(self) -> int:
        """Bytes of the tensors that hold keys and values between two steps."""
        raise NotImplementedError


class Bounded(Decoder):
    """`streaming` and `window`: a `SinkCache` that has seen at least its capacity."""

    cache: SinkCache
    cache_calls = ("begin", "update")

    @property
    def kv_bytes(self) -> int:
        """See `Decoder`."""
        return self.cache.nbytes


class Dense(Decoder):
    """`dense`: a `DynamicCache`, cut back so that every step attends to `capacity` tokens."""

    cache: DynamicCache
    cache_calls = ("update",)

    def make_ready(self) -> None:
        """Forget all but capacity - 1 tokens."""
        self.cache.crop(self.capacity - 1)

    @property
    def kv_bytes(self) -> int:
        """See `Decoder`."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache.layers)


class Recompute(Decoder):
    """`recompute`: no cache; the last `capacity` tokens are encoded anew for every token."""

    def fill(self, ids: Tensor) -> None:
        """Keep `ids`; nothing else is kept between two steps."""
        self.ids = ids

    def step(self) -> None:
        """See `Decoder`."""
        logits = self.model(self.ids, use_cache=False, logits_to_keep=1).logits
        self.ids = torch.cat((self.ids[:, 1:], logits[:, -1].argmax(-1, keepdim=True)), dim=1)

    @property
    def kv_bytes(self) -> int:
        """See `Decoder`."""
        return 0


def make_decoder(
    method: str, n_sink: int, plain: PreTrainedModel, prepared: PreTrainedModel, ids: Tensor
) -> Decoder:
    """Return a decoder of `method` whose cache `ids` (1, capacity) fill.

    Raises:
        ValueError: if the method is unknown, or no window is left beside the sinks.
    """
    capacity = ids.shape[1]
    if method == "dense":
        return Dense(plain, DynamicCache(config=plain.config), ids)
    if method == "recompute":
        return Recompute(plain, None, ids)
    if method in ("window", "streaming"):
        return Bounded(prepared, SinkCache(prepared.config, n_sink, capacity - n_sink), ids)
    raise ValueError(f"unknown method {method!r}; known are {', '.join(METHODS)}")


@torch.inference_mode()
def measure_latency(
    *,
    model_dir: Path | str,
    ids: np.ndarray,
    dataset: str,
    capacity: int,
    sides: Sequence[tuple[str, int]],
    latency: LatencyConfig,
    dtype: str = "float32",
    device: str = "auto",
    torch_threads: int | str = "auto",
    title: str | None = None,
) -> list[Record]:
    """Time decoding by several methods in turns; return a record of each.

    Args:
        model_dir: a transformers model folder.
        ids: (N,) token ids of a text, N >= capacity; the first fill the caches.
        dataset: the true name of the text.
        capacity: tokens that every method holds while it is timed.
        sides: (method, n_sink) of each record; `dense`, `window` and `recompute` have no sinks.
        latency: how much is decoded.
        dtype: name of a torch floating-point type.
        device: name of a torch device; "auto" is CUDA when present.
        torch_threads: for CPU arithmetic; "auto" is every core.
        title: true name of the model, if its folder does not tell it.

    Raises:
        ValueError: for any mistake in the above.
    """
    with _setting(model_dir, ids, dataset, capacity, dtype, device, torch_threads, title) as setting:
        decoders = [
            make_decoder(method, n_sink, setting.plain, setting.prepared, setting.prompt)
            for method, n_sink in sides
        ]
        counts = [
            latency.recompute_tokens if method == "recompute" else latency.timed_tokens for method, _ in sides
        ]
        for decoder, count in zip(decoders, counts, strict=True):
            time_steps(decoder, min(latency.warmup_tokens, count))
        times: list[list[list[float]]] = [[] for _ in sides]  # of side, run, token
        with progress(latency.runs, "run") as bar:
            for _ in range(latency.runs):
                for decoder, count, runs in zip(decoders, counts, times, strict=True):
                    runs.append(time_steps(decoder, count))
                bar.update()
        return [
            {
                **setting.record,
                "method": method,
                "n_sink": n_sink,
                "window_size": capacity - n_sink,
                "protocol": PROTOCOL,
                "decoded": {**asdict(latency), "timed_tokens": count},
                "step_ms": describe_times(runs),
                "cache_ms": measure_cache(decoder),
                "kv_bytes": decoder.kv_bytes,
                "step_peak_bytes": measure_rise(partial(time_steps, decoder, 1), setting.plain.device),
            }
            for (method, n_sink), decoder, count, runs in zip(sides, decoders, counts, times, strict=True)
        ]


@torch.inference_mode()
def measure_long_run(
    *,
    model_dir: Path | str,
    ids: np.ndarray,
    dataset: str,
    capacity: int,
    n_sink: int,
    tokens: int,
    dtype: str = "float32",
    device: str = "auto",
    torch_threads: int | str = "auto",
    title: str | None = None,
) -> Record:
    """Time one long run of `streaming` against young streams; return its record, with the trend of the ratio.

    Between its tokens, those of a second stream are timed, which every `YOUNG_TOKENS` begins anew: whatever
    slows the machine meets both, and what the length of a stream costs is left.

    Args:
        tokens: that are decoded behind a full cache; the others are those of `measure_latency`.
    """
    with _setting(model_dir, ids, dataset, capacity, dtype, device, torch_threads, title) as setting:
        make = partial(make_decoder, "streaming", n_sink, setting.plain, setting.prepared, setting.prompt)
        old, young = make(), make()
        assert isinstance(young.cache, SinkCache)
        begin = young.cache.state_dict()
        step_ms = np.empty((2, tokens))  # of the long stream, of the young ones
        with progress(tokens, "token") as bar:
            for i in range(tokens):
                if i % YOUNG_TOKENS == 0:
                    young.cache = SinkCache(setting.prepared.config, n_sink, capacity - n_sink)
                    young.cache.load_state_dict(begin)
                pair = (old, young) if i % 2 else (young, old)
                times = {decoder: time_steps(decoder, 1)[0] for decoder in pair}
                step_ms[:, i] = times[old], times[young]
                bar.update()
        parts = np.array_split(step_ms, min(LONG_RUN_PARTS, tokens), axis=1)
        seen = capacity + np.cumsum([part.shape[1] for part in parts])
        medians, control = np.transpose([np.median(part, axis=1) for part in parts])
        return {
            **setting.record,
            "method": "streaming",
            "n_sink": n_sink,
            "window_size": capacity - n_sink,
            "protocol": PROTOCOL,
            "decoded": {"timed_tokens": tokens},
            "tokens_seen": seen.tolist(),  # at the end of each part of the run
            "step_ms": {
                "median": float(np.median(step_ms[0])),
                "p95": _p95(step_ms[0]),
                "parts": medians.tolist(),
                "young_parts": control.tolist(),
            },
            "trend_percent_per_1000_tokens": trend(100 * medians / control, seen / 1000),
            "kv_bytes": old.kv_bytes,
        }


def time_steps(decoder: Decoder, count: int) -> list[float]:
    """Return the milliseconds of each of `count` steps, the device having finished each."""
    times = []
    for _ in range(count):
        decoder.make_ready()
        _await(decoder.model.device)
        begin = time.perf_counter()
        decoder.step()
        _await(decoder.model.device)
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def measure_cache(decoder: Decoder) -> float | None:
    """Return the milliseconds of a step that are spent in the cache; None where there is none.

    They are measured in steps of their own: waiting for the device around every call would slow a timed one.
    """
    if decoder.cache is None:
        return None
    spent: list[float] = []
    with _timed_calls(decoder.cache, decoder.cache_calls, decoder.model.device) as calls:
        for _ in range(CACHE_STEPS):
            decoder.make_ready()
            calls.clear()
            decoder.step()
            spent.append(1e3 * sum(calls))
    return float(np.median(spent))


@contextmanager
def _timed_calls(target: Any, names: Sequence[str], device: torch.device) -> Iterator[list[float]]:
    """Collect the seconds of every call of the methods `names` of `target`."""
    calls: list[float] = []

    def timed(method: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            _await(device)
            begin = time.perf_counter()
            result = method(*args, **kwargs)
            _await(device)
            calls.append(time.perf_counter() - begin)
            return result

        return call

    with ExitStack() as undo:
        for name in names:
            setattr(target, name, timed(getattr(target, name)))
            undo.callback(delattr, target, name)
        yield calls


def _await(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def describe_times(runs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return median and 95th percentile over all tokens, and the runs' medians, in ms."""
    everything = [ms for run in runs for ms in run]
    medians = [float(np.median(run)) for run in runs]
    return {
        "median": float(np.median(everything)),
        "p95": _p95(everything),
        "runs": medians,
        "spread": [min(medians), max(medians)],
    }


def _p95(times: Sequence[float] | np.ndarray) -> float:
    return float(np.quantile(times, 0.95))


@dataclass(frozen=True)
class _Setting:
    plain: PreTrainedModel
    prepared: PreTrainedModel  # the same weights
    prompt: Tensor  # (1, capacity)
    record: Record


@contextmanager
def _setting(
    model_dir: Path | str,
    ids: np.ndarray,
    dataset: str,
    capacity: int,
    dtype: str,
    device: str,
    torch_threads: int | str,
    title: str | None,
) -> Iterator[_Setting]:
    """Load the model, plain and prepared, and begin the record."""
    if len(ids) < capacity:
        raise ValueError(f"{len(ids)} tokens do not fill a cache of {capacity}; take a longer text")
    use_threads(torch_threads)
    device = choose_device(device)
    plain = read_model(model_dir, dtype=parse_dtype(dtype), device=device)
    check_ids(ids, plain.config.get_text_config(decoder=True).vocab_size)
    prompt = torch.as_tensor(ids[None, :capacity], dtype=torch.int64, device=plain.device)
    record = {
        "model": model_title(plain) if title is None else title,
        "trained_length": trained_length(plain),
        "dataset": dataset,
        "capacity": capacity,
        "tokens": {"count": capacity, "sha256": hash_ids(ids[:capacity])},
        "measured_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "environment": {
            **describe_environment(__file__),
            "device": device_name(device),
            "dtype": dtype,
            "torch_threads": torch.get_num_threads(),
        },
    }
    with prepare(_twin(plain)) as prepared:
        yield _Setting(plain, prepared, prompt, record)


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """Return a second model on the same weights."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)
