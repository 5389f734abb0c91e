"""What a decoding step costs at a full cache: `make bench-decoding`.

1. The cache alone, with the shapes of the packaged model: our store, concatenation as `DynamicCache` does it,
   and rotating the whole window at every token as transformers' former `SinkCache` did.
2. The whole model: ours; ours on transformers' own linear layers, which shows what the cache alone is worth;
   `DynamicCache` holding as many tokens, on our linear layers; the PyPI package `attention-sinks`, which runs
   in an environment and a process of its own on the same weights, text and threads (its losses first: both
   keep the same tokens); transformers as it is, `DynamicCache` on its own linear layers; ours with a compiled
   step; and, as the least that a step can take, the plain sum of as many bytes as the weights and the cache
   have.
3. A long generation with our cache: time and resident memory of every token.

All are timed in turns, so that a busy machine slows all of them; a ratio is taken within a turn.
Prints the tables and writes everything to a JSON file, which `plot_decoding.py` draws.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from tabulate import tabulate
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache, StoppingCriteria, StoppingCriteriaList
from transformers.utils.logging import disable_progress_bar

from streamlm.cache.models import read_model
from streamlm.cache.prepare import switch
from streamlm.cache.rope import Rotary
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import Compute
from streamlm.measure.open_model import open_model
from streamlm.provenance import processor_name
from streamlm.stats import trend

N_SINK = 4
OURS, COMPILED = "SinkCache", "SinkCache, compiled"
UNCHANGED = "SinkCache, transformers' linear layers"
DYNAMIC, THEIRS, STOCK = "DynamicCache", "attention-sinks 0.4.0", "transformers as it is"
FLOOR = "sum of as many bytes"
CONCATENATE, ROTATE_ALL = "concatenating", "rotating the window"
RUN = 100  # tokens; of the long generation, medians of such runs are kept


class Ours:
    """Our cache without a model."""

    def __init__(self, config, capacity, inv_freq):
        self.cache = SinkCache(config, N_SINK, capacity - N_SINK)
        self.rotaries = [Rotary(inv_freq)] * len(self.cache.layers)
        many = torch.randn(1, config.num_key_value_heads, capacity + 1, config.head_dim)
        self.step(many, many)

    def step(self, keys, values):
        self.cache._begin_pass(keys.shape[2], self.rotaries, torch.float32, None)
        for i in range(len(self.cache.layers)):
            self.cache.update(keys, values, i)
        self.cache._end_pass()


class Concatenating:
    """transformers' DynamicCache."""

    def __init__(self, config, capacity, inv_freq):
        self.cache = DynamicCache(config=config)
        self.n_layers = config.num_hidden_layers
        many = torch.randn(1, config.num_key_value_heads, capacity, config.head_dim)
        self.step(many, many)

    def step(self, keys, values):
        for i in range(self.n_layers):
            self.cache.update(keys, values, i)


class RotatingAll:
    """Shift the window by one and rotate all of it, as transformers' former SinkCache did."""

    def __init__(self, config, capacity, inv_freq):
        shape = (1, config.num_key_value_heads, capacity, config.head_dim)
        self.layers = [(torch.randn(shape), torch.randn(shape)) for _ in range(config.num_hidden_layers)]
        back = torch.full((capacity - N_SINK - 1,), -1)  # it held a table with a row for every kept key
        rotation = Rotary(inv_freq).by(back, torch.float32)
        self.cos, self.sin = (x.repeat(1, 2) for x in (rotation.cos, rotation.sin))

    def step(self, keys, values):
        for i, (old_keys, old_values) in enumerate(self.layers):
            kept = old_keys[:, :, N_SINK + 1 :]
            a, b = kept.chunk(2, dim=-1)
            kept = kept * self.cos + torch.cat((-b, a), dim=-1) * self.sin
            self.layers[i] = (
                torch.cat((old_keys[:, :, :N_SINK], kept, keys), dim=2),
                torch.cat((old_values[:, :, :N_SINK], old_values[:, :, N_SINK + 1 :], values), dim=2),
            )


@torch.inference_mode()
def time_updates(config, inv_freq, capacity, repeats, steps=16):
    """Return milliseconds per step of each cache, a list of `repeats` by name."""
    caches = {
        OURS: Ours(config, capacity, inv_freq),
        CONCATENATE: Concatenating(config, capacity, inv_freq),
        ROTATE_ALL: RotatingAll(config, capacity, inv_freq),
    }
    one = torch.randn(1, config.num_key_value_heads, 1, config.head_dim)
    times = {name: [] for name in caches}
    for _ in range(repeats):
        caches[CONCATENATE].cache.crop(capacity)
        for name, cache in caches.items():
            cache.step(one, one)  # warms up
            start = time.perf_counter()
            for _ in range(steps):
                cache.step(one, one)
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return times


