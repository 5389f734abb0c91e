"""Per-token losses of a stream under sinks + window, and the record made of them."""

import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import PreTrainedModel

from streamlm.attention import QUERY_BLOCK
from streamlm.cache import POSITION_LIMIT, SinkCache
from streamlm.config import StreamConfig, method_geometry
from streamlm.models import choose_device, device_name, load_model, model_title, parse_dtype
from streamlm.provenance import describe_environment
from streamlm.records import Record, hash_ids
from streamlm.ring import STORAGES
from streamlm.stats import BootstrapConfig, after_token, describe_losses

CHUNK = 1024  # tokens per pass through the model
HEAD_BLOCK = 128  # tokens per product with the vocabulary: 128 x 49,152 float32 logits are 25 MB


@torch.inference_mode()
def score_stream(
    model: PreTrainedModel,
    ids: np.ndarray,
    cfg: StreamConfig,
    *,
    chunk: int = CHUNK,
    query_block: int = QUERY_BLOCK,
    position_limit: int = POSITION_LIMIT,
    storage: torch.dtype | None = None,
    on_progress: Callable[[int], object] | None = None,
) -> tuple[np.ndarray, SinkCache]:
    """Return the loss of every token of a stream but the first, and the cache as it stands at the end.

    The losses are those of decoding token by token through a cache of n_sink + window_size, computed in
    blocks. Memory does not grow with the stream, but for ids and losses.

    Args:
        model: prepared for `SinkCache`.
        ids: (N,) token ids, N >= 2; one stream, scored exactly as given.
        cfg: cache geometry, in tokens.
        chunk: tokens per pass through the model; changes speed and nothing else.
        query_block: queries per attention block; likewise.
        position_limit: see `SinkCache`.
        storage: see `SinkCache`.
        on_progress: called with the number of losses so far, after every pass.

    Returns:
        (N-1,) losses in nats, float32 or wider; and the cache.

    Raises:
        ValueError: if there are fewer than two ids, or one is outside the vocabulary.
    """
    check_ids(ids, model.config.get_text_config(decoder=True).vocab_size)
    cfg = cfg.within(len(ids) - 1)
    cache = SinkCache(
        model.config,
        n_sink=cfg.n_sink,
        window_size=cfg.window_size,
        position_limit=position_limit,
        query_block=query_block,
        storage=storage,
    )
    stream = torch.as_tensor(ids, dtype=torch.int64, device=model.device)
    losses = np.empty(len(ids) - 1, np.float64 if model.dtype == torch.float64 else np.float32)
    for start in range(0, len(losses), chunk):
        part = stream[start : start + chunk + 1]
        hidden = model.base_model(part[None, :-1], past_key_values=cache).last_hidden_state[0]
        losses[start : start + chunk] = _losses(model.get_output_embeddings(), hidden, part[1:])
        if on_progress is not None:
            on_progress(min(start + chunk, len(losses)))
    return losses, cache


def _losses(head: nn.Module, hidden: Tensor, targets: Tensor) -> np.ndarray:
    """Return the losses (T,) of hidden states (T, H) without ever holding all T x V logits."""
    parts = zip(hidden.split(HEAD_BLOCK), targets.split(HEAD_BLOCK), strict=True)
    wide = torch.promote_types(hidden.dtype, torch.float32)
    losses = [
        nn.functional.cross_entropy(head(rows).to(wide), target, reduction="none") for rows, target in parts
    ]
    return torch.cat(losses).cpu().numpy()


def check_ids(ids: np.ndarray, vocab_size: int) -> None:
    """Raise ValueError unless `ids` is a stream that a model with this vocabulary can score."""
    if len(ids) < 2:
        raise ValueError(f"{len(ids)} token(s) give no loss; at least 2 are needed")
    bad = ids[(ids < 0) | (ids >= vocab_size)]
    if len(bad):
        raise ValueError(
            f"token id {bad[0]} is outside the vocabulary of {vocab_size}; "
            "were the ids made with another model's tokenizer?"
        )


