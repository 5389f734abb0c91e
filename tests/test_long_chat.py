"""The packaged instruct model in a conversation far past its trained length: it still answers."""

from pathlib import Path

import pytest
import torch
from test_chat import check_pieces
from transformers import DynamicCache

from streamlm.cache.models import load_model, read_model
from streamlm.cache.sink_cache import SinkCache
from streamlm.generate import chat
from streamlm.generate.chat import ChatTemplate, Conversation
from streamlm.generate.sampling import Sampling
from streamlm.measure.device import use_threads
from streamlm.measure.scoring import CHUNK
from streamlm.sources.corpus import read_sample
from streamlm.sources.tokens import read_tokenizer

pytestmark = pytest.mark.slow
DATA = Path(__file__).parent.parent / "data"
MODEL = DATA / "models" / "smollm2-135m-instruct"
TRAINED, SPOKEN, WINDOW = 8192, 12_000, 1020
PASSAGE = 900  # tokens of a Wikipedia article in a turn
ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.",
    "How many days are there in a week?": "There are 7 days in a week.",
    "What is the opposite of hot?": "The opposite of hot is cold.",
    "What colour is the sky on a clear day?": "The sky on a clear day is blue.",
    "Repeat this sentence: The old ship left the harbour before the storm came.": (
        "The old ship left the harbour before the storm came."
    ),
}


@pytest.mark.parametrize("system", [None, "You answer in one sentence."])
def test_turns_are_the_tokens_of_the_whole_conversation(system):
    check_pieces(read_tokenizer(MODEL), system)


@torch.inference_mode()
def answer_loss(model, cache, question, answer):
    """Mean loss in nats of the tokens of an answer after its question."""
    hidden = model.base_model(torch.tensor([question + answer]), past_key_values=cache).last_hidden_state[0]
    logits = model.get_output_embeddings()(hidden[-len(answer) - 1 : -1]).float()
    return torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()


@torch.inference_mode()
def read_dense(ids):
    """The plain model, and its dense cache of these ids."""
    model = read_model(MODEL, dtype=torch.bfloat16, device="cpu")
    cache = DynamicCache(config=model.config)
    for part in torch.tensor([ids]).split(CHUNK, 1):
        model.base_model(part, past_key_values=cache)
    return model, cache


def test_streaming_answers_past_the_trained_length_as_in_a_new_conversation(monkeypatch):
    """After 12,000 tokens of talk about Wikipedia, known answers cost what they cost at the beginning.

    Dense, which has read the very same tokens, finds them far less likely.
    """
    use_threads("auto")
    tokenizer = read_tokenizer(MODEL)
    template = ChatTemplate(tokenizer)
    model = load_model(MODEL, dtype=torch.bfloat16, device="cpu")
    fed, read = [], chat.next_logits
    monkeypatch.setattr(
        chat, "next_logits", lambda model, cache, ids: fed.extend(ids[0].tolist()) or read(model, cache, ids)
    )

    def new_cache():
        return SinkCache(model.config, template.n_sink(), WINDOW)

    conversation = Conversation(
        model, template, new_cache(), Sampling(temperature=0.0, top_p=1.0, seed=0), max_new_tokens=12
    )
    articles = iter(read_sample(DATA / "wikitext" / "sample.json").documents)
    while len(fed) < SPOKEN:
        passage = tokenizer.encode(next(articles).text, add_special_tokens=False, verbose=False)[:PASSAGE]
        question = f"{tokenizer.decode(passage)}\n\nWhat is this text about? Answer in one sentence."
        assert "".join(conversation.ask(question)).strip()
    seen, state = list(fed), conversation.cache.state_dict()
    assert len(seen) == conversation.cache.get_seq_length() > TRAINED
    assert conversation.cache.n_held == template.n_sink() + WINDOW

    plain, dense_cache = read_dense(seen)
    losses = {"new": [], "streaming": [], "dense": []}
    for question, expected in ANSWERS.items():
        answer = tokenizer.encode(expected, add_special_tokens=False)
        turn = conversation.unread + template.turn(question)
        losses["new"].append(answer_loss(model, new_cache(), template.opening(question), answer))
        streaming = new_cache()
        streaming.load_state_dict(state)
        losses["streaming"].append(answer_loss(model, streaming, turn, answer))
        losses["dense"].append(answer_loss(plain, dense_cache, turn, answer))
        dense_cache.crop(len(seen))
    mean = {name: sum(values) / len(values) for name, values in losses.items()}
    assert mean["streaming"] < mean["new"] + 0.3, losses
    assert mean["dense"] > mean["streaming"] + 1, losses
    assert "Paris" in "".join(conversation.ask("What is the capital of France?"))
