"""Two threads on one prepared model, each with a cache of its own."""

from concurrent.futures import ThreadPoolExecutor

import torch
from conftest import VOCAB, tiny_llama
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache


def stream(model, seed, chunk):
    """Return the logits of 40 tokens, read in chunks, and then of 20 single ones."""
    ids = torch.randint(VOCAB, (1, 60), generator=torch.Generator().manual_seed(seed))
    cache = SinkCache(model.config, 3, 9)
    parts = [*ids[:, :40].split(chunk, 1), *ids[:, 40:].split(1, 1)]
    with torch.inference_mode():
        return torch.cat([model(part, past_key_values=cache).logits for part in parts], dim=1)


def test_threads_on_one_model_do_not_meet():
    work = [(seed, 1 + seed % 13) for seed in range(24)]
    with prepare(tiny_llama()) as model:
        alone = [stream(model, *job) for job in work]
        with ThreadPoolExecutor(4) as pool:
            beside = list(pool.map(lambda job: stream(model, *job), work))
    for one, other in zip(alone, beside, strict=True):
        assert_close(one, other)


def test_generation_streams_from_a_thread_beside_another():
    prompts = [torch.randint(VOCAB, (1, 5 + n), generator=torch.Generator().manual_seed(n)) for n in range(8)]
    with prepare(tiny_llama(eos_token_id=None)) as model:

        def write(prompt):
            cache = SinkCache(model.config, 2, 10)
            mask = torch.ones_like(prompt)
            return model.generate(
                prompt, attention_mask=mask, past_key_values=cache, max_new_tokens=20, do_sample=False
            )

        alone = [write(prompt) for prompt in prompts]
        with ThreadPoolExecutor(4) as pool:
            beside = list(pool.map(write, prompts))
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other)
