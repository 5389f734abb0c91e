"""What a batch costs: time and memory of a decoded token, dense, in a `SinkCache`, and after presses."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from streamlm.cache.forward import cache_argument
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import Compute, StreamConfig
from streamlm.measure.decoders import time_steps
from streamlm.measure.latency import describe_times, share_weights
from streamlm.measure.memory import held_bytes
from streamlm.measure.open_model import open_model
from streamlm.measure.progress import progress
from streamlm.measure.scoring import CHUNK, check_ids
from streamlm.presses.adapter import (
    KeptLayer,
    check_budget,
    filled_cache,
    masking,
    refused_presses,
    repeat_rows,
)
from streamlm.presses.grammar import parse_press
from streamlm.presses.prefill import Compress, compressor, prefill_densely
from streamlm.presses.setting import Sizes
from streamlm.records.files import hash_ids
from streamlm.records.types import BatchesRecord, BatchRow

PROTOCOL = (
    "greedy decoding after a context, the same in every row of a batch; methods in turns, every step awaited"
)
WARMUP_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class BatchConfig(Sizes):
    """How much is read and decoded."""

    context_tokens: int  # read before the first token is decoded
    capacity: int  # of them, and of the token itself, that stay where not all do
    timed_tokens: int  # a run
    runs: int


@dataclass
class BatchDecoder:
    """A model with a cache of several rows that reads its own greedy tokens."""

    model: PreTrainedModel
    cache: SinkCache | DynamicCache
    token: Tensor  # (B, 1)
    position: int | None = None  # of the next token; None leaves it to the cache
    around: Callable[[], AbstractContextManager[Any]] = nullcontext  # in force in a step

    def __post_init__(self) -> None:
        self.n_held = None if isinstance(self.cache, SinkCache) else self.cache.layers[0].keys.shape[2]

    def make_ready(self) -> None:
        """Cut a cache that grows back to what it held at first."""
        if self.n_held is not None and (more := self.cache.layers[0].keys.shape[2] - self.n_held) > 0:
            self.cache.crop(-more)

    def step(self) -> None:
        """Decode one token of each row."""
        at = None if self.position is None else torch.full((1, 1), self.position, device=self.token.device)
        with self.around():
            logits = self.model(self.token, position_ids=at, **cache_argument(self.model, self.cache)).logits
        self.token = logits[:, -1].argmax(-1, keepdim=True)


@torch.inference_mode()
def measure_batches(
    *,
    model_dir: Path | str,
    compute: Compute,
    title: str | None = None,
    ids: np.ndarray,
    dataset: str,
    n_sink: int,
    presses: Sequence[str],
    sizes: Sequence[int],
    batch: BatchConfig,
) -> BatchesRecord:
    """Time decoding of batches after a context, dense, streaming and after presses; return the record.

    Args:
        model_dir: a transformers model folder.
        compute: number type, device and threads.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of a text; the first are the context.
        dataset: the true name of the text.
        n_sink: sinks of streaming.
        presses: of kvpress, as `parse_press` reads them; each cuts the context once.
        sizes: rows of a batch.
        batch: how much is read and decoded.

    Raises:
        ValueError: for any mistake in the above.
    """
    if len(ids) < batch.context_tokens:
        raise ValueError(f"a context has {batch.context_tokens} tokens, and the text {len(ids)}")
    with torch.inference_mode(False):  # as of latency, whose models can be compiled
        opened = open_model(model_dir, compute, title=title, prepared=False)
        plain, twin = opened.model, share_weights(opened.model)
    context = ids[: batch.context_tokens]
    check_ids(context, opened.vocab_size)
    refused = refused_presses(plain, presses)
    used = [press for press in presses if press not in refused]
    rows: list[BatchRow] = []
    with prepare(twin) as prepared, progress(len(sizes) * batch.runs, "run") as bar:
        prompt = torch.from_numpy(context[None]).to(plain.device)
        first = _Context(plain, prepared, prompt, n_sink, batch, used)
        for size in sorted(sizes):
            decoders = first.decoders(size)
            for decoder in decoders.values():
                time_steps(decoder, WARMUP_TOKENS)
            times: dict[str, list[list[float]]] = {name: [] for name in decoders}
            for _ in range(batch.runs):
                for name, decoder in decoders.items():
                    times[name].append(time_steps(decoder, batch.timed_tokens))
                bar.update()
            for name, decoder in decoders.items():
                timing = describe_times(times[name])
                rate = 1e3 * size / timing["median"]
                rows.append(
                    {
                        "batch": size,
                        "method": name,
                        "attended_tokens": batch.context_tokens if name == "dense" else batch.capacity,
                        "step_ms": timing,
                        "tokens_per_sec": rate,
                        "kv_bytes": held_bytes(decoder.cache),
                    }
                )
    record: BatchesRecord = {
        "model": opened.title,
        "trained_length": opened.trained_length,
        "dataset": dataset,
        "protocol": PROTOCOL,
        "n_sink": n_sink,
        "decoded": asdict(batch),
        "rows": rows,
        "refused": refused,
        "tokens": {"count": len(context), "sha256": hash_ids(context)},
        "measured_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "environment": opened.environment(__file__),
    }
    return record


class _Context:
    """A context that was read once by every method, to be put into the rows of batches."""

    def __init__(
        self,
        plain: PreTrainedModel,
        prepared: PreTrainedModel,
        context: Tensor,
        n_sink: int,
        batch: BatchConfig,
        presses: Sequence[str],
    ) -> None:
        self.plain, self.prepared, self.context = plain, prepared, context
        self.cfg = StreamConfig(n_sink=n_sink, window_size=batch.capacity - n_sink)
        sinks = self._new_cache()
        for block in context[:, :-1].split(sinks.longest_pass(CHUNK), dim=1):
            prepared.base_model(block, **cache_argument(prepared.base_model, sinks))
        self.sinks = sinks.state_dict()
        cuts = {press: partial(self._compress(press), batch.capacity - 1) for press in presses}
        dense, cut = prefill_densely(plain, context[:, :-1], cuts)
        self.kept = {press: layers for press, (layers, _) in cut.items()}
        self.dense = [KeptLayer(layer.keys, layer.values) for layer in dense.cache.layers]
        for layers in self.kept.values():
            check_budget(layers, batch.capacity - 1)

    def _new_cache(self) -> SinkCache:
        return SinkCache(self.prepared.config, self.cfg.n_sink, self.cfg.window_size)

    def _compress(self, press: str) -> Compress:
        compress = compressor(self.plain, press, 0)
        assert compress is not None
        return compress

    def decoders(self, size: int) -> dict[str, BatchDecoder]:
        """Return a decoder of so many rows by each method; all hold as much in a step, but for dense."""
        token = self.context[:, -1:].expand(size, -1)
        sinks = self._new_cache()
        sinks.load_state_dict(self.sinks)
        sinks.batch_repeat_interleave(size)
        decoders = {
            "dense": self._grown(self.dense, token, None),
            "streaming": BatchDecoder(self.prepared, sinks, token),
        }
        for press, layers in self.kept.items():
            position = None if parse_press(press).rerotates else self.context.shape[1] - 1
            decoders[press] = self._grown(layers, token, position)
        return decoders

    def _grown(self, layers: Sequence[KeptLayer], token: Tensor, position: int | None) -> BatchDecoder:
        repeated = [repeat_rows(layer, len(token)) for layer in layers]
        cache = filled_cache(self.plain, repeated)
        if all(layer.masked is None for layer in layers):
            return BatchDecoder(self.plain, cache, token, position)
        return BatchDecoder(self.plain, cache, token, position, partial(masking, self.plain, cache, repeated))
