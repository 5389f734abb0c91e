"""Tasks of retrieval: what their texts hide, what is recorded, and what is drawn of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from drawn import assert_printable, assert_uncluttered
from project import ROOT
from test_figures import BOOTSTRAP
from test_stream_eval import Letters

from streamlm.config import Compute
from streamlm.experiment.follow import Refuted, follow_paper
from streamlm.experiment.plan import retrieval_settings
from streamlm.figures.retrieval import plot_retrieval
from streamlm.records.fields import check_record
from streamlm.records.files import write_json
from streamlm.records.paper import RetrievalRecord
from streamlm.summaries.tasks import retrieval_rows
from streamlm.tasks.asked import hash_texts, text_of, tokenise_pieces
from streamlm.tasks.methods import ComparedCaches
from streamlm.tasks.retrieval import measure_retrieval
from streamlm.tasks.retrieval_text import HOPS, QUESTIONS, TASKS, RetrievalText, write_texts

pytestmark = pytest.mark.kvpress

TEXT = RetrievalText(words=60, samples=2, candidates=5)
PROSE = [f"w{i}" for i in range(500)]


def written(task, cfg=TEXT):
    return [pieces for name, pieces in write_texts(cfg, PROSE, 3) if name == task]


def test_the_texts_are_those_that_were_published():
    packaged = RetrievalText(**retrieval_settings(yaml.safe_load((ROOT / "config.yaml").read_text()))["task"])
    texts = [pieces for _, pieces in write_texts(packaged, PROSE, 0)]
    assert hash_texts(texts) == "d686d475e700cde87543b813a162e1bca9658641c9f8557e8e1862f88e48c2e9"
    assert hash_texts(pieces for _, pieces in write_texts(packaged, PROSE, 1)) != hash_texts(texts)


@pytest.mark.parametrize("task", TASKS)
def test_every_text_asks_with_its_answer_among_distinct_values(task):
    texts = written(task)
    assert len(texts) == TEXT.samples
    assert text_of(texts[0]) != text_of(texts[1])
    for pieces in texts:
        *asking, last = pieces
        assert len(asking) == (QUESTIONS if task == "five questions on several needles" else 1)
        assert (last.asked, last.values) == ("", ())
        assert len({piece.asked for piece in asking}) == len(asking)
        for piece in asking:
            assert len({*piece.values}) == TEXT.candidates
        ids, questions = tokenise_pieces(pieces, Letters())
        assert bytes(ids.tolist()).decode() == text_of(pieces)
        assert len(questions) == len(asking)


@pytest.mark.parametrize(
    "task", [name for name in TASKS if name not in ("chains of names", "most common word")]
)
def test_the_right_value_is_in_the_text_once_before_it_is_asked_for(task):
    for pieces in written(task):
        for piece in pieces[:-1]:
            word = piece.asked.split()[-2]
            assert pieces[0].text.count(f"The number of the {word} is") == 1
            assert f"The number of the {word} is{piece.values[0]}." in pieces[0].text


@pytest.mark.parametrize("task", ["one of several needles", "five questions on several needles"])
def test_other_candidates_are_the_values_of_other_words(task):
    for pieces in written(task):
        for piece in pieces[:-1]:
            assert all(f"is{value}." in pieces[0].text for value in piece.values)


def test_a_chain_leads_from_the_name_that_is_asked_for_to_its_number():
    for asking, _ in written("chains of names"):
        name = asking.asked.split()[-2]
        for _ in range(HOPS):
            (name,) = {
                sentence.split()[-1]
                for sentence in asking.text.split(".")
                if sentence.split()[:2] == ["The", name] and "has the number" in sentence
            }
        assert f"The number of the {name} is{asking.values[0]}." in asking.text
        assert asking.text.count("has the number of") == HOPS * TEXT.candidates


def test_the_chain_that_is_asked_for_is_any_of_them():
    texts = written("chains of names", replace(TEXT, samples=12))
    before = [asking.text.split(asking.values[0])[0] for asking, _ in texts]
    assert len({text.count("The number of") for text in before}) > 2


def test_the_common_word_comes_three_times_as_often_as_any_other():
    for asking, _ in written("most common word"):
        listed = asking.text.split()
        counts = [listed.count(value.strip()) for value in asking.values]
        assert counts[0] == 3 * counts[1]
        assert len({*counts[1:]}) == 1
        assert sum(counts) == len(listed)


def test_the_instruction_comes_first_and_turns_follow():
    for asking, _ in written("first instruction, after many turns"):
        assert asking.text.startswith("System: The number of the ")
        assert asking.text.count("Assistant: ") > 3


def test_more_words_than_there_are_turns_for_are_refused():
    with pytest.raises(ValueError, match="words must be at most 1,386, got 1,387; take fewer"):
        replace(TEXT, words=1387)


@pytest.mark.parametrize("candidates", [4, 43])
def test_too_few_or_too_many_candidates_are_refused(candidates):
    with pytest.raises(ValueError, match=f"candidates must be from 5 to 42, got {candidates}"):
        replace(TEXT, candidates=candidates)


@pytest.fixture(scope="module")
def record(prose_model, prose_ids):
    ids = np.tile(next(iter(prose_ids.values())), 20)
    found = measure_retrieval(
        model_dir=prose_model, title="A & B", ids=ids, dataset="prose, its name", bootstrap=BOOTSTRAP,
        cfg=replace(TEXT, words=20, samples=1), compute=Compute(),
        kept=ComparedCaches(n_sink=2, capacities=[60], presses=["KnormPress"]),
    )  # fmt: skip
    return json.loads(json.dumps(found))


def test_a_record_has_every_task_under_every_method_and_press(record):
    check_record(record, RetrievalRecord, "it")
    assert [(row["method"], row["capacity"]) for row in record["rows"][1:]] == [
        ("window", 60), ("recompute", 60), ("streaming", 60), ("KnormPress", 60),
    ]  # fmt: skip
    for row in record["rows"]:
        assert [at["task"] for at in row["tasks"]] == list(TASKS)
        assert [at["asked"] for at in row["tasks"]] == [QUESTIONS if "five" in name else 1 for name in TASKS]
    assert record["refused"] == {}
    assert "prose, its name" in record["dataset"]
    assert len(retrieval_rows([record])) == len(TASKS) * len(record["rows"])


def test_the_figure_shows_the_table(record):
    figure = plot_retrieval([record])
    written = assert_uncluttered(figure)
    assert_printable(figure)
    drawn = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    for measure, numbers in zip(("chosen", "exact"), drawn, strict=True):
        assert numbers == [f"{row[f'{measure}_percent']:.0f}" for row in retrieval_rows([record])]
    assert "right less than half of the time" in written, "an untrained model can do this?"


def test_shares_must_follow_from_the_answers(record, tmp_path):
    path = tmp_path / "tasks" / "retrieval.json"
    write_json(path, record)
    follow_paper(path)
    record = json.loads(json.dumps(record))
    record["rows"][2]["tasks"][3]["chosen"][0] ^= True
    write_json(path, record)
    with pytest.raises(Refuted, match="five questions on several needles, chosen"):
        follow_paper(path)
