import pytest
import reference
import torch
from conftest import VOCAB, tiny_llama, use_float64_angles
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import byte_tokenizer
from torch.testing import assert_close

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.generate.sampling import Sampler, Sampling, TextStream, Writing, continue_prompts, stop_ids

GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)
TOKENIZER = byte_tokenizer()


class Scripted:
    """A sampler whose draws are given."""

    def __init__(self, ids):
        self.ids = iter(ids)

    def __call__(self, logits):
        return next(self.ids)


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
    assert Sampler(GREEDY)(torch.tensor([0.0, 3.0, 1.0])) == 1


def test_draws_have_the_probabilities_of_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.7, seed=0))  # the second token passes 0.7
    draws = torch.tensor([sampler(logits) for _ in range(4000)])
    assert set(draws.tolist()) == {0, 1}
    assert_close((draws == 0).double().mean().item(), 0.625, atol=0.03, rtol=0)
    again = Sampler(Sampling(temperature=1.0, top_p=0.7, seed=0))
    assert [again(logits) for _ in range(100)] == draws[:100].tolist()


def test_temperature_sharpens():
    sampler = Sampler(Sampling(temperature=0.5, top_p=1.0, seed=0))
    draws = torch.tensor([sampler(torch.tensor([0.75, 0.25]).log()) for _ in range(4000)])
    assert_close((draws == 0).double().mean().item(), 0.9, atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "temperature must be >= 0, got -1.0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
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
    writings = [Writing(TOKENIZER, Sampler(GREEDY), max_new_tokens=limit) for limit in limits]
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
    writings = [Writing(TOKENIZER, Sampler(GREEDY), max_new_tokens=5) for _ in prompts]
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