class InProcess:
    """A model of ours or of transformers', stepped along the stream with its cache full."""

    def __init__(self, model, cache, stream, fill):
        self.model, self.cache, self.stream, self.position = model, cache, stream, fill
        model(stream[:, :fill], past_key_values=cache)

    def steps(self, count):
        """Return milliseconds per token, greedy choice included."""
        begin = time.perf_counter()
        for t in range(self.position, self.position + count):
            self.model(self.stream[:, t : t + 1], past_key_values=self.cache).logits[:, -1].argmax(-1)
        self.position += count
        return 1e3 * (time.perf_counter() - begin) / count


class Growing(InProcess):
    """DynamicCache, cut back before every run so that it holds as many tokens as ours on average."""

    def steps(self, count):
        """See `InProcess.steps`."""
        self.cache.crop(self.position - count // 2)
        ms = super().steps(count)
        self.position -= count
        return ms


class Sum:
    """The sum of as many numbers as a step reads: all weights, and the keys and values of the cache."""

    def __init__(self, model, capacity):
        config = model.config
        n_kept = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * capacity
        self.numbers = torch.ones(sum(weight.numel() for weight in model.parameters()) + n_kept)

    def steps(self, count):
        """See `InProcess.steps`."""
        begin = time.perf_counter()
        for _ in range(count):
            self.numbers.sum()
        return 1e3 * (time.perf_counter() - begin) / count


class Worker:
    """attention-sinks in a process of its own; waits without work between commands."""

    def __init__(self, python, model, tokens):
        script = Path(__file__).parent / "attention_sinks_worker.py"
        threads = str(torch.get_num_threads())
        command = [python, script, "--model", model, "--tokens", tokens, "--threads", threads]
        self.process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **command):
        """Send a command; return the answer."""
        print(json.dumps(command), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("the attention-sinks process ended; run it by hand to see why")
        return json.loads(answer)

    def steps(self, count):
        """See `InProcess.steps`."""
        return self.ask(do="steps", count=count)


@torch.inference_mode()
def time_decoding(ours, unchanged, compiled, plain, stock, worker, stream, capacity, repeats, steps=16):
    """Return milliseconds per token of each, a list of `repeats` by name."""
    worker.ask(do="load", window=capacity - N_SINK - 1)  # trims after the step: one less of ours
    worker.ask(do="fill", stop=capacity)
    steppers = {
        OURS: InProcess(ours, SinkCache(ours.config, N_SINK, capacity - N_SINK), stream, capacity),
        UNCHANGED: InProcess(unchanged, SinkCache(ours.config, N_SINK, capacity - N_SINK), stream, capacity),
        COMPILED: InProcess(compiled, SinkCache(ours.config, N_SINK, capacity - N_SINK), stream, capacity),
        DYNAMIC: Growing(plain, DynamicCache(config=plain.config), stream, capacity),
        THEIRS: worker,
        STOCK: Growing(stock, DynamicCache(config=stock.config), stream, capacity),
        FLOOR: Sum(ours, capacity),
    }
    times = {name: [] for name in steppers}
    for turn in tqdm(range(repeats + 1), unit="turn", disable=None):
        for name, stepper in steppers.items():
            ms = stepper.steps(steps)
            if turn:  # the first warms up
                times[name].append(ms)
    return times


@torch.inference_mode()
def compare_losses(ours, worker, stream, capacity, count):
    """Return the largest difference of the losses of `count` tokens decoded one by one, nats."""
    worker.ask(do="load", window=capacity - N_SINK - 1)
    theirs = worker.ask(do="losses", count=count)
    cache = SinkCache(ours.config, N_SINK, capacity - N_SINK)
    logits = [ours(stream[:, t : t + 1], past_key_values=cache).logits[:, -1] for t in range(count)]
    losses = torch.nn.functional.cross_entropy(torch.cat(logits), stream[0, 1 : count + 1], reduction="none")
    return float((losses - torch.tensor(theirs)).abs().max())


class Marks(StoppingCriteria):
    """Note time and resident memory after every token; never stop."""

    def __init__(self, total):
        self.seconds, self.bytes = [], []
        self.process, self.bar = psutil.Process(), tqdm(total=total, unit="token", disable=None)

    def __call__(self, input_ids, scores, **_):
        self.seconds.append(time.perf_counter())
        self.bytes.append(self.process.memory_info().rss)
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool)


@torch.inference_mode()
def measure_long(model, stream, capacity, n_tokens):
    """Return time and resident memory along one long `generate`, and their trends."""
    cache, marks = SinkCache(model.config, N_SINK, capacity - N_SINK), Marks(n_tokens)
    prompt = stream[:, :capacity]
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        past_key_values=cache,
        max_new_tokens=n_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([marks]),
    )
    step_ms = 1e3 * np.diff(marks.seconds)
    whole = len(step_ms) // RUN * RUN
    times = np.median(step_ms[:whole].reshape(-1, RUN), axis=1)
    memory = np.array(marks.bytes)[1 : whole + 1].reshape(-1, RUN).max(axis=1) / 2**20
    thousands = RUN / 1000 * (np.arange(len(times)) + 0.5)
    return {
        "tokens_thousands": thousands.tolist(),
        "step_ms": times.tolist(),
        "resident_mib": memory.tolist(),
        "cache_bytes": cache.nbytes,
        # Slope, then its 95 % interval, per thousand tokens.
        "step_ms_trend": [*trend(times, thousands).values()],
        "resident_mib_trend": [*trend(memory, thousands).values()],
    }


