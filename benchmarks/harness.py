"""How much faster lm_eval's requests are scored than token by token: `python benchmarks/harness.py`.

`--model streamlm` scores a text as one rolling request, and a question with four answers after one context.
The same model decodes a sample of tokens one by one through a full `SinkCache`. All of it is in one process
and in turns, so that a busy machine slows all; loading is left out. Without the packaged model, a small
random one is used.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from decoding import spread
from tqdm import tqdm

from streamlm.cache.sink_cache import SinkCache
from streamlm.provenance import processor_name

ROOT = Path(__file__).parents[1]
SMALL = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "max_position_embeddings": 8192,
}
PROSE = "The rain fell on us all. We went home, and nobody said a word! Was it late? The clock had stopped. "
CHOICES = [" It rained all day.", " Nobody had come home.", " The clock was right.", " We all stayed there."]


def make_small(folder):
    """Write a small random model with a tokenizer of bytes, as the tests have it."""
    sys.path.append(str(ROOT / "tests"))
    from tiny_model import write_tiny_model

    return write_tiny_model(folder, **SMALL)


def some_text(lm, tokens, n_tokens):
    """Return a text of about `n_tokens` tokens: the beginning of an array of them, or prose."""
    if tokens.exists():
        return lm.tokenizer.decode(np.load(tokens)[:n_tokens])
    return PROSE * (n_tokens // len(lm.tok_encode(PROSE)))


def time_rolling(lm, text):
    """Return seconds per token of a text that is one request."""
    start = time.perf_counter()
    lm.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    return (time.perf_counter() - start) / len(lm.tok_encode(text))


def time_choices(lm, context):
    """Return seconds per token of a question: each answer is a stream with the whole context."""
    n_tokens = sum(len(lm.tok_encode(context + choice)) for choice in CHOICES)
    start = time.perf_counter()
    lm.loglikelihood([SimpleNamespace(args=(context, choice)) for choice in CHOICES], disable_tqdm=True)
    return (time.perf_counter() - start) / n_tokens


@torch.inference_mode()
def time_steps(lm, ids, n_steps):
    """Return seconds per token of decoding `n_steps` tokens through a full cache."""
    stream = torch.tensor([ids], device=lm.device)
    cache = SinkCache(lm.model.config, lm.cfg.n_sink, lm.cfg.window_size)
    lm.model(stream[:, : lm.cfg.capacity], past_key_values=cache, logits_to_keep=1)
    start = time.perf_counter()
    for t in range(lm.cfg.capacity, lm.cfg.capacity + n_steps):
        logits = lm.model(stream[:, t : t + 1], past_key_values=cache).logits[:, -1]
        float(torch.nn.functional.cross_entropy(logits, stream[:, t + 1]))
    return (time.perf_counter() - start) / n_steps


def compare(lm, text, repeats, n_steps):
    """Print the speeds and their ratios."""
    ids = lm.tok_encode(text)
    context = lm.tokenizer.decode(ids[: len(ids) // 2])
    turns = []
    for _ in tqdm(range(repeats + 1), unit="repeat", disable=None):
        turns.append((time_steps(lm, ids, n_steps), time_rolling(lm, text), time_choices(lm, context)))
    steps, rolling, choices = np.array(turns[1:]).T  # the first one warms up
    print(f"token by token, cache full:      {spread(1 / steps)} tokens/s")
    print(f"one text of {len(ids):,} tokens:        {spread(1 / rolling)} tokens/s")
    print(f"ratio:                           {spread(steps / rolling)}")
    print(f"four answers to {len(ids) // 2:,} tokens:    {spread(1 / choices)} tokens/s")
    print(f"ratio:                           {spread(steps / choices)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=ROOT / "data/models/smollm2-135m-instruct")
    parser.add_argument("--window-size", type=int, default=508)
    parser.add_argument("--tokens", type=int, default=2048, help="of the text")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=64, help="tokens one by one, in each repeat")
    options = parser.parse_args()
    from streamlm.harness.model import StreamLM  # the extra eval brings what it needs

    with tempfile.TemporaryDirectory() as place:
        folder = options.model if options.model.exists() else make_small(Path(place) / "small-random")
        lm = StreamLM(folder, window_size=options.window_size, device="cpu")
    text = some_text(lm, ROOT / "data/tokens" / options.model.name / "wikitext.npy", options.tokens)
    print(f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, float32")
    print(f"{folder.name}, {lm.cfg}; median [min, max] of {options.repeats} runs")
    compare(lm, text, options.repeats, options.steps)


if __name__ == "__main__":
    main()
