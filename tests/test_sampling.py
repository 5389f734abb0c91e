import pytest
import reference
import torch
from conftest import VOCAB, tiny_llama, use_float64_angles
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import byte_tokenizer
from torch.testing import assert_close
from transformers import GenerationConfig

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.commands.writing import ChatSamplingOptions
from streamlm.config import StreamConfig
from streamlm.generate.sampling import Sampler, Sampling, TextStream, Writing, continue_prompts, stop_ids

GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)
CACHE = StreamConfig(n_sink=2, window_size=6)
TOKENIZER = byte_tokenizer()


class Scripted:
    """A sampler whose draws are given."""

    def __init__(self, ids):
        self.ids = iter(ids)

    def __call__(self, logits):
        return next(self.ids)

    def read(self, ids):
        """Scripted draws depend on nothing."""


def write(ids, **options):
    """The pieces and the writing that these draws make."""
    writing = Writing(TOKENIZER, Scripted(ids), **{"max_new_tokens": 1000} | options)
    pieces = []
    while writing.ended_by is None and len(pieces) < len(ids):
        pieces.append(writing.draw(None))
    return pieces, writing


def encode(text):
    return TOKENIZER.encode(text, add_special_tokens=False)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd")))
def test_pieces_are_whole_characters_and_make_the_text(text):
    stream = TextStream(TOKENIZER)
    pieces = [stream.push(token) for token in encode(text)]
    assert "".join(pieces) == text
    assert all(len(piece) <= 1 for piece in pieces)  # a token here is a byte
    assert len(stream.ids) <= 4


@given(st.lists(st.integers(0, 255)))
def test_bytes_that_are_no_text_hold_up_one_character_at_most(ids):
    stream = TextStream(TOKENIZER)
    shown = "".join(stream.push(token) for token in ids)
    whole = TOKENIZER.decode(ids)
    assert whole.startswith(shown)
    assert whole.removeprefix(shown) in ("", *("\ufffd" * n for n in (1, 2, 3)))


class ByteFallback:
    """A tokenizer that shows every byte of an unfinished character, as those of SentencePiece do."""

    def decode(self, ids, **_):
        try:
            return bytes(ids).decode()
        except UnicodeDecodeError as error:
            return bytes(ids[: error.start]).decode() + "\ufffd" * (len(ids) - error.start)


def test_character_in_several_bytes_is_shown_once_and_whole():
    stream, text = TextStream(ByteFallback()), "a😀b😀😀né中 end"
    assert "".join(stream.push(byte) for byte in text.encode()) == text


class Words:
    """A tokenizer that drops the space of a text's first word, as some do."""

    def decode(self, ids, **_):
        return "".join(f" w{i}" for i in ids).removeprefix(" ")


def test_spaces_between_words_are_kept():
    stream = TextStream(Words())
    assert "".join(stream.push(token) for token in (1, 2, 3)) == "w1 w2 w3"


def test_stop_text_across_tokens_is_held_back_and_cut_off():
    pieces, writing = write(encode("one two STOP three"), stop_texts=["STOP", "twice"])
    assert "".join(pieces) == writing.text == "one two "
    assert writing.ended_by == "stop text"
    assert len(writing.tokens) == len("one two STOP")


def test_what_only_began_like_a_stop_text_is_shown():
    pieces, writing = write([*encode("a STOOL, ST"), 256], stop_texts=["STOP"], stop_ids={256})
    assert "".join(pieces) == "a STOOL, ST"
    assert (writing.ended_by, len(writing.tokens)) == ("stop token", 11)
    assert pieces[-1] == "ST"


def test_last_token_that_is_allowed_flushes_what_was_held():
    pieces, writing = write(encode("abST"), stop_texts=["STOP"], max_new_tokens=4)
    assert ("".join(pieces), writing.ended_by) == ("abST", "length")


def test_sampler_takes_the_likeliest_without_temperature():
    assert Sampler(GREEDY, CACHE)(torch.tensor([0.0, 3.0, 1.0])) == 1


