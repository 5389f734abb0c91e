"""What decoding and scoring cost on a GPU, at three sizes of model: `make gpu`.

Models have random weights, which cost what trained ones do, in the shapes of SmolLM2-135M, Llama-3.2-1B and
Llama-2-7B, in bfloat16. With a full cache of 4 + 1,020 tokens a decoding step is timed in several ways: ours
eager, compiled, and captured as a CUDA graph; `DynamicCache` and `StaticCache` of as many tokens under SDPA,
which on CUDA is a flash kernel where it can be. They take turns, and every step is awaited. Then scoring in
blocks.

Writes a record, a figure and a page in words.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np
import torch
import transformers
from decoding import spread
from matplotlib.figure import Figure
from tabulate import tabulate
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, StaticCache
from transformers.utils.logging import disable_progress_bar

from streamlm.cache.captured_step import CapturedStep, cuda_graph
from streamlm.cache.compiled import compiled
from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.figures.style import PAGE, RC_PARAMS, SMALL
from streamlm.measure.decoders import Bounded, Decoder, Dense, time_steps
from streamlm.measure.device import device_name, now
from streamlm.measure.latency import share_weights
from streamlm.measure.memory import held_bytes, measure_rise
from streamlm.measure.scoring import score_stream

OURS = "SinkCache, eager"
SHAPES = {
    "135M": (576, 1536, 30, 9, 3, 49_152),  # hidden, of the MLP, layers, heads, key heads, vocabulary
    "1B": (2048, 8192, 16, 32, 8, 128_256),
    "7B": (4096, 11_008, 32, 32, 32, 32_000),
    "tiny": (64, 128, 2, 4, 2, 512),  # to try this file without a GPU
}


def random_model(shape, dtype, device):
    """Return a Llama of this shape with random weights, on the device."""
    hidden, mlp, layers, heads, kv_heads, vocab = shape
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocab,
        max_position_embeddings=8192,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    return model.eval()


class Captured(Bounded):
    """Our step, replayed."""

    def __init__(self, model, cache, ids, capture):
        super().__init__(model, cache, ids)
        self.replay = CapturedStep(model, cache, capture)

    def step(self):
        """See `Decoder`."""
        self.token = self.replay(self.token)[:, -1].argmax(-1, keepdim=True)


class Static(Decoder):
    """A `StaticCache`, which cannot forget a single token: it is filled again before every step."""

    def __init__(self, model, cache, ids):
        super().__init__(model, cache, ids)
        self.ids = ids

    def make_ready(self):
        """See `Decoder`."""
        self.cache.reset()
        self.fill(self.ids[:, :-1])


@torch.no_grad()  # in inference mode, weights could not be compiled with
def measure(name, dtype, device, cfg, repeats, steps, n_scored):
    """Return the record of one shape."""
    plain = random_model(SHAPES[name], dtype, device)
    ids = torch.randint(plain.config.vocab_size, (1, max(n_scored + 1, cfg.capacity)), device=device)
    prompt = ids[:, : cfg.capacity]
    with prepare(share_weights(plain)) as ours:

        def captured(capture):
            return Captured(ours, SinkCache(ours.config, cfg.n_sink, cfg.window_size), prompt, capture)

        decoders = {
            OURS: Bounded.make(ours, cfg.n_sink, prompt),
            "SinkCache, compiled": captured(compiled),
            **({"SinkCache, CUDA graph": captured(cuda_graph)} if device.type == "cuda" else {}),
            "DynamicCache": Dense.make(plain, cfg.n_sink, prompt),
            "StaticCache": Static(
                plain, StaticCache(config=plain.config, max_cache_len=cfg.capacity), prompt
            ),
        }
        times = {way: [] for way in decoders}
        for turn in tqdm(range(repeats + 1), desc=name, unit="turn", disable=None):
            for way, decoder in decoders.items():
                median = float(np.median(time_steps(decoder, steps)))
                if turn:  # the first warms up
                    times[way].append(median)
        return {
            "params": sum(weight.numel() for weight in plain.parameters()),
            "step_ms": times,
            "kv_bytes": {way: held_bytes(decoder.cache) for way, decoder in decoders.items()},
            "step_rise_bytes": {way: step_rise(decoder, device) for way, decoder in decoders.items()},
            "scored_tokens_per_sec": [
                time_scoring(ours, ids[:, : n_scored + 1], cfg) for _ in range(repeats + 1)
            ][1:],
        }


def step_rise(decoder, device):
    """Return by how many bytes memory rises during a step, what makes it ready apart."""
    decoder.make_ready()
    return measure_rise(decoder.step, device)


def time_scoring(model, ids, cfg):
    """Return the tokens per second of scoring all ids (1, N) in blocks."""
    start = now(model.device)
    score_stream(model, ids[0].cpu().numpy(), cfg)
    return (ids.shape[1] - 1) / (now(model.device) - start)


def as_mib(size):
    """Return bytes as a cell of a table in MiB."""
    return "-" if size is None else f"{size / 2**20:.1f}"


def describe(record):
    """Return the page of a record."""
    rows = []
    for name, shape in record["shapes"].items():
        ours = np.array(shape["step_ms"][OURS])
        for way, times in shape["step_ms"].items():
            memory = [shape[key][way] for key in ("kv_bytes", "step_rise_bytes")]
            rows.append([name, way, spread(times), spread(np.array(times) / ours), *map(as_mib, memory)])
    headers = ["model", "way", "ms per token", "times ours, eager", "KV, MiB", "rise in a step, MiB"]
    scored = [
        [name, f"{shape['params'] / 1e9:.2f}", spread(shape["scored_tokens_per_sec"], 0)]
        for name, shape in record["shapes"].items()
    ]
    machine = f"{record['device']}, {record['dtype']}, torch {record['torch']}"
    return f"""# On a GPU

