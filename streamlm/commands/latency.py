"""`latency`: how long decoding takes at a full cache."""

from pathlib import Path
from typing import Annotated

from streamlm.commands.inputs import open_inputs
from streamlm.commands.options import (
    AsJson,
    Compile,
    ComputeOptions,
    Force,
    MethodName,
    SourceOptions,
    cache_option,
    compute_option,
    output_option,
    print_json,
)
from streamlm.commands.output_types import RECORD
from streamlm.commands.terminal import say
from streamlm.config import METHODS, as_asked

TIMED = [name for name, method in METHODS.items() if method.is_timed]
CAPACITIES, N_SINKS = [1024], [4]


def latency(
    *,
    source: SourceOptions,
    method: Annotated[
        list[MethodName], cache_option(metavar="METHOD", help="A method to time; any number of times.")
    ] = TIMED,
    capacity: Annotated[
        list[int], cache_option(min=1, help="Tokens kept; any number of times.")
    ] = CAPACITIES,
    n_sink: Annotated[
        list[int], cache_option(min=1, help="Sinks of streaming; any number of times.")
    ] = N_SINKS,
    warmup_tokens: Annotated[
        int, compute_option(min=1, help="Decode this many tokens before timing begins.")
    ] = 4,
    timed_tokens: Annotated[int, compute_option(min=1, help="Time this many tokens in each run.")] = 8,
    recompute_tokens: Annotated[
        int, compute_option(min=1, help="Time this many tokens in each run of recompute.")
    ] = 1,
    runs: Annotated[int, compute_option(min=2, help="Time every method this many times, in turns.")] = 5,
    compute: ComputeOptions,
    compile: Compile = False,
    baseline: Annotated[
        Path | None, output_option(help="Record of an earlier run on this machine, to compare with.")
    ] = None,
    output_dir: Annotated[Path | None, output_option(help="Write a record of each, .json.")] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Time decoding at a full cache: milliseconds per token, memory."""
    from streamlm.experiment.plan import latency_label
    from streamlm.measure.latency import LatencyConfig, measure_latency
    from streamlm.records.fields import check_record
    from streamlm.records.files import read_record, write_json
    from streamlm.records.types import LatencyRecord
    from streamlm.summaries.latency import comparison_line, latency_ratio, latency_rows, same_setting
    from streamlm.summaries.tables import as_markdown

    cases = [(name, n) for name in method for n in (n_sink if METHODS[name].geometry is as_asked else [0])]
    outputs = source.outputs(force, baseline)
    labels = sorted({latency_label(name, size, n) for size in capacity for name, n in cases})
    files = {
        label: outputs.check(output_dir and output_dir / f"decoding_latency_{label}.json", RECORD)
        for label in labels
    }
    inputs = open_inputs(source)
    earlier = None if baseline is None else read_record(baseline)
    if earlier is not None:
        check_record(earlier, LatencyRecord, str(baseline))
    amounts = LatencyConfig(
        warmup_tokens=warmup_tokens,
        timed_tokens=timed_tokens,
        recompute_tokens=recompute_tokens,
        runs=runs,
        compile=compile,
    )
    records = [
        record
        for size in capacity
        for record in measure_latency(
            **inputs._asdict(), compute=compute, capacity=size, cases=cases, latency=amounts
        )
    ]
    for record in records:
        file = files[latency_label(record["method"], record["capacity"], record["n_sink"])]
        if file is not None:
            with file.whole() as path:
                write_json(path, record)
    pair = None if earlier is None else (same_setting(records, earlier), earlier)
    if as_json:
        print_json({"records": records, "against_baseline": pair and latency_ratio(*pair)})
        return
    say(as_markdown(latency_rows(records)))
    if pair is not None:
        say(f"against {baseline}: {comparison_line(*pair)}")