def test_draws_have_the_probabilities_of_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.7, seed=0), CACHE)  # the second token passes 0.7
    draws = torch.tensor([sampler(logits) for _ in range(4000)])
    assert set(draws.tolist()) == {0, 1}
    assert_close((draws == 0).double().mean().item(), 0.625, atol=0.03, rtol=0)
    again = Sampler(Sampling(temperature=1.0, top_p=0.7, seed=0), CACHE)
    assert [again(logits) for _ in range(100)] == draws[:100].tolist()


def test_temperature_sharpens():
    sampler = Sampler(Sampling(temperature=0.5, top_p=1.0, seed=0), CACHE)
    draws = torch.tensor([sampler(torch.tensor([0.75, 0.25]).log()) for _ in range(4000)])
    assert_close((draws == 0).double().mean().item(), 0.9, atol=0.03, rtol=0)


def test_draws_are_from_the_likeliest_k():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.95, top_k=3, seed=0), CACHE)
    draws = torch.tensor([sampler(logits) for _ in range(4000)])
    assert set(draws.tolist()) == {0, 1, 2}
    assert_close((draws == 0).double().mean().item(), 0.5 / 0.95, atol=0.03, rtol=0)


@given(st.data())
def test_tokens_in_the_cache_are_penalised_and_no_others(data):
    """Of a stream with 2 sinks and a window of 6, each token that is still held, once; not the excepted."""
    read = data.draw(st.lists(st.integers(0, 19), max_size=30))
    penalty = data.draw(st.sampled_from([0.5, 1.0, 1.3]))
    logits = torch.tensor(data.draw(st.lists(st.floats(-5, 5), min_size=20, max_size=20)))
    sampler = Sampler(Sampling(temperature=0, top_p=1, seed=0, repetition_penalty=penalty), CACHE, {7})
    while read_now := read[: data.draw(st.integers(1, 9))]:
        sampler.read(read_now)
        read = read[len(read_now) :]
        before = logits.clone()
        expected = logits.clone()
        stream = [*sampler.sinks, *sampler.window]
        for token in range(20):
            if token in stream and token != 7:
                expected[token] *= 1 / penalty if logits[token] > 0 else penalty
        assert_close(sampler._penalised(logits), expected)
        assert torch.equal(logits, before)


def test_what_is_penalised_is_what_the_cache_holds():
    sampler = Sampler(Sampling(temperature=0, top_p=1, seed=0, repetition_penalty=2), CACHE)
    for ids in ([1], [2, 3, 4], range(5, 12)):
        sampler.read(list(ids))
    assert sampler.sinks == [1, 2]
    assert list(sampler.window) == [6, 7, 8, 9, 10, 11]
    assert (sampler._penalised(torch.ones(14)) == 0.5).nonzero().flatten().tolist() == [1, 2, *range(6, 12)]


def test_greedy_text_with_a_penalty_is_that_of_the_slow_twin():
    model = use_float64_angles(tiny_llama())
    sampling = Sampling(temperature=0, top_p=1, seed=0, repetition_penalty=1.5)
    writing = Writing(TOKENIZER, Sampler(sampling, CACHE), max_new_tokens=20)
    with prepare(model):
        for _ in continue_prompts(model, SinkCache(model.config, 2, 6), [[5, 7, 11]], [writing]):
            pass
    ids = [5, 7, 11]
    for _ in range(20):
        logits = reference.naive_logits(model, torch.tensor([ids]), [None, None], 2, 6)[0, -1]
        for token in {*ids[:2], *ids[-6:]}:
            logits[token] *= 1 / 1.5 if logits[token] > 0 else 1.5
        ids.append(int(logits.argmax()))
    assert writing.tokens == ids[3:]


def sampled(given=None, **settings):
    """How a chat draws, given these options and these settings of the model."""
    return ChatSamplingOptions(**(given or {})).check(GenerationConfig(**settings))


