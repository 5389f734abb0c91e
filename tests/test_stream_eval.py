"""StreamEval: its text, what is answered from a cache, and what is said of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import VOCAB, tiny_llama, tiny_neox, use_float64_angles
from drawn import assert_printable, assert_tabled, assert_uncluttered
from project import ROOT
from scipy.stats import norm
from test_figures import BOOTSTRAP
from torch.nn import functional

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import METHODS, Compute, StreamConfig
from streamlm.experiment.follow import Refuted, follow_paper
from streamlm.experiment.plan import stream_eval_settings
from streamlm.figures.stream_eval import plot_stream_eval
from streamlm.limits import STREAM_LINES
from streamlm.records.fields import check_record
from streamlm.records.files import write_json
from streamlm.records.paper import StreamEvalRecord
from streamlm.stats import proportion
from streamlm.summaries.tasks import beyond_the_model, stream_eval_rows
from streamlm.tasks.answers import Answer, answer_questions, answering_head
from streamlm.tasks.asked import Piece, Question, hash_texts, text_of, tokenise_pieces
from streamlm.tasks.methods import ComparedCaches, describe_answers
from streamlm.tasks.stream_eval import measure_stream_eval
from streamlm.tasks.stream_text import WORDS, StreamText, all_streams, write_stream

TEXT = StreamText(lines=12, every=4, distances=[2, 5], streams=2, candidates=3)


class Letters:
    """A tokenizer of bytes."""

    def __call__(self, text, add_special_tokens=True):
        assert not add_special_tokens
        return {"input_ids": list(text.encode())}


# The text


def hash_streams(cfg, seed):
    return hash_texts(write_stream(cfg, distance, of) for distance, of in all_streams(cfg, seed))


def test_the_text_is_the_one_that_was_published():
    config = yaml.safe_load((ROOT / "config.yaml").read_text())
    packaged = StreamText(**stream_eval_settings(config)["task"])
    assert hash_streams(packaged, 0) == "790043ea870ebd97674551f700d3357fea411800558c1afcb5a450e9bf38d956"
    assert hash_streams(packaged, 1) != hash_streams(packaged, 0)
    assert len(set(WORDS)) == len(WORDS) == STREAM_LINES


@pytest.mark.parametrize("distance", [1, 2, 5, 12])
def test_a_question_repeats_the_line_that_far_back(distance):
    cfg = replace(TEXT, distances=[distance])
    pieces = write_stream(cfg, distance, seed=3)
    lines = text_of(pieces).splitlines()
    information, asked = [], 0
    for line in lines:
        if len(information) and len(information) % 4 == 0 and line in information:
            assert line == information[-distance]
            asked += 1
        else:
            information.append(line)
    assert len(information) == 12
    assert asked == len(pieces) - 1 == sum(i >= max(distance, 3) for i in (4, 8, 12))
    for _, _, values in pieces[:-1]:
        assert len({*values}) == 3
        assert all(any(line.endswith(f":{value}") for line in lines) for value in values)


def test_streams_of_one_seed_have_the_same_lines():
    first, second = (text_of(write_stream(TEXT, distance, 7)).splitlines() for distance in (2, 5))
    assert {*first} == {*second}
    assert len([*all_streams(TEXT, 5)]) == 4
    assert text_of(write_stream(TEXT, 2, 8)).splitlines()[0] != first[0]


def test_answers_are_where_the_questions_say():
    pieces = write_stream(TEXT, 2, 0)
    ids, questions = tokenise_pieces(pieces, Letters())
    assert bytes(ids.tolist()).decode() == text_of(pieces)
    for question, (_, asked, values) in zip(questions, pieces[:-1], strict=True):
        assert tuple(bytes(of).decode() for of in question.candidates) == values
        assert bytes(ids[question.begin : question.start].tolist()).decode() == asked
        right = question.candidates[0]
        assert ids[question.start : question.start + len(right)].tolist() == right


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"lines": 128}, "lines must be at most 127, one for each word, got 128"),
        ({"distances": [13]}, "the last question is after line 12, and its distances and candidates take 13"),
        ({"candidates": 13}, "the last question is after line 12, and its distances and candidates take 13"),
    ],
)
def test_streams_that_cannot_be_are_refused(change, line):
    with pytest.raises(ValueError, match=line):
        replace(TEXT, **change)


def test_values_must_be_different_tokens():
    with pytest.raises(ValueError, match="makes the same tokens of different values"):
        tokenise_pieces(
            [Piece("", "a:", (" 1", " 2"))], lambda text, add_special_tokens: {"input_ids": [len(text)]}
        )
    with pytest.raises(ValueError, match="makes no token of a question"):
        tokenise_pieces([Piece("a", "", (" 1",))], Letters())


# The answers


@pytest.fixture(params=[tiny_llama, tiny_neox])
def streaming(request):
    with prepare(use_float64_angles(request.param())) as model:
        yield model


def streams():
    """Ids and questions with candidates of several lengths."""
    rng = np.random.default_rng(0)
    ids = rng.integers(VOCAB, size=60)
    return ids, [
        Question(start - 2, start, [ids[start : start + 3].tolist(), [5, 6], [7, 8, 9, 1], [2]])
        for start in (20, 33, 50)
    ]


@torch.no_grad()
def slow_nll(model, stream, start, cfg):
    """The loss of everything from `start` on, token by token, the whole stream read for each."""
    cache = SinkCache(model.config, n_sink=cfg.n_sink, window_size=cfg.window_size)
    losses = []
    for i, token in enumerate(stream[:-1]):
        logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        if i + 1 >= start:
            losses.append(float(functional.cross_entropy(logits[None], torch.tensor([stream[i + 1]]))))
    return sum(losses)


@pytest.mark.parametrize(
    "cfg", [StreamConfig(n_sink=0, window_size=100), StreamConfig(n_sink=2, window_size=6),
            StreamConfig(n_sink=0, window_size=8), StreamConfig(n_sink=1, window_size=5)]
)  # fmt: skip
def test_answers_are_those_of_reading_token_by_token(streaming, cfg):
    ids, questions = streams()
    for answer, question in zip(
        answer_questions(streaming, answering_head(streaming), ids, questions, cfg), questions, strict=True
    ):
        before = ids[: question.start].tolist()
        losses = [slow_nll(streaming, [*before, *of], question.start, cfg) for of in question.candidates]
        assert answer.nll_nats == pytest.approx(losses[0], abs=1e-8)
        assert answer.is_chosen == (losses[0] < min(losses[1:]))


def test_recomputation_reads_no_more_than_the_cache_would_hold(streaming):
    ids, questions = streams()
    cfg, whole = StreamConfig(n_sink=0, window_size=12), StreamConfig(n_sink=0, window_size=100)
    for answer, question in zip(
        answer_questions(streaming, answering_head(streaming), ids, questions, cfg, recompute=True),
        questions,
        strict=True,
    ):
        seen = ids[question.start - 9 : question.start].tolist()  # 9, and 3 of an answer before its last
        assert answer.nll_nats == pytest.approx(
            slow_nll(streaming, [*seen, *question.candidates[0]], 9, whole)
        )


def test_exact_answers_are_those_that_greedy_decoding_writes(streaming):
    ids, _ = streams()
    cfg, start = StreamConfig(n_sink=2, window_size=10), 30
    written = ids[:start].tolist()
    with torch.no_grad():
        for _ in range(3):
            written.append(int(greedy(streaming, written, cfg)))
    right = Question(start - 2, start, [written[start:], [1, 2, 3]])
    wrong = Question(start - 2, start, [[*written[start:-1], (written[-1] + 1) % VOCAB], [1, 2, 3]])
    (answer,) = answer_questions(streaming, answering_head(streaming), np.array(written), [right], cfg)
    assert answer.is_exact
    assert answer.is_chosen
    (answer,) = answer_questions(streaming, answering_head(streaming), np.array(written), [wrong], cfg)
    assert not answer.is_exact


def greedy(model, ids, cfg):
    cache = SinkCache(model.config, n_sink=cfg.n_sink, window_size=cfg.window_size)
    return model(torch.tensor([ids]), past_key_values=cache).logits[0, -1].argmax()


def test_a_tie_is_not_an_answer(streaming):
    ids, _ = streams()
    question = Question(18, 20, [[5, 6], [5, 6]])
    (answer,) = answer_questions(
        streaming, answering_head(streaming), ids, [question], StreamConfig(n_sink=0, window_size=100)
    )
    assert not answer.is_chosen


def test_a_cache_smaller_than_an_answer_is_refused(streaming):
    ids, questions = streams()
    with pytest.raises(ValueError, match="a cache of 3 tokens has no room for an answer of 4"):
        answer_questions(
            streaming, answering_head(streaming), ids, questions, StreamConfig(n_sink=0, window_size=3)
        )


# The record


def test_intervals_are_those_of_wilson():
    found, z = proportion(7, 24, 0.95), norm.ppf(0.975)
    share, n = 7 / 24, 24
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    assert found == {"share": share, "interval": pytest.approx([middle - half, middle + half])}


@pytest.fixture(scope="module")
def record(prose_model):
    found = measure_stream_eval(
        model_dir=prose_model, title="A & B", cfg=TEXT, compute=Compute(), bootstrap=BOOTSTRAP,
        kept=ComparedCaches(n_sink=2, capacities=[24, 16], presses=[]),
    )  # fmt: skip
    return json.loads(json.dumps(found))


def test_a_record_has_every_method_once_at_each_capacity(record):
    check_record(record, StreamEvalRecord, "it")
    compared = [method.name for method in METHODS.values() if method.is_compared and method.name != "dense"]
    cases = [(row["method"], row["capacity"]) for row in record["rows"][1:]]
    assert sorted(cases) == sorted((name, size) for name in compared for size in (16, 24))
    assert record["rows"][0]["method"] == "dense"
    assert all([at["asked"] for at in row["distances"]] == [6, 4] for row in record["rows"])
    assert record["texts_sha256"] == hash_streams(TEXT, BOOTSTRAP.seed)
    assert len(stream_eval_rows([record])) == 2 * len(record["rows"])


def test_the_figure_shows_the_table(record, tmp_path):
    figure = plot_stream_eval([record])
    written = assert_uncluttered(figure)
    assert_printable(figure)
    assert_tabled(figure, "stream_eval", [record], tmp_path)
    assert "not to be compared, 2 lines back; 5 lines back" in " ".join(written.split()), (
        "an untrained model can do this?"
    )


def test_distances_that_dense_fails_are_named():
    dense = {
        "method": "dense",
        "distances": [describe_answers(answers(right), 0.95) for right in (1, 2, 3)],
    }
    assert [at["chosen_share"] for at in beyond_the_model({"rows": [dense]}, "chosen", "distances")] == [0.25]
    assert len(beyond_the_model({"rows": [dense]}, "exact", "distances")) == 3


def answers(right):
    return [Answer(False, i < right, 1.0) for i in range(4)]


def test_shares_must_follow_from_the_answers(record, tmp_path):
    path = tmp_path / "paper" / "stream_eval.json"
    write_json(path, record)
    follow_paper(path)
    record = json.loads(json.dumps(record))
    record["rows"][2]["distances"][1]["chosen"][0] ^= True
    write_json(path, record)
    with pytest.raises(Refuted, match="lines back, chosen"):
        follow_paper(path)
