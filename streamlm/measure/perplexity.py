"""The record of one stream scored by one method."""

import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from streamlm.cache.attention import QUERY_BLOCK
from streamlm.measure.checkpoint import Checkpoint
from streamlm.measure.device import choose_device, describe_compute, parse_dtype, use_threads
from streamlm.config import StreamConfig, method_geometry
from streamlm.cache.models import load_model, model_title, trained_length
from streamlm.measure.progress import progress
from streamlm.records import Record, hash_ids
from streamlm.cache.ring import parse_storage
from streamlm.measure.scoring import CHUNK, draw_positions, recompute_losses, score_stream
from streamlm.stats import BootstrapConfig, Correction, after_token, describe_losses, sample_difference

KEEP_EVERY = 8 * CHUNK  # tokens between two checkpoints


@dataclass(frozen=True)
class Outcome:
    """What one scoring gave: losses of every token, time, and memory at the end of the stream."""

    losses: np.ndarray  # (N-1,) nats
    runtime_sec: float | None  # None where only a sample of tokens was timed
    tokens_per_sec: float
    kv_tokens: int
    kv_bytes: int


def measure_perplexity(
    *,
    model_dir: Path | str,
    ids: np.ndarray,
    dataset: str,
    method: str,
    n_sink: int,
    window_size: int,
    positions: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    torch_threads: int | str = "auto",
    storage: str | None = None,
    bootstrap: BootstrapConfig,
    title: str | None = None,
    checkpoint: Path | str | None = None,
) -> tuple[Record, np.ndarray]:
    """Score a stream by one method; return its record and its losses, (N-1,) float32 in nats.

    `recompute` costs a pass over the whole cache for every token, so it is estimated: the losses that are
    returned are those of `streaming`, and the record holds the re-encoded ones at `positions` seeded places
    past the first eviction. Its perplexities are of the former plus the mean difference at these places.

    Args:
        model_dir: a transformers model folder.
        ids: (N,) token ids of the stream.
        dataset: the true name of the text.
        method: "dense", "window" or "recompute" (same capacity, no sinks), or "streaming".
        n_sink: first tokens kept.
        window_size: most recent tokens kept, the current one included.
        positions: tokens that `recompute` encodes their context for.
        dtype: name of a torch floating-point type.
        device: name of a torch device; "auto" is CUDA when present.
        torch_threads: for CPU arithmetic; "auto" is every core.
        storage: name of what the window is held as, if not as `dtype`; sinks are.
        bootstrap: settings of the intervals.
        title: true name of the model, if its folder does not tell it.
        checkpoint: file to keep the state of a long run in, and to go on from after a kill. It outlives
            the scoring: `discard_checkpoint` it once the losses are written.

    Raises:
        ValueError: for any mistake in the above; if a loss is not finite.
    """
    cfg = method_geometry(method, n_sink, window_size, len(ids))
    scored = StreamConfig(n_sink=n_sink, window_size=window_size) if method == "recompute" else cfg
    if method == "recompute" and positions < 1:
        raise ValueError(f"recompute is estimated at positions >= 1, got {positions}")
    narrow = None if storage is None else parse_storage(storage)
    use_threads(torch_threads)
    torch.manual_seed(bootstrap.seed)
    device = choose_device(device)
    model = load_model(model_dir, dtype=parse_dtype(dtype), device=device)
    environment = describe_compute(__file__, device=device, dtype=dtype) | {"seed": bootstrap.seed}
    state = None
    if checkpoint is not None:
        identity = {
            "ids": hash_ids(ids),
            "geometry": [scored.n_sink, scored.window_size],
            "storage": storage,
            "model": _fingerprint(Path(model_dir)),
            "environment": environment,
        }
        state = Checkpoint(Path(checkpoint), identity, every=KEEP_EVERY)
    outcome = _score(model, ids, scored, narrow, state)
    _check_finite(outcome.losses, model_dir, dtype)
    correction: Correction | None = None
    recomputed: dict[str, Any] = {}
    if method == "recompute":
        places = draw_positions(len(ids), cfg.capacity, positions, bootstrap.seed)
        outcome, again = _recompute(model, ids, places, cfg.capacity, outcome)
        _check_finite(again, model_dir, dtype)
        correction, recomputed = _describe_sample(outcome.losses, again, places, scored, bootstrap)
    caveats = notes(model, cfg)
    for line in caveats:
        warnings.warn(line, stacklevel=2)
    losses = outcome.losses.astype(np.float32)
    record = {
        "model": model_title(model) if title is None else title,
        "trained_length": trained_length(model),
        "dataset": dataset,
        "method": method,
        "n_sink": cfg.n_sink,
        "window_size": cfg.window_size,
        "capacity": cfg.capacity,
        "storage": storage or dtype,
        "protocol": f"scored in blocks: passes of {CHUNK} tokens, {QUERY_BLOCK} queries at a time",
        "confidence": bootstrap.confidence,
        "bootstrap": asdict(bootstrap),
        "baseline": None,
        "streaming": {
            **describe_losses(losses, bootstrap, correction=correction),
            "runtime_sec": outcome.runtime_sec,
            "tokens_per_sec": outcome.tokens_per_sec,
            "kv_tokens": outcome.kv_tokens,
            "kv_bytes": outcome.kv_bytes,
            "after_eviction": after_token(losses, cfg.capacity, bootstrap, correction),
        },
        "metrics": {
            "speedup": None,
            "compression_ratio": 1 - outcome.kv_tokens / len(losses),
            "ppl_increase_percent": None,
        },
        **recomputed,
        "tokens": {"count": len(ids), "scored": len(losses), "sha256": hash_ids(ids)},
        "warnings": caveats,
        "environment": environment,
    }
    return record, losses


