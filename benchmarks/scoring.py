"""How much faster a stream is scored in blocks than token by token: `python benchmarks/scoring.py`.

Both score the same text with the same weights, threads and process, in float32, output layer included,
loading excluded, in turns, so that a noisy neighbour meets both; of the tokens that are scored in blocks the
sequential side scores a sample, the first ones behind a full cache. The sequential side is
transformers' own: `DynamicCache`, holding 512 tokens at the start of every run of steps. In the same turns,
blocks in bfloat16: speed, and what it costs in nats. Then speed and memory along one long stream.
"""

import argparse
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from streamlm.cache.models import load_model
from streamlm.config import StreamConfig
from streamlm.measure.device import use_threads
from streamlm.measure.scoring import score_stream
from streamlm.provenance import processor_name
from streamlm.stats import BootstrapConfig, block_bootstrap

CFG = StreamConfig(n_sink=4, window_size=508)
PARTS = 10  # of the long stream


@torch.inference_mode()
def time_sequential(model, ids, n_steps):
    """Return seconds per token of decoding `n_steps` tokens behind CFG.capacity held ones."""
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


def spread(values):
    return f"{np.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--tokens", type=Path, help="default: the model's wikitext tokens under data/")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=64, help="sequential steps per repeat")
    parser.add_argument("--long", type=int, default=20_480, help="tokens of the long stream")
    parser.add_argument("--long-dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    tokens = options.tokens or Path("data/tokens") / options.model.name / "wikitext.npy"
    ids = np.load(tokens)

    disable_progress_bar()
    use_threads("auto")
    ours = load_model(options.model, dtype=torch.float32, device="cpu")
    narrow = load_model(options.model, dtype=torch.bfloat16, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    time_blocks(ours, ids[:1025]), time_blocks(narrow, ids[:1025]), time_sequential(theirs, ids, 8)  # warm up
    blocks, bfloat16, sequential = [], [], []
    for _ in tqdm(range(options.repeats), unit="repeat", disable=None):
        sequential.append(time_sequential(theirs, ids, options.steps))
        seconds, losses = time_blocks(ours, ids[:2049])
        blocks.append(seconds)
        seconds, rounded = time_blocks(narrow, ids[:2049])
        bfloat16.append(seconds)
    ratios = np.array(sequential) / np.array(blocks)
    cost = block_bootstrap(rounded - losses, BootstrapConfig())

    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(
        f"{options.model.name}, {CFG.n_sink}+{CFG.window_size}; "
        f"median [least, most] of {options.repeats} runs"
    )
    print(f"sequential, DynamicCache holding >= {CFG.capacity}: {spread(1 / np.array(sequential))} tokens/s")
    print(f"in blocks:                              {spread(1 / np.array(blocks))} tokens/s")
    print(f"ratio:                                  {spread(ratios)}")
    print(f"in blocks, bfloat16:                    {spread(1 / np.array(bfloat16))} tokens/s")
    print(f"bfloat16 / float32:                     {spread(np.array(blocks) / np.array(bfloat16))}")
    print(
        f"cost of bfloat16: {cost.mean:+.4f} [{cost.low:+.4f}, {cost.high:+.4f}] nats in the mean of "
        f"{len(losses)} tokens (95 %, moving blocks), at most {np.abs(rounded - losses).max():.2f} in one"
    )

    print(f"\none stream of {options.long:,} tokens in {options.long_dtype}, in {PARTS} parts:")
    marks, memory = [(0, time.perf_counter())], psutil.Process().memory_info
    with tqdm(total=options.long, unit="token", disable=None) as bar:

        def note(losses):
            bar.update(len(losses) - bar.n)
            if len(losses) >= len(marks) * options.long / PARTS:
                marks.append((len(losses), time.perf_counter(), memory().rss / 2**20))

        model = {"float32": ours, "bfloat16": narrow}[options.long_dtype]
        _, cache = score_stream(model, ids[: options.long + 1], CFG, on_progress=note)
    for (low, begin, *_), (high, end, resident) in pairwise(marks):
        rate = (high - low) / (end - begin)
        print(f"{low:>9,} to {high:>9,}: {rate:7.2f} tokens/s, {resident:7.1f} MiB resident")
    rate = marks[-1][0] / (marks[-1][1] - marks[0][1])
    print(f"whole: {rate:.2f} tokens/s, {cache.nbytes / 2**20:.1f} MiB of keys and values")


if __name__ == "__main__":
    main()
