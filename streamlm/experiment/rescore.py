"""Check the results of one machine on another: rescore a sample, follow every number to its losses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np

from streamlm.config import Compute, StreamConfig, find_method
from streamlm.experiment.recollect import Refuted, follow_run, follow_summary, summaries
from streamlm.measure.open_model import OpenedModel, open_model
from streamlm.measure.scorers import SCORERS, Task
from streamlm.measure.scoring import recompute_losses, score_stream
from streamlm.records.files import hash_ids
from streamlm.records.types import Record
from streamlm.sources.corpus import read_tokens
from streamlm.stats import BootstrapConfig
from streamlm.summaries.main import Run, read_run

# Nats by which one loss may differ between two right machines. Of float32, other sizes of block moved losses
# by 3e-5 and another implementation by 1e-4. bfloat16 rounds so coarsely that right implementations were 0.66
# apart at a token; float16 rounds eight times finer; a window in int8 may round to a neighbour. There the
# mean is held too.
TOLERANCES = {"float64": 1e-6, "float32": 1e-3, "float16": 0.3, "bfloat16": 1.5, "int8": 1.5}
MEAN_TOLERANCE = 0.03  # of the mean difference, over 100 losses or more
FAR_TOKENS = 64  # the fewest that are worth reading a stretch far down the stream for
RECOMPUTED = 2  # windows that are computed from scratch for a `recompute` record

CONFIRMED, REFUTED, UNCHECKED = "confirmed", "refuted", "cannot be checked"


@dataclass(frozen=True)
class Verdict:
    """What was found about one record."""

    name: str
    outcome: str
    why: str
    rescored: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}: {self.why}"


def passed(verdicts: Sequence[Verdict]) -> bool:
    """Return whether nothing was refuted, and at least one record was confirmed by scoring again."""
    return all(verdict.outcome != REFUTED for verdict in verdicts) and any(
        verdict.outcome == CONFIRMED and verdict.rescored for verdict in verdicts
    )


def verify_results(
    results: Path,
    *,
    model_dir: Path,
    tokens_dir: Path,
    max_tokens: int,
    seed: int = 0,
    device: str = "auto",
) -> Iterator[Verdict]:
    """Yield a verdict on every record of an experiment, as it is found.

    Of a run, the perplexities must follow from the losses beside the record, and a sample of the losses from
    the model and the tokens: those of the first `max_tokens` tokens, of a seeded stretch far down the stream
    where that can be reached exactly with as many tokens (see `far_stretch`), and some recomputed windows.
    Summaries must be what is made of the runs. A time cannot be checked elsewhere.

    Args:
        results: the `results_dir` of an experiment.
        model_dir: the model that it was made with.
        tokens_dir: holds the ids of its texts, `.npy`, at any depth; they are found by their hash.
        max_tokens: rescored for a record, at most.
        seed: of the sample.
        device: name of a torch device.

    Raises:
        ValueError: if there are no run records.
    """
    runs = sorted((results / "runs").glob("*/*.json"))
    if not runs:
        raise ValueError(
            f"{results} has no records runs/TEXT/RUN.json; name the results_dir of an experiment"
        )
    load = cache(lambda dtype: open_model(model_dir, Compute(dtype=dtype, device=device)))
    files = sorted(tokens_dir.rglob("*.npy"))
    followed = summaries(results)
    for path in runs:
        check = partial(_check_run, path, load, files, max_tokens, seed)
        yield _verdict(str(path.relative_to(results)), check, rescored=True)
    for path in followed:
        yield _verdict(str(path.relative_to(results)), partial(_check_summary, results, path))
    # Not of experiments that have their results_dir in this one: they are verified by themselves.
    others = {*results.glob("*.json"), *results.glob("kvpress/**/*.json")} - {*followed}
    for path in sorted(others):
        why = "it holds times, or losses under kvpress: measure them here and compare"
        yield Verdict(str(path.relative_to(results)), UNCHECKED, why)


def _verdict(name: str, check: Callable[[], str], *, rescored: bool = False) -> Verdict:
    try:
        return Verdict(name, CONFIRMED, check(), rescored)
    except Refuted as error:
        return Verdict(name, REFUTED, str(error))
    except ValueError as error:
        return Verdict(name, UNCHECKED, str(error))


def _check_summary(results: Path, path: Path) -> str:
    follow_summary(results, path)
    return "it follows from the records of the runs"


def _check_run(
    path: Path, load: Callable[[str], OpenedModel], files: Sequence[Path], max_tokens: int, seed: int
) -> str:
    """Return what was confirmed about a run.

    Raises:
        Refuted: if a loss or a perplexity is another.
        ValueError: if that cannot be found out.
    """
    run = read_run(path)
    follow_run(run)
    ids = _find_ids(run.record, files)
    opened = load(run.record["environment"]["dtype"])
    count, apart = 0, 0.0
    for queries, rescored in _rescore(opened, ids, run, max_tokens, seed):
        apart = max(apart, _compare(run, queries, rescored))
        count += len(queries)
    n_windows, windows_apart = _check_recomputed(opened, ids, run, max_tokens, seed)
    evicted = run.record["capacity"] < min(max_tokens, len(run.losses)) or run.record["method"] == "dense"
    note = "" if evicted or n_windows else ", none past the first eviction; raise --max-tokens"
    sample = f", and {n_windows} windows recomputed" if n_windows else ""
    return (
        f"{count} of {len(run.losses)} losses rescored{sample}, at most "
        f"{max(apart, windows_apart):.1e} nats apart{note}"
    )


def _find_ids(record: Record, files: Sequence[Path]) -> np.ndarray:
    """Return the tokens that a record is about."""
    count, sha256 = record["tokens"]["count"], record["tokens"]["sha256"]
    for file in files:
        ids = read_tokens(file)[:count]
        if len(ids) == count and hash_ids(ids) == sha256:
            return ids
    raise ValueError(
        f"none of the {len(files)} files of tokens begins with its {count} (sha256 {sha256[:12]}...); make "
        "them with `snakemake data/tokens/MODEL/TEXT.npy`, or name their folder with --tokens-dir"
    )


def _rescore(
    opened: OpenedModel, ids: np.ndarray, run: Run, max_tokens: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield queries (T,) of a run, and their losses as rescored, (T,)."""
    record, n_losses, model = run.record, len(run.losses), opened.model
    method = find_method(record["method"])
    cfg = StreamConfig(n_sink=record["n_sink"], window_size=record["window_size"])
    quantised = record["storage"] != record["environment"]["dtype"]
    kv_dtype = record["storage"] if quantised else None
    count = min(max_tokens, n_losses)
    if method.name in SCORERS and not method.is_sampled:
        bootstrap = BootstrapConfig(**record["bootstrap"])
        task = Task(
            model=model,
            ids=ids[: count + 1],
            method=method,
            asked=cfg,
            kv_dtype=kv_dtype,
            bootstrap=bootstrap,
        )
        yield np.arange(count), SCORERS[method.name](task).losses
        return
    if "recomputed" in record:  # its losses are those of the streaming pass that it is paired with
        n_sink, window_size = map(int, record["recomputed"]["paired_with"].split("+"))
        cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
    losses, _ = score_stream(model, ids[: count + 1], cfg, kv_dtype=kv_dtype)
    yield np.arange(count), losses
    n_layers = model.config.get_text_config(decoder=True).num_hidden_layers
    stretch = None if quantised else far_stretch(n_losses, cfg, n_layers, max_tokens, seed)
    if stretch is not None:
        first, start = stretch
        spliced = np.concatenate((ids[: cfg.n_sink], ids[start : start + max_tokens + 1]))
        losses, _ = score_stream(model, spliced, cfg)
        queries = np.arange(first, min(start + max_tokens, n_losses))
        yield queries, losses[cfg.n_sink + first - start :][: len(queries)]


