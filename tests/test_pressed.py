"""Answers under a press are those of kvpress itself, one question and one token at a time."""

import numpy as np
import pytest
import torch
from conftest import MODELS, VOCAB
from numpy.testing import assert_allclose
from transformers import DynamicCache

from streamlm.presses.adapter import attached, exact_ratio, make_press
from streamlm.presses.grammar import parse_press
from streamlm.tasks.answers import answering_head
from streamlm.tasks.asked import Question
from streamlm.tasks.pressed import answer_pressed

pytestmark = pytest.mark.kvpress

PRESSES = [
    "KnormPress",
    "SnapKVPress(window_size=4)",
    "StreamingLLMPress(n_sink=2)",
    "KeyRerotationPress(KnormPress)",
    "AdaKVPress(KnormPress, alpha_safeguard=0)",
]
IDS = np.random.default_rng(0).integers(0, VOCAB, size=60)
# One is asked before anything is cut at 25 tokens, one where just one token is, and one late.
QUESTIONS = [
    Question(
        begin, begin + asked, [IDS[begin + asked : begin + asked + 3].tolist(), [5, 6], [7, 8, 9, 1], [2]]
    )
    for begin, asked in ((20, 2), (26, 1), (50, 4))
]


def slow_losses(model, press, question, size):
    """The loss of each candidate: kvpress cuts what was before the question, the rest comes one by one."""
    for candidate in question.candidates:
        cache, made = DynamicCache(config=model.config), make_press(press)
        context = torch.from_numpy(IDS[None, : question.begin])
        # The last token of the longest answer attends to `size` tokens.
        kept = size - (question.start - question.begin) - max(map(len, question.candidates)) + 1
        if kept < question.begin:
            made.compression_ratio = exact_ratio(question.begin, kept)
            made.post_init_from_model(model)
            with attached(made.forward_hook, model), torch.inference_mode():
                model.base_model(context, past_key_values=cache)
        else:
            with torch.inference_mode():
                model.base_model(context, past_key_values=cache)
        position = min(kept, question.begin) if press.rerotates else question.begin
        tokens = [*IDS[question.begin : question.start].tolist(), *candidate]
        loss = 0.0
        for i, token in enumerate(tokens[:-1]):
            at = torch.tensor([[position + i]])
            with torch.inference_mode():
                logits = model(torch.tensor([[token]]), past_key_values=cache, position_ids=at).logits[0, -1]
            if i + 1 >= question.start - question.begin:
                loss -= float(logits.log_softmax(-1)[tokens[i + 1]])
        yield loss


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize("text", PRESSES)
def test_answers_are_those_of_kvpress_token_by_token(name, text):
    press = parse_press(text)
    if name == "neox" and press.needs_queries:
        pytest.skip("this press cannot work on GPT-NeoX")
    model = MODELS[name]().eval()
    asked = []
    answers = answer_pressed(
        model,
        answering_head(model),
        IDS,
        QUESTIONS,
        [text],
        [12, 25],
        on_answer=lambda: asked.append(len(asked)),
    )
    assert asked == [0, 1, 2]
    assert list(answers) == [(text, 12), (text, 25)]
    for (_, size), found in answers.items():
        for answer, question in zip(found, QUESTIONS, strict=True):
            losses = list(slow_losses(model, press, question, size))
            assert_allclose(answer.nll_nats, losses[0], atol=2e-5)
            assert answer.is_chosen == (losses[0] < min(losses[1:]))


def test_nothing_is_cut_where_all_of_a_stream_fits():
    model = MODELS["llama"]().eval()
    first, second = PRESSES[:2]
    answers = answer_pressed(model, answering_head(model), IDS, QUESTIONS, [first, second], [57])
    assert answers[first, 57] == answers[second, 57]
    cut = answer_pressed(model, answering_head(model), IDS, QUESTIONS, [first, second], [56])
    assert cut[first, 56] != cut[second, 56]
    with pytest.raises(ValueError, match="7 tokens have no room for a question and its answer, 8"):
        answer_pressed(model, answering_head(model), IDS, QUESTIONS, [first], [7])