{machine}, transformers {record["transformers"]}; random weights; {record["n_sink"]} sinks and a window
of {record["window_size"]}. Median [min, max] of the medians of runs in turns; written by `make gpu`.

![](gpu.png)

## A decoded token at a full cache

{tabulate(rows, headers, tablefmt="github", disable_numparse=True)}

## Scoring in blocks

{tabulate(scored, ["model", "1e9 parameters", "tokens/s"], tablefmt="github", disable_numparse=True)}
"""


@matplotlib.rc_context(RC_PARAMS)
def draw(record):
    """Return the figure of a record: time per token by way, an axis from zero for each model."""
    shapes = record["shapes"]
    figure = Figure((PAGE, 2.4), layout="constrained")
    for axes, (name, shape) in zip(
        figure.subplots(1, len(shapes), squeeze=False).flat, shapes.items(), strict=True
    ):
        ways = list(shape["step_ms"])[::-1]  # the first on top
        runs = np.array([shape["step_ms"][way] for way in ways])  # (ways, turns)
        middle = np.median(runs, axis=1)
        axes.barh(range(len(ways)), middle, xerr=(middle - runs.min(axis=1), runs.max(axis=1) - middle))
        axes.set_yticks(range(len(ways)), ways if axes.get_subplotspec().is_first_col() else [""] * len(ways))
        axes.set(
            title=f"{name}, {shape['params'] / 1e9:.2f}e9 parameters", xlabel="ms per token", xlim=(0, None)
        )
    figure.suptitle("A decoded token at a full cache", fontweight="bold")
    machine = f"{record['device']}, {record['dtype']}, random weights"
    figure.supxlabel(
        f"{machine}; bars: median of {len(runs[0])} runs in turns, whiskers: all", fontsize=SMALL
    )
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["135M", "1B", "7B"])
    parser.add_argument("--window-size", type=int, default=1020)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="tokens of each run of steps")
    parser.add_argument("--scored", type=int, default=16_384, help="tokens that are scored")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gpu.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/gpu.md"))
    parser.add_argument("--figure", type=Path, default=Path("docs/results/gpu.png"))
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is there that this torch can use; see docs/gpu.md")
    disable_progress_bar()
    cfg = StreamConfig(n_sink=4, window_size=options.window_size)
    record = {
        "device": device_name(str(device)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "bfloat16",
        "n_sink": cfg.n_sink,
        "window_size": cfg.window_size,
        "shapes": {
            name: measure(name, torch.bfloat16, device, cfg, options.repeats, options.steps, options.scored)
            for name in options.shapes
        },
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")
    options.page.write_text(describe(record))
    draw(record).savefig(options.figure, dpi=300)


if __name__ == "__main__":
    main()
