"""The conversation: its tokens, its answers, and where it is stopped."""

from pathlib import Path

import pytest
import reference
import torch
from conftest import tiny_llama, use_float64_angles
from tiny_model import CHATML, byte_tokenizer, chat_tokenizer

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.generate.chat import ChatTemplate, Conversation
from streamlm.generate.sampling import Sampling

ROOT = Path(__file__).parent.parent
GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)
# Of another family: it trims, and has no system prompt of its own.
HEADERS = (
    "<s>{% for message in messages %}[{{ message.role }}]\n\n{{ message.content | trim }}<|im_end|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}[assistant]\n\n{% endif %}"
)
TURNS = ["Hi", "  Why?\n\nAnd  how? ", "日本語 and 🙂, <b>{{ x }}</b>", ""]


def whole_ids(tokenizer, messages, *, answer):
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    return tokenizer.encode(text, add_special_tokens=False)


def check_pieces(tokenizer, system):
    """The pieces of a template, put together, are the template of the whole conversation."""
    template = ChatTemplate(tokenizer, system)
    messages, ids = list(template.start), []
    for i, user in enumerate(TURNS):
        ids += template.turn(user) if i else template.opening(user)
        messages.append({"role": "user", "content": user})
        assert ids == whole_ids(tokenizer, messages, answer=True)
        ids += tokenizer.encode(f"Answer {i}.", add_special_tokens=False)
        messages.append({"role": "assistant", "content": f"Answer {i}."})


@pytest.mark.parametrize("chat_template", [CHATML, HEADERS])
@pytest.mark.parametrize("system", [None, "Speak like a pirate."])
def test_turns_are_the_tokens_of_the_whole_conversation(chat_template, system):
    check_pieces(chat_tokenizer(chat_template), system)


# As Qwen3: an answer after the last question has an (empty) thought before it, earlier ones have none.
THINKS = (
    "{% set ns = namespace(last=0) %}{% for message in messages %}{% if message.role == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As DeepSeek-R1's distilled models: every answer begins in a thought, which earlier answers do not show.
OPENS = (
    "{% for message in messages %}{% if message.role == 'assistant' %}<|im_start|>"
    "{{ message.content.split('</think>')[-1] }}<|im_end|>{% else %}[user]{{ message.content }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("chat_template", "opening", "turn"),
    [
        (
            THINKS,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>\n<|im_start|>user\nHow?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (OPENS, "[user]Hi<|im_start|><think>\n", "<|im_end|>[user]How?<|im_start|><think>\n"),
    ],
)
def test_template_that_leaves_out_thoughts_is_fed_turn_by_turn(chat_template, opening, turn):
    tokenizer = chat_tokenizer(chat_template)
    template = ChatTemplate(tokenizer)
    template.check_turns()
    assert tokenizer.decode(template.opening("Hi")) == opening
    assert tokenizer.decode(template.turn("How?")) == turn
    assert template.forgets_thoughts
    assert not ChatTemplate(chat_tokenizer()).forgets_thoughts


def test_answer_ends_where_the_template_closes_it():
    tokenizer = chat_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "<|endoftext|>"})
    template = ChatTemplate(tokenizer)
    assert template.end_ids == {tokenizer.convert_tokens_to_ids("<|im_end|>")} != {tokenizer.eos_token_id}
    model = tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    with prepare(model):
        conversation = Conversation(model, template, SinkCache(model.config, 2, 60), GREEDY, 30)
        answer = tokenizer.encode("Yes.<|im_end|>more", add_special_tokens=False)
        conversation.sampler = Scripted(answer)
        assert "".join(conversation.ask("Hi")) == "Yes."
    # A template that closes with plain text leaves the end to the model.
    assert (
        ChatTemplate(chat_tokenizer("{% for m in messages %}{{ m.content }}\n{% endfor %}")).end_ids == set()
    )


def test_sinks_hold_the_whole_system_prompt_and_no_more():
    tokenizer = chat_tokenizer()
    template = ChatTemplate(tokenizer, "Speak like a pirate.")
    system = tokenizer.decode(template.opening("Hi")[: template.n_sink()])
    assert system == "<|im_start|>system\nSpeak like a pirate.<|im_end|>\n"
    assert ChatTemplate(chat_tokenizer(HEADERS)).n_sink() == 4


