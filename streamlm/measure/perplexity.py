"""The record of one stream scored by one method."""

import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from streamlm.config import Compute, Method, StreamConfig, everything, find_method
from streamlm.measure.checkpoint import Checkpoint
from streamlm.measure.open_model import OpenedModel, open_model
from streamlm.measure.scorers import Scored, Task, score
from streamlm.measure.scoring import CHUNK
from streamlm.records.files import hash_ids
from streamlm.records.types import Environment, Record, RunRecord
from streamlm.stats import BootstrapConfig, after_token, describe_losses

KEEP_EVERY = 8 * CHUNK  # tokens between two checkpoints


def options_of(run: Record) -> dict[str, Any]:
    """Return what `measure_perplexity` takes, from a run as the workflow plans it, by names."""
    return {
        "method": find_method(run["method"]),
        "cfg": StreamConfig(**run["cfg"]),
        "compute": Compute(**run["compute"]),
        "positions": run["positions"],
        "yarn": run.get("yarn"),
    }


def measure_perplexity(
    *,
    model_dir: Path | str,
    compute: Compute,
    title: str | None = None,
    ids: np.ndarray,
    dataset: str,
    method: Method,
    cfg: StreamConfig,
    positions: int = 0,
    kv_dtype: str | None = None,
    yarn: float | None = None,
    bootstrap: BootstrapConfig,
    checkpoint: Path | str | None = None,
) -> tuple[RunRecord, np.ndarray]:
    """Score a stream by one method; return its record and its losses, (N-1,) float32 in nats.

    Args:
        model_dir: a transformers model folder.
        compute: number type, device and threads.
        title: true name of the model, if its folder does not say it.
        ids: (N,) token ids of the stream.
        dataset: the true name of the text.
        method: one of `METHODS`.
        cfg: the geometry that is asked; the method decides what it keeps at equal memory.
        positions: tokens from which a method is estimated that cannot be scored whole (`recompute`).
        kv_dtype: name of the type that the window is quantised to; sinks are not.
        yarn: see `load_model`.
        bootstrap: settings of the intervals.
        checkpoint: file to keep the state of a long run in, and to continue from after a kill. It outlives
            the scoring: `discard_checkpoint` it once the losses are written.

    Raises:
        ValueError: for any mistake in the above; if a loss is not finite.
    """
    opened = open_model(model_dir, compute, title=title, yarn=yarn)
    torch.manual_seed(bootstrap.seed)
    environment: Environment = {**opened.environment(__file__), "seed": bootstrap.seed}
    state = None
    if checkpoint is not None:
        identity = {
            "ids": hash_ids(ids),
            "geometry": [method.name, cfg.n_sink, cfg.window_size],
            "storage": kv_dtype,
            "yarn": yarn,
            "model": _fingerprint(Path(model_dir)),
            "environment": environment,
        }
        state = Checkpoint(Path(checkpoint), identity, every=KEEP_EVERY)
    task = Task(
        model=opened.model,
        ids=ids,
        method=method,
        asked=cfg,
        bootstrap=bootstrap,
        kv_dtype=kv_dtype,
        yarn=yarn,
        n_positions=positions,
        checkpoint=state,
    )
    scored = score(task)
    record = describe_run(opened, dataset, task, scored, environment)
    for line in record["warnings"]:
        warnings.warn(line, stacklevel=2)
    return record, scored.losses.astype(np.float32)


def describe_run(
    opened: OpenedModel, dataset: str, task: Task, scored: Scored, environment: Environment
) -> RunRecord:
    """Return the record of what was scored; `warnings` is what a reader of the numbers should know."""
    kept, bootstrap, losses = task.cfg, task.bootstrap, scored.losses.astype(np.float32)
    caveats = notes(opened, kept)
    if task.method.geometry is not everything and kept.capacity >= len(losses):
        caveats.append(
            f"nothing was evicted: a cache of {kept.capacity:,} tokens holds all of this text; take more "
            "text or a smaller cache"
        )
    return {
        "model": opened.title,
        "trained_length": opened.trained_length,
        "dataset": dataset,
        "method": task.method.name,
        "n_sink": kept.n_sink,
        "window_size": kept.window_size,
        "capacity": kept.capacity,
        "layers": scored.layers,
        "storage": task.kv_dtype or opened.compute.dtype,
        **({} if task.yarn is None else {"yarn": task.yarn}),  # type: ignore[typeddict-item]
        "protocol": scored.protocol,
        "confidence": bootstrap.confidence,
        "bootstrap": asdict(bootstrap),
        "baseline": None,
        "streaming": {
            **describe_losses(losses, bootstrap, correction=scored.correction),
            "runtime_sec": scored.runtime_sec,
            "tokens_per_sec": scored.tokens_per_sec,
            "kv_tokens": scored.kv_tokens,
            "kv_bytes": scored.kv_bytes,
            "after_eviction": after_token(losses, kept.capacity, bootstrap, scored.correction),
        },
        "metrics": {
            "speedup": None,
            "compression_ratio": 1 - scored.kv_tokens / len(losses),
            "ppl_increase_percent": None,
        },
        **scored.sections,  # type: ignore[typeddict-item]
        "tokens": {"count": len(task.ids), "scored": len(losses), "sha256": hash_ids(task.ids)},
        "warnings": caveats,
        "environment": environment,
    }


def _fingerprint(model_dir: Path) -> list[list[str | int]]:
    """Return name, size and time of every file of a model folder."""
    files = sorted(file for file in model_dir.iterdir() if file.is_file())
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def notes(opened: OpenedModel, cfg: StreamConfig) -> list[str]:
    """Return what a reader of the numbers should be warned about."""
    trained = opened.trained_length
    if trained is None or cfg.capacity <= trained:
        return []
    return [f"the capacity is {cfg.capacity} tokens, the model is trained to {trained}"]