def far_stretch(
    n_losses: int, cfg: StreamConfig, n_layers: int, max_tokens: int, seed: int
) -> tuple[int, int] | None:
    """Return a seeded query past the first `max_tokens`, and the token from which reading makes it exact.

    A layer looks back less than the capacity, so nothing further than `n_layers` times that before a query
    reaches it, but for the sinks: they see only each other, and have the same distance wherever the cache is
    full. Put in front of a later part of the stream, they are as they were.

    Args:
        n_losses: of the stream.
        cfg: of the cache.
        n_layers: of the model.
        max_tokens: that may be read.
        seed: of the choice.

    Returns:
        None if so few tokens do not reach, or if nothing is left.
    """
    reach = max(n_layers * (cfg.capacity - 1), cfg.capacity)
    last = n_losses - FAR_TOKENS
    if reach + FAR_TOKENS > max_tokens or last <= max_tokens:
        return None
    first = int(np.random.default_rng(seed).integers(max_tokens, last))
    return first, first - reach


def _check_recomputed(
    opened: OpenedModel, ids: np.ndarray, run: Run, max_tokens: int, seed: int
) -> tuple[int, float]:
    """Recompute some windows of a `recompute` record; return how many, and the largest difference."""
    sample, capacity = run.record.get("recomputed"), run.record["capacity"]
    if sample is None or not sample["positions"] or capacity > max_tokens:
        return 0, 0.0
    positions, losses = np.array(sample["positions"]), np.array(sample["losses_nats"])
    chosen = np.random.default_rng(seed).permutation(len(positions))[:RECOMPUTED]
    recomputed, _ = recompute_losses(opened.model, ids, positions[chosen], capacity)
    return len(chosen), _compare(Run(run.record, losses), chosen, recomputed, positions[chosen])


def _compare(run: Run, where: np.ndarray, rescored: np.ndarray, queries: np.ndarray | None = None) -> float:
    """Return the largest difference of losses `rescored`, (T,), to those of a run at `where`, (T,).

    Raises:
        Refuted: if it is larger than rounding explains.
    """
    environment, storage = run.record["environment"], run.record["storage"]
    tolerance = max(TOLERANCES[environment["dtype"]], TOLERANCES[storage])
    found, queries = run.losses[where].astype(np.float64), where if queries is None else queries
    difference = np.abs(found - rescored)
    wrong = np.flatnonzero(~(difference <= tolerance))  # NaN is wrong
    if len(wrong):
        i = wrong[0]
        raise Refuted(
            f"the loss of token {queries[i] + 1} is {found[i]:.6f} nats in the record and {rescored[i]:.6f} "
            f"rescored ({len(wrong)} of {len(where)} differ by more than {tolerance:g}); a number was "
            "changed, or it was made with another model"
        )
    mean = float(np.mean(found - rescored))
    if len(where) >= 100 and abs(mean) > MEAN_TOLERANCE:
        raise Refuted(
            f"the mean of {len(where)} losses is {found.mean():.6f} nats in the record and "
            f"{rescored.mean():.6f} rescored, further apart than {MEAN_TOLERANCE}"
        )
    return float(difference.max())
