"""What an experiment found, in words: only what its intervals show."""

import copy

import numpy as np
import pytest
from conftest import VOCAB, score_by_name, tiny_llama

from streamlm.config import METHODS
from streamlm.records.files import write_array, write_json
from streamlm.stats import BootstrapConfig
from streamlm.summaries.answer import answer_page, answer_sentences, experiment_summary
from streamlm.summaries.main import collect_result

BOOTSTRAP = BootstrapConfig(resamples=100)


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The main comparison of 200 random ids with 4 sinks and a window of 28."""
    place = tmp_path_factory.mktemp("answer")
    tiny_llama().save_pretrained(place / "model")
    ids = np.random.default_rng(0).integers(0, VOCAB, 200)
    paths = {}
    for method in METHODS:
        record, losses = score_by_name(
            method=method, n_sink=4, window_size=28, model_dir=place / "model", ids=ids, title="tiny",
            dataset="random ids", bootstrap=BOOTSTRAP, positions=9,
        )  # fmt: skip
        paths[method] = place / f"{method}.json"
        write_array(paths[method].with_suffix(".npy"), losses)
        write_json(paths[method], record)
    return collect_result(paths, BOOTSTRAP)


@pytest.fixture
def result(measured):
    return copy.deepcopy(measured)


def change(result, method, mean, interval):
    common = result["methods"][method]["common"]
    common |= {"ppl_increase_percent": mean, "ppl_increase_percent_interval": interval}


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        ([1.6, 8.5], "is higher than under dense on random ids (4.6 [1.6, 8.5] %)"),
        ([-8.5, -1.6], "is lower than under dense on random ids (4.6 [-8.5, -1.6] %)"),
        ([-0.8, 0.9], "shows no difference to dense on random ids (4.6 [-0.8, 0.9] %)"),
    ],
)
def test_loss_is_said_only_where_the_interval_excludes_zero(result, interval, words):
    change(result, "streaming", 4.6, interval)
    quality, sinks, memory = answer_sentences([result])
    assert quality == f"With the first 4 tokens and the last 28 of 200, the perplexity of tiny {words}."
    assert sinks.startswith("With as many tokens, all of them recent, it ")
    sizes = [result["methods"][name]["streaming"]["kv_bytes"] / 2**20 for name in ("streaming", "dense")]
    assert f"take {sizes[0]:.2g} MiB instead of {sizes[1]:.2g}, and no more" in memory


def test_texts_are_grouped_by_what_was_found(result):
    other = copy.deepcopy(result) | {"dataset": "another"}
    change(result, "streaming", 1.5, [1, 2])
    change(other, "streaming", 0.0, [-1, 1])
    first = answer_sentences([result, other])[0]
    assert "is higher than under dense on random ids (1.5 [1.0, 2.0] %); it shows no difference" in first
    assert first.endswith("shows no difference to dense on another (0.0 [-1.0, 1.0] %).")


def test_summary_opens_on_the_answer_and_ends_on_how_it_was_measured(result):
    parts = experiment_summary([result], []).split("\n\n")
    assert parts[0] == "# What sinks + window lose and save"
    assert parts[1].splitlines() == [f"- {line}" for line in answer_sentences([result])]
    assert parts.index("## How it was measured") > parts.index("## Main comparison")


def test_page_to_hand_in_is_one_file_that_escapes_what_it_shows(result):
    result["dataset"] = "<script>alert(1)</script>"
    page = answer_page([result], b"\x89PNG")
    assert "<script>" not in page
    assert page.count("&lt;script&gt;") >= len(METHODS) + 2  # in the table and in the sentences
    assert 'src="data:image/png;base64,iVBORw=="' in page
    assert "http" not in page
