"""How much faster a stream is scored in blocks than token by token: `python benchmarks/scoring.py`.

Both score the same text with the same weights, threads and process, in float32, output layer included,
loading excluded, in turns, so that a busy machine slows both. Token by token is transformers' own way, with a
`DynamicCache` that holds 512 tokens at the start of every run of steps; it scores a sample of the tokens that
are scored in blocks, the first ones after a full cache. With `--theirs`, the package attention-sinks does the
same in an environment of its own. In the same turns, blocks in bfloat16: speed, and what it costs in nats;
and a product of large square matrices by each library that torch carries, whose faster one is the peak that
scoring in blocks is compared with. Then speed and memory along one long stream.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from cost import MEASURED as SHAPE
from decoding import Worker, spread
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from streamlm.cache import products
from streamlm.config import Compute, StreamConfig
from streamlm.measure.open_model import open_model
from streamlm.measure.scoring import score_stream
from streamlm.provenance import processor_name
from streamlm.stats import BootstrapConfig, block_bootstrap

CFG = StreamConfig(n_sink=4, window_size=508)
PARTS = 10  # of the long stream


@torch.inference_mode()
def time_sequential(model, ids, n_steps):
    """Return seconds per token of decoding `n_steps` tokens after CFG.capacity others."""
    stream = torch.from_numpy(ids)[None]
    cache = DynamicCache(config=model.config)
    model(stream[:, : CFG.capacity], past_key_values=cache)
    start = time.perf_counter()
    for t in range(CFG.capacity, CFG.capacity + n_steps):
        logits = model(stream[:, t : t + 1], past_key_values=cache).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, stream[:, t + 1])
    return (time.perf_counter() - start) / n_steps


def time_blocks(model, ids):
    """Return seconds per token of scoring `ids` in blocks, and the losses."""
    start = time.perf_counter()
    losses, _ = score_stream(model, ids, CFG)
    return (time.perf_counter() - start) / len(losses), losses


def time_peak(size=4096):
    """Return the most operations per second that a product of square matrices reaches by any library."""
    x, best = torch.randn(size, size), 0.0
    for product in (torch.nn.functional.linear, products.linear):
        start = time.perf_counter()
        with torch.inference_mode():
            product(x, x)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def compare_speeds(ours, rounded, theirs, worker, ids, repeats, n_steps):
    """Print the speeds in blocks, in blocks in bfloat16 and token by token, and the cost of bfloat16."""
    for model in (ours, rounded):  # warm up
        time_blocks(model, ids[:1025])
    time_sequential(theirs, ids, 8)
    if worker is not None:
        worker.ask(do="load", window=CFG.window_size - 1)  # trims after the step: one less of ours
        worker.ask(do="fill", stop=CFG.capacity)
        worker.steps(8)
    blocks, bfloat16, sequential, package, peak = [], [], [], [], []
    for _ in tqdm(range(repeats), unit="repeat", disable=None):
        sequential.append(time_sequential(theirs, ids, n_steps))
        seconds, losses = time_blocks(ours, ids[:2049])
        blocks.append(seconds)
        seconds, rounded_losses = time_blocks(rounded, ids[:2049])
        bfloat16.append(seconds)
        peak.append(time_peak())
        if worker is not None:
            package.append(worker.steps(n_steps) / 1e3)
    blocks, bfloat16, sequential, package, peak = map(np.array, (blocks, bfloat16, sequential, package, peak))
    rates = SHAPE.flops / blocks
    added = rounded_losses - losses
    cost = block_bootstrap(added, BootstrapConfig())
    print(f"sequential, DynamicCache holding >= {CFG.capacity}: {spread(1 / sequential)} tokens/s")
    print(f"in blocks:                              {spread(1 / blocks)} tokens/s")
    print(f"ratio:                                  {spread(sequential / blocks)}")
    if worker is not None:
        print(f"attention-sinks 0.4.0:                  {spread(1 / package)} tokens/s")
        print(f"ratio:                                  {spread(package / blocks)}")
    print(f"product of 4,096 x 4,096 matrices:      {spread(peak / 1e9)} GFLOP/s")
    print(f"in blocks, {SHAPE.flops / 1e9:.2f} GFLOP a token:        {spread(rates / 1e9)} GFLOP/s")
    print(f"share of the peak:                      {spread(100 * rates / peak)} %")
    print(f"in blocks, bfloat16:                    {spread(1 / bfloat16)} tokens/s")
    print(f"bfloat16 / float32:                     {spread(blocks / bfloat16)}")
    print(
        f"cost of bfloat16: {cost.mean:+.4f} [{cost.low:+.4f}, {cost.high:+.4f}] nats in the mean of "
        f"{len(losses)} tokens (95 %, moving blocks), at most {np.abs(added).max():.2f} in one"
    )


def follow_stream(model, ids):
    """Print speed and memory along one long stream."""
    marks, memory = [(0, time.perf_counter())], psutil.Process().memory_info
    with tqdm(total=len(ids) - 1, unit="token", disable=None) as bar:

        def note(losses):
            bar.update(len(losses) - bar.n)
            if len(losses) >= len(marks) * (len(ids) - 1) / PARTS:
                marks.append((len(losses), time.perf_counter(), memory().rss / 2**20))

        _, cache = score_stream(model, ids, CFG, on_progress=note)
    for (low, begin, *_), (high, end, resident) in pairwise(marks):
        rate = (high - low) / (end - begin)
        print(f"{low:>9,} to {high:>9,}: {rate:7.2f} tokens/s, {resident:7.1f} MiB resident")
    rate = marks[-1][0] / (marks[-1][1] - marks[0][1])
    print(f"whole: {rate:.2f} tokens/s, {cache.nbytes / 2**20:.1f} MiB of keys and values")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--tokens", type=Path, help="default: the model's wikitext tokens under data/")
    parser.add_argument("--theirs", type=Path, help="python that has attention-sinks")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=64, help="sequential steps per repeat")
    parser.add_argument("--long", type=int, default=20_480, help="tokens of the long stream")
    parser.add_argument("--long-dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    tokens = options.tokens or Path("data/tokens") / options.model.name / "wikitext.npy"
    ids = np.load(tokens)

    disable_progress_bar()
    models = {
        dtype: open_model(options.model, Compute(dtype=dtype, device="cpu")).model
        for dtype in ("float32", "bfloat16")
    }
    theirs = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(
        f"{options.model.name}, {CFG.n_sink}+{CFG.window_size}; median [min, max] of {options.repeats} runs"
    )
    worker = None if options.theirs is None else Worker(options.theirs, options.model, tokens)
    compare_speeds(*models.values(), theirs, worker, ids, options.repeats, options.steps)
    if worker is not None:
        worker.process.stdin.close()
    print(f"\none stream of {options.long:,} tokens in {options.long_dtype}, in {PARTS} parts:")
    follow_stream(models[options.long_dtype], ids[: options.long + 1])


if __name__ == "__main__":
    main()
