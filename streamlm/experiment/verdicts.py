"""Verdicts on the results of an experiment: every number is followed to its losses, these scored again."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np

from streamlm.cache.stored import read_config
from streamlm.characters import without_steering
from streamlm.config import Compute
from streamlm.experiment.follow import (
    Refuted,
    check_label,
    check_siblings,
    compare_json,
    find_inside,
    follow_paper,
    follow_scores,
    follow_times,
    read_if_run,
)
from streamlm.experiment.recollect import follow_summary, summaries
from streamlm.experiment.rescore import NO_WINDOWS, SampleSize, rescore, rescore_wide, task_of, with_times_of
from streamlm.experiment.rounding import check_rounding
from streamlm.input_files import read_tokens
from streamlm.measure.open_model import OpenedModel, open_model
from streamlm.measure.perplexity import describe_run
from streamlm.records.files import hash_ids, read_record
from streamlm.records.types import Record
from streamlm.summaries.main import read_run

CONFIRMED, SAMPLED, CONSISTENT = "confirmed", "sampled", "consistent"
NOT_AGAIN = "what it says is possible and follows from what is beside it, and is not measured again"
REFUTED, UNCHECKED = "refuted", "cannot be checked"


@dataclass(frozen=True)
class Verdict:
    """What was found about one record."""

    name: str
    outcome: str
    why: str
    rescored: bool = False

    def __str__(self) -> str:
        line = f"{self.name}: {self.outcome}: {self.why}"
        return without_steering(line).replace("\n", "\\n")


def passed(verdicts: Sequence[Verdict]) -> bool:
    """Return whether every record was checked, none was refuted, and at least one was scored again."""
    sound = all(verdict.outcome not in (REFUTED, UNCHECKED) for verdict in verdicts)
    return sound and any(verdict.rescored for verdict in verdicts)


def require_passed(results: Path, verdicts: Sequence[Verdict]) -> None:
    """Raise ValueError unless all is well."""
    if not passed(verdicts):
        counts = Counter(verdict.outcome for verdict in verdicts)
        raise ValueError(
            f"not all is well with {results}: of {len(verdicts)} records {counts[REFUTED]} were refuted "
            f"and {counts[UNCHECKED]} cannot be checked; the lines above say why"
        )


@dataclass(frozen=True)
class Verifier:
    """What the records of an experiment are checked with; see `verify_results`."""

    results: Path
    model_dir: Path
    tokens_dir: Path
    sample_size: SampleSize
    device: str = "auto"
    title: str | None = None

    @cached_property
    def open(self) -> Callable[[str, float | None], OpenedModel]:
        """The model in a number type, its positions stretched or not."""

        def open(dtype: str, yarn: float | None) -> OpenedModel:
            return open_model(self.model_dir, Compute(dtype=dtype, device=self.device), yarn=yarn)

        return cache(open)

    @cached_property
    def token_files(self) -> list[Path]:
        """Files of token ids."""
        return sorted(self.tokens_dir.rglob("*.npy"))

    @cached_property
    def run_files(self) -> list[Path]:
        """Records of runs."""
        return sorted((self.results / "runs").glob("*/*.json"))

    @cached_property
    def runs(self) -> dict[Path, Record]:
        """The run records that can be read."""
        return {path: record for path in self.run_files if (record := read_if_run(path)) is not None}

    def check_model(self, record: Record) -> list[str]:
        """Hold the name and trained length of a record against the model; return what is left to say.

        Raises:
            Refuted: if one is another.
        """
        config = read_config(self.model_dir)
        title = self.title or getattr(config, "streamlm_title", None)
        text = config.get_text_config(decoder=True)
        expected = {"trained_length": getattr(text, "max_position_embeddings", None)}
        if title is not None:
            expected["model"] = title
        named = {key: record[key] for key in expected if key in record}
        compare_json({key: expected[key] for key in named}, named)
        if title is not None or record["model"] == self.model_dir.resolve().name:
            return []
        return ["the name of its model is taken on trust: the folder has none, --title gives it"]


def verify_results(
    results: Path,
    *,
    model_dir: Path,
    tokens_dir: Path,
    max_tokens: int,
    seed: int = 0,
    device: str = "auto",
    title: str | None = None,
    kvpress: bool = True,
) -> Iterator[Verdict]:
    """Yield a verdict on every record of an experiment, as it is found.

    A run is described again: from its losses, the model and the tokens follow all its fields but times, the
    machine and names. Its losses are scored again, whole or at its beginning, between and at its end.
    Summaries must be what is made of the runs. Times cannot be measured elsewhere: they must agree with each
    other. What was scored under kvpress is not scored again.

    Args:
        results: the `results_dir` of an experiment.
        model_dir: the model that it was made with.
        tokens_dir: holds the ids of its texts, `.npy`, at any depth; they are found by their hash.
        max_tokens: scored again of a record that can be sampled; passes are whole, so it may be more.
        seed: of the sample.
        device: name of a torch device.
        title: of the model, where its folder has none.
        kvpress: whether the comparison with kvpress is looked at.

    Raises:
        ValueError: if there are no run records.
    """
    verifier = Verifier(results, model_dir, tokens_dir, SampleSize(max_tokens, seed), device, title)
    if not verifier.run_files:
        raise ValueError(
            f"{results} has no records runs/TEXT/RUN.json; name the results_dir of an experiment"
        )
    for path in verifier.run_files:
        yield verify_run(verifier, path)
    followed = summaries(results)
    # Not of experiments that have their results_dir in this one: they are verified by themselves.
    patterns = ("*.json", "kvpress/**/*.json", "paper/**/*.json", "tasks/*.json")
    others = sorted({path for pattern in patterns for path in results.glob(pattern)} - {*followed})
    for paths, check in ((followed, _check_summary), (others, _check_other)):
        for path in paths:
            if kvpress or not re.search(r"^kvpress/|_comparison\.json$", str(path.relative_to(results))):
                yield _verdict(results, path, partial(check, verifier, path))


def verify_run(verifier: Verifier, path: Path) -> Verdict:
    """Return the verdict on the record of one run."""
    return _verdict(verifier.results, path, partial(_check_run, verifier, path))


def _verdict(results: Path, path: Path, check: Callable[[], tuple[str, str]]) -> Verdict:
    name = str(path.relative_to(results))
    try:
        find_inside(results, path.relative_to(results))
        outcome, why = check()
    except Refuted as error:
        return Verdict(name, REFUTED, str(error))
    except ValueError as error:
        return Verdict(name, UNCHECKED, str(error))
    return Verdict(name, outcome, why, rescored=name.startswith("runs/"))


def _check_summary(verifier: Verifier, path: Path) -> tuple[str, str]:
    follow_summary(verifier.results, path)
    return CONFIRMED, "it follows from the records of the runs"


def _check_other(verifier: Verifier, path: Path) -> tuple[str, str]:
    """Return what was confirmed of a record that is not scored again."""
    if path.is_relative_to(verifier.results / "kvpress"):
        follow_scores(path)
        raise ValueError(
            "its perplexities and divergences follow from the scores beside it, but these are not computed "
            "again: that needs kvpress; --no-kvpress leaves it out"
        )
    record = read_record(path)
    if any(path.is_relative_to(verifier.results / name) for name in ("paper", "tasks")):
        follow_paper(path)
        if path.parent.name == "twins":  # of a model of its own
            return CONSISTENT, NOT_AGAIN
        return CONSISTENT, ", ".join((NOT_AGAIN, *verifier.check_model(record)))
    follow_times(record)
    named = verifier.check_model(record)
    if "tokens" in record:
        _find_ids(record, verifier.token_files)
    return CONSISTENT, ", ".join(("its times agree with each other, and are not measured again", *named))


def _check_run(verifier: Verifier, path: Path) -> tuple[str, str]:
    """Return what was confirmed about a run.

    Raises:
        Refuted: if a loss or a number is another.
        ValueError: if that cannot be found out.
    """
    find_inside(verifier.results, path.relative_to(verifier.results).with_suffix(".npy"))
    run = read_run(path)
    record, losses = run.record, run.losses
    check_label(path, record)
    alone = check_siblings(path, verifier.runs)
    ids = _find_ids(record, verifier.token_files, path.parent.name)
    if losses.shape != (len(ids) - 1,):
        raise Refuted(f"it has losses of shape {losses.shape} beside it, and {len(ids)} tokens")
    opened = verifier.open(record["environment"]["dtype"], record.get("yarn"))
    task = task_of(run, ids, opened)
    sample = rescore(task, run, verifier.sample_size)
    described = with_times_of(task, sample.scored, run)
    expected = describe_run(opened, record["dataset"], task, described, record["environment"])
    compare_json({**expected, "model": record["model"]}, record)
    named = verifier.check_model(record)
    rounding = check_rounding(
        sample.queries,
        np.concatenate((losses[sample.queries[: sample.n_losses]], sample.recorded_windows)),
        sample.losses,
        partial(rescore_wide, task, run, verifier.sample_size, verifier.open),
    )
    n_windows, drawn = (
        len(sample.recorded_windows),
        len(described.sections.get("recomputed", NO_WINDOWS)["positions"]),
    )
    parts = [f"{sample.n_losses:,} of {len(losses):,} losses scored again"]
    parts += [f"{n_windows} of {drawn} windows recomputed"] if drawn else []
    parts += [rounding, "its time agrees with its speed, and is not measured again", *alone, *named]
    if sample.n_losses == len(losses) and n_windows == drawn:
        return CONFIRMED, ", ".join(parts)
    return SAMPLED, ", ".join([*parts, f"sampled with --seed {verifier.sample_size.seed}"])


def _find_ids(record: Record, files: Sequence[Path], text: str | None = None) -> np.ndarray:
    """Return the tokens that a record is about, from a file of the name of the text where there is one.

    Raises:
        Refuted: if they are in a file of another name, though one of this name is there.
        ValueError: if they are not there.
    """
    count, sha256 = record["tokens"]["count"], record["tokens"]["sha256"]
    if count < 2:
        raise Refuted(f"{count} tokens have no loss")
    named = [file for file in files if file.stem == text]
    for file in (*named, *files):
        ids = read_tokens(file)[:count]
        if len(ids) == count and hash_ids(ids) == sha256:
            if named and file not in named:
                raise Refuted(f"its tokens are those of {file}, not of {text}")
            return ids
    raise ValueError(
        f"none of the {len(files)} files of tokens begins with its {count} (sha256 {sha256[:12]}...); make "
        "them with `snakemake data/tokens/MODEL/TEXT.npy`, or name their folder with --tokens-dir"
    )