def test_chat_draws_as_the_model_says_or_else_in_a_way_that_suits_small_models():
    ours = Sampling(temperature=0.2, top_p=0.9, seed=0, repetition_penalty=1.1)
    assert sampled() == sampled(temperature=0.6) == ours  # settings without do_sample are of greedy search
    qwen = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
    assert sampled(**qwen) == Sampling(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, seed=0)
    assert sampled(do_sample=True, top_k=5).repetition_penalty == 1  # what it leaves out stays neutral
    assert sampled({"top_p": 0.5, "seed": 3}, **qwen).top_p == 0.5
    assert sampled({"temperature": 1.0}) == Sampling(
        temperature=1.0, top_p=0.9, seed=0, repetition_penalty=1.1
    )


def test_chat_at_temperature_zero_takes_the_likeliest_token_exactly():
    assert sampled({"temperature": 0.0}, do_sample=True, repetition_penalty=1.3) == Sampling(
        temperature=0.0, top_p=1.0, seed=0
    )
    assert sampled({"temperature": 0.0, "repetition_penalty": 1.3}).repetition_penalty == 1.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": -1}, "top_k must be from 0 to 1000000000000, got -1; 0 draws from all"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 0.01 to 100, got 0.0; 1 penalises"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be from 0.01 to 100, got nan"),
        ({"temperature": -1.0}, "temperature must be from 1e-08 to 10000.0, got -1.0; 0 takes"),
        ({"top_p": 0.0}, "top_p must be from 1e-06 to 1, got 0.0; 1 draws"),
        ({"top_p": 1.5}, "top_p must be from 1e-06 to 1, got 1.5"),
    ],
)
def test_sampling_out_of_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**{"temperature": 1.0, "top_p": 1.0, "seed": 0} | changes)


def slow_greedy(model, prompt, n_new, n_sink, window_size):
    """Greedy tokens of the slow twin, which reads everything again for each."""
    ids = list(prompt)
    for _ in range(n_new):
        logits = reference.naive_logits(model, torch.tensor([ids]), [None, None], n_sink, window_size)
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_batch_writes_what_each_prompt_alone_would():
    model = use_float64_angles(tiny_llama())
    prompts = [[5, 7, 11], list(range(3, 23)), [9]]
    limits = [12, 3, 8]  # rows end one after the other
    alone = [slow_greedy(model, *row, 2, 6) for row in zip(prompts, limits, strict=True)]
    writings = [Writing(TOKENIZER, Sampler(GREEDY, CACHE), max_new_tokens=limit) for limit in limits]
    cache = SinkCache(model.config, n_sink=2, window_size=6)
    with prepare(model):
        for _ in continue_prompts(model, cache, prompts, writings):
            pass
    assert [writing.tokens for writing in writings] == alone
    assert cache._stores[0].keys.shape[1] == 1  # the rows that ended made room


def test_prompt_longer_than_a_pass_is_read_in_passes(monkeypatch):
    monkeypatch.setattr("streamlm.generate.sampling.CHUNK", 4)
    model = use_float64_angles(tiny_llama())
    prompts = [[i % VOCAB for i in range(11)], [3, 1]]
    writings = [Writing(TOKENIZER, Sampler(GREEDY, CACHE), max_new_tokens=5) for _ in prompts]
    with prepare(model):
        for _ in continue_prompts(model, SinkCache(model.config, 2, 6), prompts, writings):
            pass
    assert [writing.tokens for writing in writings] == [slow_greedy(model, p, 5, 2, 6) for p in prompts]


def test_stop_tokens_are_those_of_model_and_tokenizer():
    model = tiny_llama()
    model.generation_config.eos_token_id = [2, 3]
    assert stop_ids(model, byte_tokenizer(eos_token="<s>")) == {2, 3, 256}
    model.generation_config.eos_token_id = None
    assert stop_ids(model, TOKENIZER) == set()
