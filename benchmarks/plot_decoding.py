"""Draw `decoding.json` as docs/results/decoding.png."""

import json
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from streamlm.figures.style import DENSE_STYLE, LINE_STYLES, ORANGE, PAGE, PURPLE, RC_PARAMS, SKY, SMALL

STYLES = dict(
    zip(
        (
            "SinkCache", "SinkCache, compiled", "DynamicCache", "attention-sinks 0.4.0",
            "transformers as it is", "sum of as many bytes", "SinkCache, transformers' linear layers",
        ),
        (
            *LINE_STYLES, {"color": PURPLE, "marker": "v", "linestyle": "-"},
            {"color": ORANGE, "marker": "D", "linestyle": "--"}, DENSE_STYLE,
            {"color": SKY, "marker": "P", "linestyle": "-."},
        ),
        strict=True,
    )
) | dict(zip(("concatenating", "rotating the window"), LINE_STYLES[1:], strict=True))  # fmt: skip
RECORD, TARGET = Path("benchmarks/decoding.json"), Path("docs/results/decoding.png")


def plot_times(axes, by_capacity, title, scale):
    """Draw the median of each implementation against tokens held, with the spread over turns."""
    held, names = [int(capacity) for capacity in by_capacity], list(next(iter(by_capacity.values())))
    for name in names:
        runs = np.array([times[name] for times in by_capacity.values()])  # (sizes, turns)
        middle = np.median(runs, axis=1)
        arms = (middle - runs.min(axis=1), runs.max(axis=1) - middle)
        axes.errorbar(held, middle, arms, label=name, **STYLES[name])
    axes.set(title=title, xlabel="tokens held", ylabel="ms per token", xscale="log", yscale=scale)
    axes.set_xticks(held, map(str, held))
    axes.minorticks_off()
    low, high = axes.get_ylim()
    axes.set_ylim(*((low, 9 * high) if scale == "log" else (0, 1.8 * high)))  # room for the legend
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.legend(loc="upper left")


def plot_long(axes, long, key, title, unit):
    """Draw one quantity along the long generation, with its trend."""
    slope, low, high = long[f"{key}_trend"]
    axes.plot(long["tokens_thousands"], long[key], **LINE_STYLES[0] | {"marker": ""})
    axes.set(title=title, xlabel="tokens generated, thousands", ylabel=unit)
    axes.set_ylim(0, 1.25 * max(long[key]))
    trend = f"trend {slope:+.3f} [{low:+.3f}, {high:+.3f}] {unit}\nper thousand tokens"
    axes.annotate(trend, (0.97, 0.06), xycoords="axes fraction", ha="right")


@matplotlib.rc_context(RC_PARAMS)
def main():
    record = json.loads(RECORD.read_text())
    figure = Figure((PAGE, 5.2), layout="constrained")
    (updates, decoding), (time, memory) = figure.subplots(2, 2)
    plot_times(updates, record["updates"], "Cache update alone, all layers", "log")
    plot_times(decoding, record["decoding"], "Whole model, one token", "linear")
    plot_long(time, record["long"], "step_ms", "One long generation: time per token", "ms")
    plot_long(memory, record["long"], "resident_mib", "The same: memory of the process", "MiB")
    figure.suptitle("Decoding with a full cache", fontweight="bold")
    figure.supxlabel(record["about"], fontsize=SMALL)
    TARGET.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(TARGET, dpi=300)


if __name__ == "__main__":
    main()
