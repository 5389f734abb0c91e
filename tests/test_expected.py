"""Whether numbers are where they are expected: the file that is shipped, and what it does to records."""

import json

import pytest
import yaml
from command import refuse, streamlm
from project import ROOT

EXPECTED = ROOT / "configs/pythia-70m.expected.json"
ENTRIES = json.loads(EXPECTED.read_text())


@pytest.fixture
def results(tmp_path):
    """Records in which every number lies in the middle of its range."""
    records = {}
    for entry in ENTRIES:
        place = records.setdefault(entry["record"], {})
        *path, last = entry["field"].split(".")
        for key in path:
            place = place.setdefault(key, {})
        place[last] = (entry["low"] + entry["high"]) / 2
    for name, record in records.items():
        (tmp_path / "results" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "results" / name).write_text(json.dumps(record))
    return tmp_path


def compare(place, *args):
    return streamlm(place, "verify", "results", "--expected", EXPECTED, *args)


def test_every_number_is_shown_beside_its_range(results):
    done = compare(results)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(ENTRIES)
    assert "PG19, first book: dense, perplexity: 62.5, expected 40 to 85: as expected" in done.stdout
    assert all(entry["holds"] for entry in json.loads(compare(results, "--json").stdout))


@pytest.mark.parametrize("value", [39.9, 85.1])
def test_number_outside_its_range_is_named_and_ends_with_status_1(results, value):
    path = results / "results/streaming_llm/pg19-book_result.json"
    record = json.loads(path.read_text())
    record["methods"]["dense"]["streaming"]["perplexity"] = value
    path.write_text(json.dumps(record))
    done = compare(results)
    assert f"PG19, first book: dense, perplexity: {value:.4g}, expected 40 to 85: NOT as" in done.stdout
    assert done.stdout.count("NOT as expected") == 1
    assert "1 of 8 numbers are not where they are expected" in done.stderr
    assert done.returncode == 1


def test_number_that_is_none_is_refused(results):
    path = results / "results/streaming_llm/pg19-book_result.json"
    path.write_text('{"methods": NaN}')
    done = compare(results)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "the number NaN is not finite" in done.stderr


def test_missing_record_field_or_expectation_is_one_line(results):
    path = results / "results/kvpress/wikitext-103_comparison.json"
    path.write_text("{}")
    assert "has no number decoding.methods.kvpress_faithful" in compare(results).stderr
    path.unlink()
    assert "there is no record" in compare(results).stderr
    (results / "none.json").write_text("[{}]")
    refuse(
        streamlm(results, "verify", "results", "--expected", "none.json"), 1,
        "none.json does not say what is expected (KeyError('what'))",
    )  # fmt: skip


def test_expected_numbers_are_of_the_config_and_of_the_page():
    config = yaml.safe_load((ROOT / "configs/pythia-70m.yaml").read_text())
    corpora = config["experiment"]["corpora"]
    assert {entry["record"].split("/")[1].split("_")[0] for entry in ENTRIES} <= set(corpora)
    page = (ROOT / "docs/hub.md").read_text()
    for entry in ENTRIES:
        if "dense, perplexity" in entry["what"] or "4 sinks" in entry["what"]:
            assert f"{entry['low']} to {entry['high']}" in page