def _score(
    model: PreTrainedModel,
    ids: np.ndarray,
    cfg: StreamConfig,
    storage: torch.dtype | None,
    state: Checkpoint | None,
) -> Outcome:
    """Score the whole stream under a progress bar: tokens, rate, perplexity so far, time left."""
    with progress(len(ids) - 1, "token") as bar:

        def show(losses: np.ndarray) -> None:
            if not bar.n and state is not None:
                bar.initial = bar.n = state.restored  # or the rate would count what an earlier run did
            if not bar.disable:
                bar.set_postfix(perplexity=f"{np.exp(losses.mean(dtype=np.float64)):.2f}", refresh=False)
            bar.update(len(losses) - bar.n)

        begin = time.perf_counter()
        losses, cache = score_stream(model, ids, cfg, storage=storage, checkpoint=state, on_progress=show)
        seconds = time.perf_counter() - begin if state is None else state.elapsed()
    return Outcome(losses, seconds, len(losses) / seconds, cache.n_held, cache.nbytes)


def _recompute(
    model: PreTrainedModel, ids: np.ndarray, places: np.ndarray, capacity: int, streaming: Outcome
) -> tuple[Outcome, np.ndarray]:
    """Encode the contexts of `places` from scratch; return what that costs, and the losses (M,)."""
    if not len(places):  # nothing is evicted: all methods are the same
        return streaming, np.empty(0)
    with progress(len(places), "position") as bar:
        begin = time.perf_counter()
        losses, cache = recompute_losses(
            model, ids, places, capacity, on_progress=lambda n: bar.update(n - bar.n)
        )
        rate = len(places) / (time.perf_counter() - begin)
    return Outcome(streaming.losses, None, rate, cache.n_held, cache.nbytes), losses


def _describe_sample(
    streaming: np.ndarray,
    again: np.ndarray,
    places: np.ndarray,
    cfg: StreamConfig,
    bootstrap: BootstrapConfig,
) -> tuple[Correction | None, dict[str, Any]]:
    """Return the correction of the streaming losses, and the record's section `recomputed`."""
    section: dict[str, Any] = {
        "paired_with": f"{cfg.n_sink}+{cfg.window_size}",
        "first_token": cfg.capacity,
        "positions": places.tolist(),
        "losses_nats": again.tolist(),
        "difference_nats": None,
        "difference_interval": None,
    }
    if not len(places):
        return None, {"recomputed": section}
    spacing = (len(streaming) - cfg.capacity) / len(places)
    found = sample_difference(again.astype(np.float64) - streaming[places], spacing, bootstrap)
    section |= {"difference_nats": found.mean, "difference_interval": [found.low, found.high]}
    return Correction(cfg.capacity, found), {"recomputed": section}


def _check_finite(losses: np.ndarray, model_dir: Path | str, dtype: str) -> None:
    if not np.isfinite(losses).all():
        raise ValueError(
            f"the loss of token {int(np.argmax(~np.isfinite(losses))) + 1} is not finite: the weights in "
            f"{model_dir} are damaged, or {dtype} is too narrow for this model"
        )


def _fingerprint(model_dir: Path) -> list[list[str | int]]:
    """Return name, size and time of every file of a model folder."""
    files = sorted(file for file in model_dir.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def notes(model: PreTrainedModel, cfg: StreamConfig) -> list[str]:
    """Return what a reader of the numbers should be warned about."""
    trained = trained_length(model)
    if trained is None or cfg.capacity <= trained:
        return []
    return [f"the capacity is {cfg.capacity} tokens, the model is trained to {trained}"]