def test_sinks_hold_a_system_prompt_that_stands_in_the_first_turn():
    tokenizer = chat_tokenizer(
        "{% set prompt = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for message in messages if message.role != 'system' %}{% if message.role == 'user' %}"
        "[INST]{{ prompt + ' ' if prompt and loop.first }}{{ message.content }}[/INST]"
        "{% else %}{{ message.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    template = ChatTemplate(tokenizer, "Speak like a pirate.")
    assert tokenizer.decode(template.opening("Hi")[: template.n_sink()]) == "[INST]Speak like a pirate."


def test_system_prompt_that_a_template_leaves_out_asks_for_no_sinks():
    leaves_out = (
        "{% for message in messages if message.role != 'system' %}[{{ message.role }}]"
        "{{ message.content }}<|im_end|>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    for system in ("Speak like a pirate.", ""):
        assert ChatTemplate(chat_tokenizer(leaves_out), system).n_sink() == 4


@pytest.mark.parametrize(
    ("chat_template", "message"),
    [
        (None, "has no chat template; take an instruct model"),
        ("{{ messages[-1].content }}{{ '!' * (messages | length) }}", "rewrites earlier turns"),
        (
            CHATML.replace(
                "{{ message.content }}", "{{ '(past) ' if message.role == 'assistant' }}{{ message.content }}"
            ),
            "rewrites earlier",
        ),
        ("{{ raise_exception('no system role') }}", "refuses the conversation: no system role"),
    ],
)
def test_template_that_cannot_be_fed_by_turns_is_refused(chat_template, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate(byte_tokenizer(chat_template=chat_template), "Be brief.").check_turns()


class Scripted:
    """A sampler whose draws are given."""

    def __init__(self, ids):
        self.ids = iter(ids)

    def __call__(self, logits):
        return next(self.ids)

    def read(self, ids):
        """Scripted draws depend on nothing."""


@pytest.fixture
def conversation():
    """One over a tiny model in float64, whose 2 + 6 tokens are full before the first answer."""
    tokenizer = chat_tokenizer()
    model = use_float64_angles(tiny_llama(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id))
    cache = SinkCache(model.config, n_sink=2, window_size=6)
    with prepare(model):
        yield Conversation(model, ChatTemplate(tokenizer), cache, GREEDY, max_new_tokens=30)


@pytest.fixture
def fed(monkeypatch):
    """Every token that a conversation feeds, in order."""
    from streamlm.generate import chat

    ids, read = [], chat.next_logits

    def spy(model, cache, part):
        ids.extend(part[0].tolist())
        return read(model, cache, part)

    monkeypatch.setattr(chat, "next_logits", spy)
    return ids


def script(conversation, *answers):
    tokenizer = conversation.template.tokenizer
    ends = [tokenizer.encode(answer, add_special_tokens=False) for answer in answers]
    conversation.sampler = Scripted([i for ids in ends for i in (*ids, tokenizer.eos_token_id)])


def test_every_turn_feeds_its_new_tokens_once(conversation, fed):
    script(conversation, "Héllo 🙂", "", "Bye.")
    answers = ["".join(conversation.ask(user)) for user in ("Hi", "And?", "So?")]
    assert answers == ["Héllo 🙂", "", "Bye."]
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 3
    whole = whole_ids(conversation.template.tokenizer, conversation.messages, answer=False)
    end = conversation.template.tokenizer.encode(conversation.template.closing, add_special_tokens=False)
    assert fed == whole[: -len(end)]
    assert conversation.cache.get_seq_length() == len(fed)
    assert conversation.cache.n_held == 8


def test_answers_are_those_of_the_slow_twin_far_past_the_trained_length(conversation, fed):
    for user in ("Hi", "And?", "So?"):
        for _ in conversation.ask(user):
            pass
    assert len(fed) > conversation.model.config.max_position_embeddings
    next(conversation.ask("Well?"))
    logits = reference.naive_logits(conversation.model, torch.tensor([fed]), [None, None], 2, 6)
    assert conversation.unread == [int(logits[0, -1].argmax())]


def test_answer_of_full_length_is_closed_by_the_next_turn(conversation, fed):
    conversation.max_new_tokens = 3
    script(conversation, "abcdef")
    assert "".join(conversation.ask("Hi")) == "abc"
    script(conversation, "x")
    assert "".join(conversation.ask("Go on")) == "x"
    messages = conversation.messages
    assert [message["content"] for message in messages] == ["Hi", "abc", "Go on", "x"]
    whole = whole_ids(conversation.template.tokenizer, messages, answer=False)
    assert fed == whole[: len(fed)]


@pytest.mark.parametrize("passes", [0, 1, 2, 9])
def test_stopped_turn_is_read_whole_before_the_next(conversation, fed, passes, monkeypatch):
    monkeypatch.setattr("streamlm.generate.chat.CHUNK", 16)
    script(conversation, "An answer that is cut short")
    left = iter([False] * passes)
    shown = "".join(conversation.ask("A question of more than one pass.", lambda: next(left, True)))
    assert len(fed) <= 16 * passes
    script(conversation, "x")
    assert "".join(conversation.ask("Again")) == "x"
    assert conversation.messages[1]["content"] == shown
    whole = whole_ids(conversation.template.tokenizer, conversation.messages, answer=False)
    assert fed == conversation.fed.tolist() == whole[: len(fed)]


def test_reset_begins_the_same_conversation_again(conversation):
    conversation.sampling = Sampling(temperature=1.0, top_p=0.9, seed=3)
    conversation.reset()
    first = ["".join(conversation.ask(user)) for user in ("Hi", "And?")]
    conversation.reset()
    assert conversation.messages == []
    assert conversation.cache.get_seq_length() == 0
    assert ["".join(conversation.ask(user)) for user in ("Hi", "And?")] == first
    assert first[0] != first[1]


def test_what_is_watched_is_that_of_the_slow_twin_and_changes_nothing(conversation, fed):
    with pytest.raises(ValueError, match="nothing was said yet"):
        conversation.watch(5)
    script(conversation, "An answer.", "Bye.")
    tokenizer = conversation.template.tokenizer
    for user in ("Hi", "And?"):
        for _ in conversation.ask(user):
            conversation.watch(5)  # in the middle of an answer
        before = [*conversation.unread], conversation.cache.get_seq_length()
        token, texts = conversation.watch(5)
        assert ([*conversation.unread], conversation.cache.get_seq_length()) == before
    assert conversation.fed.tolist() == fed
    whole = whole_ids(tokenizer, conversation.messages, answer=False)[: len(fed) + 1]
    assert whole[:-1] == fed  # and the last one closes the answer
    twins = [reference.Evicting(2, 6) for _ in range(2)]
    with torch.inference_mode():
        reference.llama_losses(conversation.model, [*whole, 0], 2, 6, twins)
    assert token.position == len(fed)
    assert token.kept.tolist() == [0, 1, *range(len(fed) - 5, len(fed) + 1)]
    slow = [sum(twin.seen[-1][t].mean().item() for twin in twins) / 2 for t in token.kept.tolist()]
    torch.testing.assert_close(token.shares.tolist(), slow, rtol=0, atol=1e-9)
    first = len(whole) - 8 - 5
    assert texts[2:first] == [""] * (first - 2)
    assert texts[:2] + texts[first:] == tokenizer.batch_decode([[i] for i in whole[:2] + whole[first:]])


def test_what_is_watched_after_a_cut_answer_is_its_last_token(conversation):
    conversation.max_new_tokens = 3
    script(conversation, "abcdef")
    assert "".join(conversation.ask("Hi")) == "abc"
    token, texts = conversation.watch(5)
    assert (texts[-1], token.kept[-1]) == ("c", len(conversation.fed))
    conversation.reset()
    with pytest.raises(ValueError, match="nothing was said yet"):
        conversation.watch(5)
