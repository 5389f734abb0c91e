"""What a decoding step costs at a full cache: `python benchmarks/decoding.py`.

First the cache alone, with the shapes of the packaged model: our ring, concatenation as `DynamicCache`
does it, and turning the whole window at every token as transformers' former `SinkCache` did. Then the whole
model, ours against `DynamicCache` holding as many tokens. All in one process, in turns, so that a noisy
neighbour meets all.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.utils.logging import disable_progress_bar

from streamlm.cache import SinkCache
from streamlm.models import load_model
from streamlm.perplexity import use_threads
from streamlm.provenance import processor_name
from streamlm.rope import Rotary, rotation

N_SINK = 4


class Rerotating:
    """Shift the window by one and turn all of it, as transformers' former SinkCache did."""

    def __init__(self, config, capacity, inv_freq):
        shape = (1, config.num_key_value_heads, capacity, config.head_dim)
        self.layers = [(torch.randn(shape), torch.randn(shape)) for _ in range(config.num_hidden_layers)]
        back = torch.full((capacity - N_SINK - 1,), -1)  # it held a table with a row per kept key
        self.cos, self.sin = (x.repeat(1, 2) for x in rotation(inv_freq, back, torch.float32))

    def step(self, keys, values):
        for i, (old_keys, old_values) in enumerate(self.layers):
            kept = old_keys[:, :, N_SINK + 1 :]
            a, b = kept.chunk(2, dim=-1)
            kept = kept * self.cos + torch.cat((-b, a), dim=-1) * self.sin
            self.layers[i] = (
                torch.cat((old_keys[:, :, :N_SINK], kept, keys), dim=2),
                torch.cat((old_values[:, :, :N_SINK], old_values[:, :, N_SINK + 1 :], values), dim=2),
            )


class Ours:
    """Our cache without a model."""

    def __init__(self, config, capacity, inv_freq):
        self.cache, self.rotary = SinkCache(config, N_SINK, capacity - N_SINK), Rotary(inv_freq)
        many = torch.randn(1, config.num_key_value_heads, capacity + 1, config.head_dim)
        self.step(many, many)

    def step(self, keys, values):
        self.cache.begin(keys.shape[2], self.rotary, torch.float32, None)
        for i in range(len(self.cache.layers)):
            self.cache.update(keys, values, i)


class Growing:
    """transformers' DynamicCache."""

    def __init__(self, config, capacity, inv_freq):
        self.cache, self.capacity = DynamicCache(config=config), capacity
        self.n_layers = config.num_hidden_layers
        many = torch.randn(1, config.num_key_value_heads, capacity, config.head_dim)
        self.step(many, many)

    def step(self, keys, values):
        for i in range(self.n_layers):
            self.cache.update(keys, values, i)


@torch.inference_mode()
def time_updates(config, inv_freq, capacity, repeats, steps=8):
    """Return milliseconds per step of each cache, (repeats,) by name."""
    caches = {kind.__name__: kind(config, capacity, inv_freq) for kind in (Ours, Growing, Rerotating)}
    one = torch.randn(1, config.num_key_value_heads, 1, config.head_dim)
    times = {name: [] for name in caches}
    for _ in range(repeats + 1):
        for name, cache in caches.items():
            if name == "Growing":
                cache.cache.crop(capacity)
            cache.step(one, one)  # warms up
            start = time.perf_counter()
            for _ in range(steps):
                cache.step(one, one)
            times[name].append(1e3 * (time.perf_counter() - start) / steps)
    return {name: np.array(values[1:]) for name, values in times.items()}  # the first run warms up


@torch.inference_mode()
def time_model(model, cache, stream, start, steps):
    """Return milliseconds per decoded token, greedy choice included."""
    begin = time.perf_counter()
    for t in range(start, start + steps):
        model(stream[:, t : t + 1], past_key_values=cache).logits[:, -1].argmax(-1)
    return 1e3 * (time.perf_counter() - begin) / steps


@torch.inference_mode()
def time_decoding(ours, theirs, stream, capacity, repeats, steps=24):
    """Return milliseconds per token of our model and of DynamicCache, each (repeats,)."""
    sink = SinkCache(ours.config, N_SINK, capacity - N_SINK)
    dynamic = DynamicCache(config=theirs.config)
    ours(stream[:, : capacity + 1], past_key_values=sink)
    theirs(stream[:, :capacity], past_key_values=dynamic)
    mine, other = [], []
    for _ in tqdm(range(repeats + 1), unit="repeat", disable=None):
        dynamic.crop(capacity)
        other.append(time_model(theirs, dynamic, stream, capacity, steps))
        mine.append(time_model(ours, sink, stream, sink.get_seq_length(), steps))
    return np.array(mine[1:]), np.array(other[1:])


def spread(values, digits=2):
    return f"{np.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("data/models/smollm2-135m-instruct"))
    parser.add_argument("--tokens", type=Path, help="default: the model's wikitext tokens under data/")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    tokens = options.tokens or Path("data/tokens") / options.model.name / "wikitext.npy"
    stream = torch.from_numpy(np.load(tokens))[None]

    disable_progress_bar()
    use_threads("auto")
    ours = load_model(options.model, dtype=torch.float32, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"{options.model.name}, {N_SINK} sinks; median [least, most] of {options.repeats} runs")

    print("\ncache update per step, ms:          ours | concatenating | turning the window | ratios")
    for capacity in (512, 1024, 2048, 4096):
        inv_freq = ours.base_model.rotary_emb.inv_freq
        times = time_updates(ours.config, inv_freq, capacity, options.repeats)
        ratios = [times[name] / times["Ours"] for name in ("Growing", "Rerotating")]
        shown = [spread(times[name]) for name in ("Ours", "Growing", "Rerotating")] + [
            spread(x, 1) for x in ratios
        ]
        print(f"capacity {capacity:>5}: " + " | ".join(shown))

    print("\nwhole model per decoded token, ms:  ours | DynamicCache | DynamicCache / ours")
    for capacity in (512, 2048):
        mine, other = time_decoding(ours, theirs, stream, capacity, options.repeats)
        print(f"capacity {capacity:>5}: {spread(mine, 1)} | {spread(other, 1)} | {spread(other / mine)}")


if __name__ == "__main__":
    main()
