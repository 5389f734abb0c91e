"""The `streamlm` command: parse, call, print."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamlm import __version__
from streamlm.config import METHODS

if TYPE_CHECKING:
    import numpy as np

# typer carries a click of its own, of whose errors it exports this one's children only.
UsageError: Any = typer.BadParameter.__base__
ROLES = ("wikitext", "pg19")  # as the workflow stores them in data/
PRESSES = ["KnormPress", "SnapKVPress", "TOVAPress", "ExpectedAttentionPress", "RandomPress"]
ALL_METHODS, CAPACITIES, N_SINKS = list(METHODS), [1024], [4]  # what `latency` measures if not told

app = typer.Typer(
    name="streamlm",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _stream(
    model: Path,
    dataset_name: str | None,
    text: Path | None,
    tokens: Path | None,
    max_samples: int | None,
    dataset_config: str | None = None,
    dataset_split: str = "test",
) -> "tuple[np.ndarray, str]":
    """Return the token ids that were asked for and the true name of their text."""
    from streamlm.data import extract_documents, read_sample, read_tokens, tokenise_documents

    if [dataset_name, text, tokens].count(None) != 2:
        raise ValueError("give exactly one of --dataset-name, --text and --tokens")
    if dataset_config is not None and "/" not in str(dataset_name):
        raise ValueError(
            "--dataset-config is of a data set on a hub; give its id, org/name, as --dataset-name"
        )
    if tokens is not None:
        return read_tokens(tokens), tokens.name
    if text is not None:
        name, documents = text.name, extract_documents({"kind": "path", "format": "text"}, text)
    elif dataset_name in ROLES:
        sample = read_sample(Path("data") / dataset_name / "sample.json")
        name, documents = sample.dataset, sample.documents
    elif "/" in str(dataset_name):
        from streamlm.hub_texts import named_documents

        documents, name = named_documents(str(dataset_name), dataset_config, dataset_split, max_samples)
    else:
        known = ", ".join(ROLES)
        raise ValueError(f"unknown --dataset-name {dataset_name!r}; known are {known}, and hub ids, org/name")
    return tokenise_documents(documents, model, add_bos=False, max_samples=max_samples), name


@app.callback()
def about() -> None:
    """What a language model loses, and saves, when its KV cache keeps attention sinks and a window."""


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command(
    epilog="Example: streamlm evaluate --model-name data/models/smollm2-135m-instruct "
    "--dataset-name wikitext --n-sink 4 --window-size 1024 --output result.json"
)
def evaluate(
    model_name: Annotated[
        Path,
        typer.Option(help="Folder of a transformers model (safetensors), or hub id, org/name[@revision]."),
    ],
    dataset_name: Annotated[
        str | None,
        typer.Option(
            help="wikitext or pg19, as stored by the workflow in data/; or hub id, org/name[@revision]."
        ),
    ] = None,
    dataset_config: Annotated[str | None, typer.Option(help="Config of the data set on the hub.")] = None,
    dataset_split: Annotated[str, typer.Option(help="Split of the data set on the hub.")] = "test",
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text file, scored as one stream.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="A .npy of int64 ids, scored as given.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Take so many documents.")] = None,
    max_eval_tokens: Annotated[int | None, typer.Option(min=2, help="Score so many ids.")] = None,
    method: Annotated[
        str,
        typer.Option(
            help="dense; streaming; window: as many tokens as streaming, but no sinks; "
            "or recompute: these encoded anew for every token, estimated at --positions."
        ),
    ] = "streaming",
    n_sink: Annotated[int, typer.Option(help="First tokens kept.")] = 4,
    window_size: Annotated[int, typer.Option(help="Recent tokens kept, the current one included.")] = 1020,
    positions: Annotated[int, typer.Option(min=1, help="Tokens at which recompute is measured.")] = 32,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    storage: Annotated[
        str | None, typer.Option(help="Hold the window as bfloat16, float16 or int8; sinks stay as they are.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    baseline: Annotated[
        Path | None, typer.Option(help="Dense record of the same tokens (with its .npy), to compare with.")
    ] = None,
    per_token: Annotated[Path | None, typer.Option(help="Write float32 losses in nats, .npy.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Keep the state of a long run here; the same command goes on from it.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write the record, .json.")] = None,
) -> None:
    """Score one stream by one method: perplexity, time, KV memory."""
    from streamlm.checkpoint import discard_checkpoint
    from streamlm.hub import find_model
    from streamlm.perplexity import measure_perplexity
    from streamlm.records import read_losses, read_record, write_array, write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summary import Run, check_baseline, score_line, with_baseline

    _check_targets(per_token, checkpoint, output)
    model_dir, title = find_model(model_name)
    ids, dataset = _stream(model_dir, dataset_name, text, tokens, max_samples, dataset_config, dataset_split)
    ids = ids[:max_eval_tokens]
    bootstrap, dense = BootstrapConfig(), None
    if baseline is not None:
        dense = Run(read_record(baseline), read_losses(baseline))
        check_baseline(dense, ids)
    record, losses = measure_perplexity(
        model_dir=model_dir,
        ids=ids,
        dataset=dataset,
        title=title,
        method=method,
        n_sink=n_sink,
        window_size=window_size,
        positions=positions,
        dtype=dtype,
        device=device,
        storage=storage,
        bootstrap=bootstrap,
        checkpoint=checkpoint,
    )
    if dense is not None:
        record = with_baseline(Run(record, losses), dense, record["capacity"], bootstrap)
    if per_token is not None:
        write_array(per_token, losses)
    if output is not None:
        write_json(output, record)
    discard_checkpoint(checkpoint)
    typer.echo(score_line(record))


@app.command(
    epilog="Example: streamlm latency --model-name data/models/smollm2-135m-instruct --dataset-name wikitext "
    "--capacity 512 --capacity 1024 --output-dir latency"
)
def latency(
    model_name: Annotated[Path, typer.Option(help="Folder of a transformers model (safetensors).")],
    dataset_name: Annotated[
        str | None, typer.Option(help="wikitext or pg19, as stored by the workflow in data/.")
    ] = None,
    text: Annotated[
        Path | None, typer.Option(help="A UTF-8 text file; its beginning fills the cache.")
    ] = None,
    tokens: Annotated[Path | None, typer.Option(help="A .npy of int64 ids; likewise.")] = None,
    method: Annotated[list[str], typer.Option(help="Any of the four, any number of times.")] = ALL_METHODS,
    capacity: Annotated[
        list[int], typer.Option(min=1, help="Tokens held; any number of times.")
    ] = CAPACITIES,
    n_sink: Annotated[list[int], typer.Option(min=1, help="Of streaming; any number of times.")] = N_SINKS,
    warmup_tokens: Annotated[int, typer.Option(help="Not timed.")] = 4,
    timed_tokens: Annotated[int, typer.Option(help="In each run.")] = 8,
    recompute_tokens: Annotated[int, typer.Option(help="In each run of recompute.")] = 1,
    runs: Annotated[int, typer.Option(help="In which the methods take turns.")] = 5,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    baseline: Annotated[
        Path | None, typer.Option(help="Record of an earlier run on this machine, to compare with.")
    ] = None,
    output_dir: Annotated[Path | None, typer.Option(help="Write a record of each, .json.")] = None,
) -> None:
    """Time decoding at a full cache: milliseconds per token, memory."""
    from tabulate import tabulate

    from streamlm.experiment import latency_label
    from streamlm.latency import LatencyConfig, measure_latency
    from streamlm.latency_summary import LATENCY_HEADERS, comparison_line, latency_rows, same_setting
    from streamlm.records import read_record, write_json

    ids, dataset = _stream(model_name, dataset_name, text, tokens, None)
    earlier = None if baseline is None else read_record(baseline)
    amounts = LatencyConfig(
        warmup_tokens=warmup_tokens, timed_tokens=timed_tokens, recompute_tokens=recompute_tokens, runs=runs
    )
    sides = [(name, n) for name in method for n in (n_sink if name == "streaming" else [0])]
    records = [
        record
        for held in capacity
        for record in measure_latency(
            model_dir=model_name,
            ids=ids,
            dataset=dataset,
            capacity=held,
            sides=sides,
            latency=amounts,
            dtype=dtype,
            device=device,
        )
    ]
    if output_dir is not None:
        for record in records:
            label = latency_label(record["method"], record["capacity"], record["n_sink"])
            write_json(output_dir / f"decoding_latency_{label}.json", record)
    typer.echo(tabulate(latency_rows(records), LATENCY_HEADERS, "github", disable_numparse=True))
    if earlier is not None:
        typer.echo(f"against {baseline}: {comparison_line(same_setting(records, earlier), earlier)}")


@app.command(
    epilog="Example: streamlm compare --model-name data/models/smollm2-135m-instruct --dataset wikitext "
    "--window-size 252 --press KnormPress --press 'SnapKVPress(window_size=32)'"
)
def compare(
    model_name: Annotated[Path, typer.Option(help="Folder of a transformers model (safetensors).")],
    dataset_name: Annotated[
        str | None,
        typer.Option(
            "--dataset", "--dataset-name", help="wikitext or pg19, as stored by the workflow in data/."
        ),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="A UTF-8 text file.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="A .npy of int64 ids.")] = None,
    max_samples: Annotated[int | None, typer.Option(min=1, help="Take so many documents.")] = None,
    max_eval_tokens: Annotated[
        int, typer.Option(min=6, help="Take so many ids: a fifth is scored behind the others.")
    ] = 1281,
    n_sink: Annotated[int, typer.Option(min=1, help="First tokens kept.")] = 4,
    window_size: Annotated[int, typer.Option(min=1, help="Recent tokens kept beside them.")] = 252,
    press: Annotated[list[str], typer.Option(help="A press of kvpress; any number of times.")] = PRESSES,
    interval: Annotated[
        int, typer.Option(min=1, help="Decoded tokens between two evictions of kvpress as it is.")
    ] = 8,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    output: Annotated[Path | None, typer.Option(help="Write the record, .json.")] = None,
) -> None:
    """Compare with NVIDIA kvpress at equal budgets: a context cut once, and token by token."""
    from functools import partial

    from tabulate import tabulate

    from streamlm.comparison_summary import (
        COMPARISON_HEADERS,
        collect_comparison,
        comparison_rows,
        findings,
        refusals,
    )
    from streamlm.compression import ContextConfig, measure_compression
    from streamlm.decode_comparison import DecodeConfig, measure_decoding
    from streamlm.presses import check_budgets, compared_methods
    from streamlm.records import write_json
    from streamlm.stats import BootstrapConfig
    from streamlm.summary import Run

    _check_targets(output)
    capacity, methods = n_sink + window_size, compared_methods(n_sink, press)
    ids, dataset = _stream(model_name, dataset_name, text, tokens, max_samples)
    ids = ids[:max_eval_tokens]
    scored = (len(ids) - 1) // 5
    contexts = ContextConfig(contexts=1, context_tokens=len(ids) - 1 - scored, scored_tokens=scored)
    check_budgets([capacity], n_sink, contexts.context_tokens)
    decode = DecodeConfig(capacity=capacity, tokens=min(scored, len(ids) - capacity), interval=interval)
    same: Any = {
        "model_dir": model_name, "texts": {dataset: ids}, "n_sink": n_sink, "dtype": dtype, "device": device,
        "bootstrap": BootstrapConfig(),
    }  # fmt: skip
    measure = partial(measure_compression, contexts=contexts, budgets=[capacity], **same)
    runs = {label: Run(*measure(method=method)) for label, method in methods.items()}
    decoding = Run(*measure_decoding(decode=decode, **same))
    _, comparison, _ = collect_comparison(runs, decoding, dataset, capacity, same["bootstrap"])
    if output is not None:
        write_json(output, comparison)
    rows = comparison_rows([comparison])
    typer.echo(tabulate(rows, COMPARISON_HEADERS, "github", disable_numparse=True))
    for line in (*refusals(comparison), *findings(comparison)):
        typer.echo(line)


@app.command(epilog="Example: streamlm verify results --model-name data/models/smollm2-135m-instruct")
def verify(
    results_dir: Annotated[Path, typer.Argument(help="The results_dir of an experiment.")],
    model_name: Annotated[Path, typer.Option(help="Folder of the model that it was made with.")],
    tokens_dir: Annotated[
        Path, typer.Option(help="Holds the token ids of its texts, .npy; they are found by their hash.")
    ] = Path("data/tokens"),
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Score so many tokens of each record again; more than all is all.")
    ] = 2560,
    seed: Annotated[int, typer.Option(min=0, help="Of what is sampled beyond these.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
) -> None:
    """Check results that were made elsewhere: score a sample again, follow every number to its losses."""
    from streamlm.verify import passed, verify_results

    found = []
    for verdict in verify_results(
        results_dir,
        model_dir=model_name,
        tokens_dir=tokens_dir,
        max_tokens=max_tokens,
        seed=seed,
        device=device,
    ):
        typer.echo(verdict)
        found.append(verdict)
    if not passed(found):
        raise ValueError(
            f"not all is well with {results_dir}: see above what was refuted or never scored again"
        )


def _check_targets(*targets: Path | None) -> None:
    """Refuse, before hours of scoring, what could not be written after them."""
    given = [target for target in targets if target is not None]
    if len({target.resolve() for target in given}) < len(given):
        raise ValueError(f"two options name the file {given[0]} to write; give each its own")
    for target in given:
        if target.is_dir():
            raise ValueError(f"{target} is a folder; name a file to write")
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target.parent):  # shows whether the folder can be written
            pass


def main() -> None:
    """Run the command; a mistake of the caller is one line on stderr and exit status 1."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        sys.exit(f"streamlm: {error.format_message()}")
    except (ValueError, OSError) as error:
        sys.exit(f"streamlm: {error}")