def measure_perplexity(
    *,
    model_dir: Path | str,
    ids: np.ndarray,
    dataset: str,
    method: str,
    n_sink: int,
    window_size: int,
    dtype: str = "float32",
    device: str = "auto",
    torch_threads: int | str = "auto",
    storage: str | None = None,
    bootstrap: BootstrapConfig,
    title: str | None = None,
) -> tuple[Record, np.ndarray]:
    """Score a stream by one method; return its record and its losses, (N-1,) float32 in nats.

    Args:
        model_dir: a transformers model folder.
        ids: (N,) token ids of the stream.
        dataset: the true name of the text.
        method: "dense", "window" (same capacity, no sinks) or "streaming".
        n_sink: first tokens kept.
        window_size: most recent tokens kept, the current one included.
        dtype: name of a torch floating-point type.
        device: name of a torch device; "auto" is CUDA when present.
        torch_threads: for CPU arithmetic; "auto" is every core.
        storage: name of what the window is held as, if not as `dtype`; sinks are.
        bootstrap: settings of the intervals.
        title: true name of the model, if its folder does not tell it.

    Raises:
        ValueError: for any mistake in the above; if a loss is not finite.
    """
    cfg = method_geometry(method, n_sink, window_size, len(ids))
    narrow = None if storage is None else parse_storage(storage)
    use_threads(torch_threads)
    torch.manual_seed(bootstrap.seed)
    device = choose_device(device)
    model = load_model(model_dir, dtype=parse_dtype(dtype), device=device)
    # The terminal itself: sys.stderr is a log file where a workflow runs this.
    with tqdm(total=len(ids) - 1, unit="token", file=sys.__stderr__, disable=None) as bar:
        begin = time.perf_counter()
        losses, cache = score_stream(
            model, ids, cfg, storage=narrow, on_progress=lambda n: bar.update(n - bar.n)
        )
        runtime_sec = time.perf_counter() - begin
    if not np.isfinite(losses).all():
        raise ValueError(
            f"the loss of token {int(np.argmax(~np.isfinite(losses))) + 1} is not finite: the weights in "
            f"{model_dir} are damaged, or {dtype} is too narrow for this model"
        )
    losses = losses.astype(np.float32)
    caveats = notes(model, cfg)
    for line in caveats:
        warnings.warn(line, stacklevel=2)
    record = {
        "model": model_title(model) if title is None else title,
        "dataset": dataset,
        "method": method,
        "n_sink": cfg.n_sink,
        "window_size": cfg.window_size,
        "capacity": cfg.capacity,
        "storage": storage or dtype,
        "protocol": f"scored in blocks: passes of {CHUNK} tokens, {QUERY_BLOCK} queries at a time",
        "confidence": bootstrap.confidence,
        "baseline": None,
        **_outcome(losses, cfg, cache, runtime_sec, bootstrap),
        "tokens": {"count": len(ids), "scored": len(losses), "sha256": hash_ids(ids)},
        "warnings": caveats,
        "environment": {
            **describe_environment(),
            "device": device_name(device),
            "dtype": dtype,
            "torch_threads": torch.get_num_threads(),
            "seed": bootstrap.seed,
        },
    }
    return record, losses


def _outcome(
    losses: np.ndarray, cfg: StreamConfig, cache: SinkCache, runtime_sec: float, bootstrap: BootstrapConfig
) -> dict[str, Any]:
    """Return the sections `streaming` (the measured method) and `metrics` of a record."""
    return {
        "streaming": {
            **describe_losses(losses, bootstrap),
            "runtime_sec": runtime_sec,
            "tokens_per_sec": len(losses) / runtime_sec,
            "kv_tokens": cache.n_held,
            "kv_bytes": cache.nbytes,
            "after_eviction": after_token(losses, cfg.capacity, bootstrap),
        },
        "metrics": {
            "speedup": None,
            "compression_ratio": 1 - cache.n_held / cache.get_seq_length(),
            "ppl_increase_percent": None,
        },
    }


def notes(model: PreTrainedModel, cfg: StreamConfig) -> list[str]:
    """Return what a reader of the numbers should be warned about."""
    trained = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if trained is None or cfg.capacity <= trained:
        return []
    return [f"the capacity is {cfg.capacity} tokens, the model is trained to {trained}"]


def parse_storage(name: str) -> torch.dtype:
    """Return what a window may be held as, by name."""
    if name not in STORAGES:
        raise ValueError(f"unknown storage {name!r}; known are {', '.join(STORAGES)}")
    return STORAGES[name]


def use_threads(torch_threads: int | str) -> None:
    """Set the threads of CPU arithmetic; "auto" is every core this process may run on.

    Snakemake's ``--cores 1`` sets OMP_NUM_THREADS=1, which would otherwise leave torch one thread.
    """
    torch.set_num_threads(len(os.sched_getaffinity(0)) if torch_threads == "auto" else int(torch_threads))
