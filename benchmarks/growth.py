"""What a token costs as a stream grows: `make bench-growth`.

Scores one long text once, block by block, through caches of several windows, and as several rows of a batch,
each row its own part of the text. Every pass of the long stream is paired with the same pass through a young
one, which has seen a few passes: whatever slows the machine meets both, and what the length of a stream costs
is left. Prints a table, writes a JSON file, and draws it as docs/results/growth.png.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from tabulate import tabulate
from tqdm import tqdm

from streamlm.cache.forward import cache_argument
from streamlm.cache.head import head_of
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import Compute
from streamlm.figures.style import LINE_STYLES, PAGE, RC_PARAMS, SMALL
from streamlm.measure.open_model import open_model
from streamlm.measure.scoring import next_losses
from streamlm.provenance import processor_name
from streamlm.stats import trend

N_SINK = 4
PASS = 1024  # tokens of all rows in one pass through the model
YOUNG_PASSES = 8  # that a young stream has seen
PAIR_EVERY = 16  # passes
PARTS = 48  # along the stream


@dataclass(frozen=True)
class Case:
    capacity: int
    rows: int

    def __str__(self):
        return f"{N_SINK}+{self.capacity - N_SINK}" + (f", {self.rows} rows" if self.rows > 1 else "")


class Stream:
    """Rows of a text that are scored pass by pass."""

    def __init__(self, model, case):
        self.base, self.head = model.base_model, head_of(model)
        self.cache = SinkCache(model.config, N_SINK, case.capacity - N_SINK)

    def score(self, ids):
        """Feed all ids (B, T+1) but the last; return the mean loss of the next ones, and the seconds."""
        begin = time.perf_counter()
        hidden = self.base(ids[:, :-1], **cache_argument(self.base, self.cache)).last_hidden_state.flatten(
            0, 1
        )
        losses = next_losses(self.head, hidden, ids[:, 1:].flatten())
        return losses.mean(dtype=np.float64), time.perf_counter() - begin


@torch.inference_mode()
def measure(model, ids, case):
    """Score (N+1,) ids once; return what each pass gave, and the trend of old against young."""
    rows = ids[:-1].view(case.rows, -1)
    rows = torch.cat((rows, ids[rows.shape[1] :: rows.shape[1]][: case.rows, None]), dim=1)  # (B, N/B + 1)
    length = PASS // case.rows
    old, young = Stream(model, case), Stream(model, case)
    process, kept, snapshot = psutil.Process(), [], None
    for i, start in enumerate(tqdm(range(0, rows.shape[1] - 1, length), unit="pass", desc=str(case))):
        part = rows[:, start : start + length + 1]
        if i == YOUNG_PASSES:
            snapshot = old.cache.state_dict()
        is_paired = snapshot is not None and i % PAIR_EVERY == 0
        streams = [old, young] if is_paired else [old]
        if is_paired:
            young.cache = SinkCache(model.config, N_SINK, case.capacity - N_SINK)
            young.cache.load_state_dict(snapshot)
        if i // PAIR_EVERY % 2:
            streams.reverse()
        found = {stream: stream.score(part) for stream in streams}
        loss, seconds = found[old]
        young_seconds = found[young][1] if is_paired else None
        memory = process.memory_info().rss
        kept.append((case.rows * (start + length), seconds, young_seconds, loss, old.cache.nbytes, memory))
    seen, seconds, young_seconds, losses, nbytes, resident = (
        np.array(x, float) for x in zip(*kept, strict=True)
    )
    paired = ~np.isnan(young_seconds)
    ratio = 100 * seconds[paired] / young_seconds[paired]
    parts = [part for part in np.array_split(np.arange(len(seen)), PARTS) if len(part)]
    by_part = {
        "tokens": [seen[part[-1]] for part in parts],
        "tokens_per_sec": [PASS / np.median(seconds[part]) for part in parts],
        "loss_nats": [losses[part].mean() for part in parts],
        "resident_mib": [resident[part].mean() / 2**20 for part in parts],
    }
    return {
        **asdict(case),
        "kv_bytes": sorted(set(nbytes.astype(int).tolist())),  # one number: it never grew
        "slowdown_percent_per_million": trend(ratio, seen[paired] / 1e6),
        "loss_trend_per_million": trend(losses[YOUNG_PASSES:], seen[YOUNG_PASSES:] / 1e6),
        "resident_mib_per_million": trend(resident[paired] / 2**20, seen[paired] / 1e6),
        "parts": by_part,
    }


def describe(case, found):
    """Return the row of a case in the table."""

    def shown(key, digits):
        slope, low, high = (found[key][name] for name in ("slope", "low", "high"))
        return f"{slope:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"

    rates, memory = (
        found["parts"]["tokens_per_sec"],
        " to ".join(f"{n / 2**20:.1f}" for n in found["kv_bytes"]),
    )
    rate = f"{np.median(rates):.0f} [{min(rates):.0f}, {max(rates):.0f}]"
    return [
        str(case),
        rate,
        shown("slowdown_percent_per_million", 1),
        memory,
        shown("resident_mib_per_million", 0),
        shown("loss_trend_per_million", 3),
    ]


HEADERS = [
    "cache",
    "tokens/s",
    "slower than a young stream, % per million tokens",
    "cache, MiB",
    "process, MiB per million",
    "loss, nats per million",
]


@matplotlib.rc_context(RC_PARAMS)
def plot(record, target):
    """Draw rate, memory and loss along the stream."""
    figure = Figure((PAGE, 2.9), layout="constrained")
    panels = zip(
        figure.subplots(1, 3),
        ("tokens_per_sec", "resident_mib", "loss_nats"),
        ("Tokens per second", "Memory of the process, MiB", "Loss, nats per token"),
        strict=True,
    )
    for axes, key, title in panels:
        highest = 0
        for (name, found), style in zip(record["cases"].items(), LINE_STYLES, strict=False):
            parts = found["parts"]
            axes.plot(parts["tokens"], parts[key], label=name, **style | {"markevery": 0.25})
            highest = max(highest, *parts[key])
        axes.set(title=title, xlabel="tokens seen", xscale="log", ylim=(0, 1.35 * highest))
        axes.yaxis.set_major_formatter(ScalarFormatter())
    figure.axes[0].legend(loc="lower left")
    figure.suptitle("What a token costs as a stream grows", fontweight="bold")
    figure.supxlabel(record["about"], fontsize=SMALL)
    figure.savefig(target, dpi=300)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--ids", type=Path, help="default: the model's pg19 tokens under data/")
    parser.add_argument("--tokens", type=int, default=2**20)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/growth.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/results/growth.png"))
    options = parser.parse_args()
    path = options.ids or Path("data/tokens") / options.model.name / "pg19.npy"
    stream = np.load(path)[: options.tokens + 1].astype(np.int64)
    ids = torch.from_numpy(stream[: (len(stream) - 1) // PASS * PASS + 1])  # whole passes
    opened = open_model(options.model, Compute(device="cpu", dtype="bfloat16"))
    machine = f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, bfloat16"
    about = f"{opened.title}; {len(ids) - 1} tokens of {path.stem}, each read once; {machine}"
    print(about, end="\n\n")
    cases = [Case(256, 1), Case(1024, 1), Case(512, 4)]
    found = {str(case): measure(opened.model, ids, case) for case in cases}
    print(tabulate([describe(case, found[str(case)]) for case in cases], HEADERS, disable_numparse=True))
    record = {"about": about, "cases": found}
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    plot(record, options.figure)


if __name__ == "__main__":
    main()