def spread(values, digits=2):
    """Return median [min, max]."""
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def table(by_capacity, names):
    """Return a markdown table: each name's times, and how many times ours the others take."""
    rows = []
    for capacity, times in by_capacity.items():
        ratios = [spread(np.array(times[name]) / np.array(times[OURS])) for name in names[1:]]
        rows.append([capacity, *(spread(times[name]) for name in names), *ratios])
    headers = ["held", *(f"{name}, ms" for name in names), *(f"{name} / ours" for name in names[1:])]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def ratio_table(by_capacity, names, pairs):
    """Return a markdown table: the times of `names`, and the ratios of `pairs`."""
    rows = [
        [
            capacity,
            *(spread(times[name]) for name in names),
            *(spread(np.array(times[above]) / np.array(times[below])) for above, below in pairs),
        ]
        for capacity, times in by_capacity.items()
    ]
    headers = ["held", *(f"{name}, ms" for name in names), *(f"{above} / {below}" for above, below in pairs)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def print_trends(long, n_tokens):
    """Print the median of time and memory along the long generation, with their trends."""
    for name, unit in (("step_ms", "ms"), ("resident_mib", "MiB")):
        slope, low, high = long[f"{name}_trend"]
        print(
            f"\nGenerating {n_tokens} tokens with {N_SINK}+508: {np.median(long[name]):.2f} {unit}, "
            f"trend {slope:+.4f} [{low:+.4f}, {high:+.4f}] {unit} per 1,000 tokens"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--tokens", type=Path, help="default: the model's wikitext tokens under data/")
    parser.add_argument("--theirs", type=Path, required=True, help="python that has attention-sinks")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--losses", type=int, default=700, help="tokens on which losses are compared")
    parser.add_argument("--long", type=int, default=20_000, help="tokens of the long generation")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/decoding.json"))
    options = parser.parse_args()
    tokens = options.tokens or Path("data/tokens") / options.model.name / "wikitext.npy"
    stream = torch.from_numpy(np.load(tokens))[None]

    disable_progress_bar()
    opened = open_model(options.model, Compute(device="cpu"))
    ours = opened.model
    compiled = open_model(options.model, Compute(device="cpu"), compile=True).model
    plain = read_model(options.model, dtype=torch.float32, device="cpu")
    stock = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    unchanged = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    switch(unchanged)
    worker = Worker(options.theirs, options.model, tokens)
    machine = f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32"
    about = f"{opened.title}; {machine}; median [min, max] of {options.repeats} turns"
    print(about)

    inv_freq = ours.base_model.rotary_emb.inv_freq
    updates = {n: time_updates(ours.config, inv_freq, n, options.repeats) for n in (512, 1024, 2048, 4096)}
    print("\nCache update, per step:\n")
    print(table(updates, [OURS, CONCATENATE, ROTATE_ALL]))

    difference = compare_losses(ours, worker, stream, 512, options.losses)
    print(f"\nLosses of {options.losses} tokens with {N_SINK}+508, ours and {THEIRS}:", end=" ")
    print(f"they differ by at most {difference:.1e} nats")
    decoding = {
        n: time_decoding(ours, unchanged, compiled, plain, stock, worker, stream, n, options.repeats)
        for n in (512, 1024, 2048)
    }
    print("\nThe cache alone, all on transformers' linear layers, per decoded token:\n")
    others = [(THEIRS, UNCHANGED), (STOCK, UNCHANGED)]
    print(ratio_table(decoding, [UNCHANGED, THEIRS, STOCK], others))
    print("\nWhole model, per decoded token:\n")
    print(table(decoding, [OURS, DYNAMIC, THEIRS, STOCK]))
    print("\nCompiled, and the least that reading weights and cache takes:\n")
    below = [(STOCK, COMPILED), (THEIRS, COMPILED), (OURS, COMPILED), (OURS, FLOOR), (COMPILED, FLOOR)]
    print(ratio_table(decoding, [COMPILED, FLOOR], below))

    del unchanged, compiled, plain, stock
    worker.process.stdin.close()
    long = measure_long(ours, stream, 512, options.long)
    print_trends(long, options.long)
    record = {"about": about, "updates": updates, "losses_differ_nats": difference, "decoding": decoding}
    options.output.write_text(json.dumps(record | {"long": long}, indent=1) + "\n")


if __name__ == "__main__":
    main()
