"""Windows beyond the length that the model was trained to: warned about, and not refused."""

import json

import pytest
from changed_config import CONFIG, changed

from streamlm.experiment.check import check_config, warn_beyond_training


@pytest.mark.parametrize(
    ("described", "lines"),
    [
        (
            {"max_position_embeddings": 512},
            ["experiment: a cache of 2052 tokens is beyond the 512 that", "dec"],
        ),
        ({"text_config": {"max_position_embeddings": 3000}}, ["decoding_latency: a cache of 4096 tokens is"]),
        ({"max_position_embeddings": 4096}, []),
        ({}, []),
        ([], []),
        (None, []),
    ],
)
def test_windows_beyond_the_model_are_warned_about_and_not_refused(tmp_path, described, lines):
    (tmp_path / "config.json").write_text(json.dumps(described))
    source = {"kind": "path", "path": str(tmp_path)}
    config = changed(CONFIG, {"models/smollm2-135m-instruct/source": source})
    check_config(config)
    found = list(warn_beyond_training(config))
    assert len(found) == len(lines)
    assert all(line.startswith(begin) for line, begin in zip(found, lines, strict=True))


def test_long_run_beyond_the_model_is_warned_about(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 8192}')
    source = {"kind": "path", "path": str(tmp_path)}
    edits = {"models/smollm2-135m-instruct/source": source, "decoding_latency/long_run/capacity": 9000}
    (line,) = warn_beyond_training(changed(CONFIG, edits))
    assert line.startswith("decoding_latency: a cache of 9000 tokens is beyond the 8192 that smollm2")


def test_model_that_is_not_there_yet_gives_no_warning():
    source = {"kind": "path", "path": "no/such/folder"}
    assert not list(warn_beyond_training(changed(CONFIG, {"models/smollm2-135m-instruct/source": source})))
