"""Faulty configs: one report has every fault, one line each with key, value, rule and remedy."""

import random
import re
from copy import deepcopy
from datetime import date
from pathlib import Path

import pytest
import yaml
from changed_config import ABSENT, CONFIG, changed, path_source, report
from project import ROOT

from streamlm.experiment.check import SCHEMA, check_config
from streamlm.experiment.config_file import check_file
from streamlm.experiment.faults import describe

PACKAGE = CONFIG["corpora"]["pg19"]["source"]


def assert_reported(config, expected):
    """Assert that a report has the expected lines and no others."""
    lines = report(config)
    for words in expected:
        pattern = ".*".join(map(re.escape, words.split(" ... ")))
        assert any(re.match(pattern, line) for line in lines), (words, lines)
    assert len(lines) == len(expected), lines


def hub_model(**more):
    """A model of a hub."""
    return {"title": "M", "source": {"kind": "hub", "repo": "org/name", "revision": "main"} | more}


def hub_text(**more):
    """The source of a text of a hub."""
    fixed = {"config": None, "split": "test", "column": "text", "rows": None, "format": "text"}
    return hub_model()["source"] | fixed | more


# The changes, and the lines of the report on them: " ... " stands for any text, and is implied at every end.
ALONE = [
    # keys that do not exist
    ({"experimnt": {}}, "experimnt: {} is under an unknown key ... did you mean experiment? ... bootstrap"),
    ({"typo": 1}, "typo: 1 is under an unknown key; known are bootstrap, "),
    ({"experiment/n_sinks": 4}, "experiment.n_sinks: 4 is ... did you mean n_sink? ... window_size"),
    ({"experiment/sink_ablation/n_sink": 1}, "experiment.sink_ablation.n_sink: 1 ... mean n_sinks?"),
    ({"long_stream/capacity": 3}, "long_stream.capacity: 3 is under an unknown key ... mean capacities?"),
    ({"decoding_latency/long_run/token": 9}, "decoding_latency.long_run.token: 9 ... mean tokens?"),
    ({"comparison/decode/intervall": 8}, "comparison.decode.intervall: 8 ... mean interval?"),
    ({"compute/threads": 2}, "compute.threads: 2 is ... known are device, dtype, torch_threads"),
    ({"bootstrap/Seed": 2}, "bootstrap.Seed: 2 is under an unknown key ... mean seed?"),
    ({"models/smollm2-135m-instruct/titel": "x"}, "models.smollm2-135m-instruct.titel: 'x' ... title?"),
    ({"corpora/pg19/add_boss": True}, "corpora.pg19.add_boss: true ... mean add_bos?"),
    ({"corpora/pg19/source/sha": "x"}, "corpora.pg19.source.sha: 'x' ... known are "),
    ({"experiment/5": 1}, "experiment.5: 1 is under an unknown key; known are corpora"),
    ({"experiment/a: b\n": 1}, "experiment.'a: b\\n': 1 is under an unknown key"),
    (
        {"experiment/n_sink": ABSENT, "experiment/nsink": 4},
        "experiment.nsink: 4 ... mean n_sink?",
        "experiment.n_sink: 'n_sink' is missing; add an integer",
    ),
    # keys that are missing
    ({"experiment": ABSENT}, "experiment: 'experiment' is missing; add a section with model, corpora"),
    ({"results_dir": ABSENT}, "results_dir: 'results_dir' is missing; add results, or a folder in it"),
    ({"compute/dtype": ABSENT}, "compute.dtype: 'dtype' is missing; add one of float32, bfloat16"),
    ({"long_stream/capacities": ABSENT}, "long_stream.capacities: 'capacities' is missing; add a list"),
    ({"comparison/decode/tokens": ABSENT}, "comparison.decode.tokens: 'tokens' is missing; add an integer"),
    ({"corpora/pg19/add_bos": ABSENT}, "corpora.pg19.add_bos: 'add_bos' is missing; add true or false"),
    ({"corpora/pg19/source/kind": ABSENT}, "corpora.pg19.source.kind: 'kind' is missing; add one of"),
    ({"corpora/pg19/source/format": ABSENT}, "corpora.pg19.source: 'format' is missing; use mediawiki"),
    ({"models/m": {"source": path_source("x")}}, "models.m.title: 'title' is missing; add the full name"),
    (
        {"corpora/pg19/source": {"kind": "path"}},
        "corpora.pg19.source.path: 'path' is missing",
        "corpora.pg19.source: 'format' is missing",
    ),
    (
        {"corpora/pg19/source": {"kind": "package", "format": "text"}},
        "corpora.pg19.source.requirement: 'requirement' is missing; add ",
        "corpora.pg19.source.sha256: 'sha256' is missing; add ",
        "corpora.pg19.source.pip_args: 'pip_args' is missing; add ",
        "corpora.pg19.source.members: 'members' is missing; add ",
    ),
    # sections and lists of another type
    ({"experiment": None}, "experiment: null is of the wrong type; use a section with model"),
    ({"experiment": [1, 2]}, "experiment: [1, 2] is of the wrong type; use a section with"),
    ({"experiment": "4+1024"}, "experiment: '4+1024' is of the wrong type; use a section with"),
    ({"models": None}, "models: null is of the wrong type; use a section"),
    ({"models": {}}, "models: {} is empty; use a section of sections"),
    ({"corpora": ["wikitext", "pg19"]}, "corpora: ['wikitext', 'pg19'] is of the wrong type"),
    ({"corpora/pg19": None}, "corpora.pg19: null is of the wrong type; use a section with title"),
    ({"corpora/pg19/source": "x.txt"}, "corpora.pg19.source: 'x.txt' is of the wrong type; use a sec"),
    ({"bootstrap": 5}, "bootstrap: 5 is of the wrong type; use a section with block"),
    ({"experiment/corpora": "pg19"}, "experiment.corpora: 'pg19' is of the wrong type; use a list"),
    ({"experiment/corpora": []}, "experiment.corpora: [] is empty; use a list"),
    ({"experiment/model": ["a"]}, "experiment.model: ['a'] is of the wrong type; use a name under mod"),
    ({"long_stream/capacities": 256}, "long_stream.capacities: 256 is of the wrong type; use a list"),
    ({"comparison/presses": "KnormPress"}, "comparison.presses: 'KnormPress' is of the wrong type"),
    ({"comparison/presses": [{"KnormPress": 1}]}, "comparison.presses.0: {'KnormPress': 1} is of the"),
    # numbers
    (
        {"experiment/window_size": "1e3"},
        "experiment.window_size: '1e3' is of the wrong type ... in digits without quotes (YAML",
    ),
    ({"experiment/window_size": 1000.0}, "experiment.window_size: 1000.0 is of the wrong type; use"),
    ({"experiment/window_size": True}, "experiment.window_size: true is of the wrong type"),
    ({"experiment/window_size": 0}, "experiment.window_size: 0 is too small; use an integer of 1 or"),
    ({"experiment/window_size": 10**18}, "experiment.window_size: 10000 ... too large; use 1000000000000"),
    ({"experiment/n_sink": 0}, "experiment.n_sink: 0 is too small; use an integer of 1 or more"),
    ({"experiment/n_sink": -4}, "experiment.n_sink: -4 is too small"),
    ({"experiment/n_sink": date(2024, 1, 4)}, "experiment.n_sink: datetime.date(2024, 1, 4) is of the"),
    (
        {"experiment/window_ablation/n_sink": -1},
        "experiment.window_ablation.n_sink: -1 is too small; use an integer of 0 or more",
    ),
    (
        {"long_stream/capacities": [256, "5e2"]},
        "long_stream.capacities.1: '5e2' is of the wrong ... in digits without quotes (YAML",
    ),
    ({"long_stream/capacities": [-256, 512]}, "long_stream.capacities.0: -256 is too small"),
    ({"decoding_latency/runs": 1}, "decoding_latency.runs: 1 is too small; use an integer of 2 or more"),
    ({"decoding_latency/long_run/tokens": 10}, "decoding_latency.long_run.tokens: 10 is too small"),
    ({"bootstrap/block": 16}, "bootstrap.block: 16 is too small; use an integer of 128 or more"),
    ({"bootstrap/confidence": 95}, "bootstrap.confidence: 95 is too large; use a number between 0 and 1"),
    ({"bootstrap/confidence": 0}, "bootstrap.confidence: 0 is too small; use a number between 0 and 1"),
    (
        {"bootstrap/confidence": "95%"},
        "bootstrap.confidence: '95%' is of the wrong type ... in digits without quotes (YAML",
    ),
    ({"bootstrap/confidence": float("nan")}, "bootstrap.confidence: nan is of the wrong type"),
    ({"bootstrap/seed": -1}, "bootstrap.seed: -1 is too small; use an integer of 0 or more"),
    ({"compute/torch_threads": 0}, "compute.torch_threads: 0 is not allowed; use 'auto' or an integer"),
    ({"compute/torch_threads": "all"}, "compute.torch_threads: 'all' is not allowed; use 'auto' or an"),
    ({"corpora/pg19/max_samples": 0}, "corpora.pg19.max_samples: 0 is too small ... 1 or more or null"),
    ({"corpora/pg19/max_samples": "all"}, "corpora.pg19.max_samples: 'all' is of the wrong ... or null"),
    ({"corpora/pg19/add_bos": "yes"}, "corpora.pg19.add_bos: 'yes' is of ... true or false, without quotes"),
    # names
    ({"compute/dtype": "float8"}, "compute.dtype: 'float8' is not known ... one of float32, bfloat16"),
    ({"compute/dtype": "bfloat"}, "compute.dtype: 'bfloat' is not known; did you mean bfloat16?"),
    ({"long_stream/dtype": 16}, "long_stream.dtype: 16 is not known ... use one of float32"),
    ({"compute/device": "gpu"}, "compute.device: 'gpu' is not allowed; use one of auto, cpu, mps, cuda"),
    ({"compute/device": "cuda:0\n"}, "compute.device: 'cuda:0\\n' is not allowed"),
    ({"experiment/model": "gpt5"}, "experiment.model: 'gpt5' is not under models; use one of smollm2-135m"),
    ({"experiment/corpora": ["wikitxt"]}, "experiment.corpora: 'wikitxt' is not ... mean wikitext?"),
    ({"experiment/corpora": ["pg19"] * 2}, "experiment.corpora: ['pg19', 'pg19'] names 'pg19' twice"),
    ({"corpora/my text": CONFIG["corpora"]["pg19"]}, "corpora.'my text': 'my text' is not allowed; use"),
    ({"models/archives": {"title": "x", "source": PACKAGE}}, "models.archives: 'archives' is not allowed"),
    (
        {"corpora/pg19/title": "English Wikipedia sample"},
        "corpora: 'English Wikipedia sample' is the title of wikitext and pg19; give",
    ),
    ({"corpora/pg19/title": ""}, "corpora.pg19.title: '' is not allowed; use the full name"),
    ({"corpora/pg19/title": False}, "corpora.pg19.title: false is of the wrong type ... in quotes"),
    ({"corpora/pg19/source/kind": "hubb"}, "corpora.pg19.source.kind: 'hubb' is not known; ... mean hub?"),
    (
        {"models/m": hub_model(repo="m")},
        "models.m.source.repo: 'm' is not allowed; use a repository of the hub",
    ),
    (
        {"models/m": hub_model(split="test")},
        "models.m.source.split: 'test' is under an unknown key; known are",
    ),
    (
        {"models/m": hub_model(gguf="a.bin")},
        "models.m.source.gguf: 'a.bin' is not ... the name of a .gguf file",
    ),
    (
        {"corpora/pg19/source": hub_text(rows=0)},
        "corpora.pg19.source.rows: 0 is too small; use an integer of 1",
    ),
    ({"corpora/pg19/source": hub_text(format="xml")}, "corpora.pg19.source.format: 'xml' is not known"),
    (
        {"corpora/pg19/source": hub_text(trust_remote_code=True)},
        "corpora.pg19.source.trust_remote_code: true is under an unknown key",
    ),
    ({"corpora/pg19/source/format": "txt"}, "corpora.pg19.source.format: 'txt' is not known ... mean text?"),
    ({"corpora/pg19/source/sha256": "F00"}, "corpora.pg19.source.sha256: 'F00' is not allowed ... 64 digits"),
    (
        {"corpora/pg19/source/requirement": "gensim"},
        "corpora.pg19.source.requirement: 'gensim' is not ... like gensim==4.4.0",
    ),
    ({"results_dir": "README.md"}, "results_dir: 'README.md' is not allowed; use results, or a folder in"),
    ({"results_dir": "results/../data"}, "results_dir: 'results/../data' is not allowed"),
    ({"results_dir": "/tmp/results"}, "results_dir: '/tmp/results' is not allowed"),
    # presses
    ({"comparison/presses": ["KnormPres"]}, "comparison.presses: 'KnormPres' ... known are AdaKVPress"),
    (
        {"comparison/presses": ["KnormPress(x=1)"]},
        "comparison.presses: 'KnormPress(x=1)' ... no argument 'x'",
    ),
    ({"comparison/presses": ["SnapKVPress(kernel_size=4)"]}, "comparison.presses: 'Snap ... an odd number"),
    (
        {"comparison/presses": ["SnapKVPress(window_size=2000)"]},
        "comparison.presses: 'Snap ... it has 1024; take a smaller window_size",
    ),
    ({"comparison/presses": ["KnormPress("]}, "comparison.presses: 'KnormPress(' ... is not a press; write"),
    ({"comparison/presses": ["KnormPress", "KnormPress"]}, "comparison.presses: 'KnormPress' ... once"),
    (
        {"comparison/presses": ["StreamingLLMPress", "x", "y"]},
        "comparison.presses: 'Str ... already",
        "comparison.presses: 'x' ... unknown",
        "comparison.presses: 'y' ... unknown",
    ),
    ({"comparison/presses": ["K" * 101]}, "comparison.presses.0: 'KKK ... too long; use a press of at"),
    # paths
    ({"corpora/pg19/source": path_source("no.txt")}, "corpora.pg19.source.path: 'no.txt' does not exist"),
    ({"corpora/pg19/source": path_source("tests")}, "corpora.pg19.source.path: 'tests' is not a file; name"),
    ({"corpora/pg19/source": path_source("")}, "corpora.pg19.source.path: '' is not allowed; use the path"),
    ({"corpora/pg19/source": path_source("{x}")}, "corpora.pg19.source.path: '{x}' is not ... braces"),
    ({"corpora/pg19/source": path_source("x" * 300)}, "corpora.pg19.source.path: 'xxx ... cannot be reached"),
    (
        {"corpora/pg19/source": path_source("no.txt", format="txt", members=[])},
        "corpora.pg19.source.path: 'no.txt' does not exist",
        "corpora.pg19.source.format: 'txt' is not known",
        "corpora.pg19.source.members: [] is under an unknown key; known are ",
    ),
    (
        {"models/smollm2-135m-instruct/source": {"kind": "path", "path": "tests"}},
        "models.smollm2-135m-instruct.source.path: 'tests' is not a model; use a transformers folder",
    ),
    (
        {"models/smollm2-135m-instruct/source": {"kind": "path", "path": "README.md"}},
        "models.smollm2-135m-instruct.source.path: 'README.md' is not a model; use a transformers folder",
    ),
    (
        {"models/smollm2-135m-instruct/source": {"kind": "path", "path": "no.gguf"}},
        "models.smollm2-135m-instruct.source.path: 'no.gguf' does not exist",
    ),
    # sizes that contradict each other
    (
        {"experiment/max_eval_tokens": 2000},
        "experiment.max_eval_tokens: 2000 tokens never fill the largest cache, 2052; raise it",
    ),
    ({"experiment/window_size": 999999}, "experiment.max_eval_tokens: 4096 tokens never fill ... 1000003"),
    ({"experiment/sink_ablation/capacities": [16]}, "experiment.sink_ablation: capacity 16 leaves no"),
    ({"long_stream/max_eval_tokens": 400}, "long_stream.max_eval_tokens: 400 tokens never fill ... 512"),
    ({"long_stream/baseline_tokens": 400}, "long_stream.baseline_tokens: 400 tokens never fill ... 512"),
    (
        {"long_stream/capacities": [4, 256, 3]},
        "long_stream: capacity 4 leaves no window beside 4 sinks",
        "long_stream: capacity 3 leaves no window beside 4 sinks",
    ),
    ({"decoding_latency/n_sinks": [4, 512]}, "decoding_latency: capacity 512 leaves no window ... 512"),
    ({"decoding_latency/long_run/capacity": 3}, "decoding_latency.long_run: capacity 3 leaves no window"),
    (
        {"paper/positions/capacities": [4, 256], "long_stream/n_sink": 4},
        "paper.positions: capacity 4 leaves no window beside 4 sinks",
    ),
    (
        {"paper/models": ["none"], "experiment/n_sink": 4},
        "paper.models: 'none' is not under models; use one of smollm2",
    ),
    (
        {"paper/models": ["smollm2-135m-instruct"], "experiment/n_sink": 4},
        "paper.models: 'smollm2-135m-instruct' is experiment.model",
    ),
    ({"paper/positions/yarn": 1}, "paper.positions.yarn: 1 is too small"),
    ({"paper/positions/yarn": "four"}, "paper.positions.yarn: 'four' is of the wrong type"),
    ({"paper/attention_maps/sentence_tokens": 257}, "paper.attention_maps.sentence_tokens: 257 is too"),
    (
        {"paper/stream_eval/distances": [101]},
        "paper.stream_eval.lines: the last question is after line 100, and its distances and candidates",
    ),
    (
        {
            "paper/stream_eval/presses": ["KnormPress", "Norm", "KnormPress"],
            "tasks/presses": ["SnapKVPress(4)"],
        },
        "paper.stream_eval.presses: 'Norm': ",
        "paper.stream_eval.presses: 'KnormPress': KnormPress is there already; name every press once",
        "tasks.presses: 'SnapKVPress(4)': SnapKVPress has no argument without a name",
    ),
    ({"tasks/candidates": 4}, "tasks.candidates: candidates must be from 5 to 42, got 4"),
    ({"tasks/batches/capacity": 4}, "tasks.batches: capacity 4 leaves no window beside 4 sinks"),
    (
        {"tasks/batches/context_tokens": 257},
        "tasks.batches.context_tokens: 257 tokens never fill a cache of 256; raise it",
    ),
    ({"tasks/capacities": [4]}, "tasks: capacity 4 leaves no window beside 4 sinks"),
    ({"paper/stream_eval/lines": 128}, "paper.stream_eval.lines: 128 is too large"),
    ({"paper/stream_eval/n_sink": 128}, "paper.stream_eval: capacity 128 leaves no window beside 128 sinks"),
    (
        {"paper/pretraining/hidden": 36},
        "paper.pretraining.hidden: 36 must be a multiple of twice",
    ),
    ({"paper/pretraining/capacity": 4}, "paper.pretraining: capacity 4 leaves no window beside 4 sinks"),
    (
        {"paper/pretraining/scored_bytes": 65},
        "paper.pretraining.scored_bytes: 65 tokens never fill a cache of 64",
    ),
    ({"paper/pretraining/learning_rate": 0}, "paper.pretraining.learning_rate: 0 is too small"),
    ({"paper/sink_mass/n_sink": 512}, "paper.sink_mass: capacity 512 leaves no window beside 512 sinks"),
    (
        {"paper/sink_mass/context_tokens": 500},
        "paper.sink_mass.context_tokens: 500 tokens never fill a cache",
    ),
    ({"paper/sink_mass/stream_tokens": 513}, "paper.sink_mass.stream_tokens: 513 tokens never fill a cache"),
    (
        {"paper/sink_mass/capacity": 8, "paper/sink_mass/context_tokens": 100},
        "paper.sink_mass.context_tokens: 100 leave no room for 4 sinks and the 128 tokens that are looked at",
    ),
    ({"comparison/capacity": 100}, "comparison.capacity: 100 must be one of the budgets; add it there"),
    (
        {"comparison/budgets": [256, 4, 1024, 3]},
        "comparison.budgets: a budget of 4 leaves no window",
        "comparison.budgets: a budget of 3 leaves no window",
        "comparison.budgets: a budget of 1024 keeps all of",
    ),
    ({"comparison/n_sink": 255, "comparison/budgets": [256]}, "comparison.capacity: 256 leaves no window"),
    # a fault of the schema together with a contradiction, in the same section and in others
    (
        {"long_stream/dtype": "half", "long_stream/capacities": [4, "8"], "long_stream/baseline_tokens": -1},
        "long_stream.dtype: 'half' is not known",
        "long_stream.capacities.1: '8' is of the wrong type ... in digits without quotes (YAML",
        "long_stream.baseline_tokens: -1 is too small",
        "long_stream: capacity 4 leaves no window",
    ),
    (
        {"experiment": None, "comparison/capacity": 1, "decoding_latency/long_run/capacity": 3, "x": None},
        "experiment: null",
        "comparison.capacity: 1 must be one of",
        "comparison.capacity: 1 leaves no window",
        "decoding_latency.long_run: capacity 3 leaves",
        "x: null is under an unknown key",
    ),
]


def rules_of(schema):
    """Yield every part of a schema that says what a value may be."""
    yield schema
    for key in ("properties", "$defs"):
        for part in schema.get(key, {}).values():
            yield from rules_of(part)
    for key in ("items", "then", "else", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from rules_of(schema[key])


def test_schema_says_in_words_what_its_patterns_take():
    schema = yaml.safe_load(SCHEMA.read_text())
    rules = list(rules_of(schema))
    assert len(rules) > 80
    assert [rule for rule in rules if "pattern" in rule and "description" not in rule] == []
    assert all(describe(rule, schema) for rule in rules if rule.keys() & {"type", "enum", "$ref", "oneOf"})


def test_default_config_has_no_fault_and_is_left_as_it_is():
    config = deepcopy(CONFIG)
    models = config["models"]
    check_config(config, [ROOT / "config.yaml"])
    assert config == CONFIG
    assert config["models"] is models


@pytest.mark.parametrize(("edits", "expected"), [(edits, expected) for edits, *expected in ALONE])
def test_every_fault_is_one_line_with_key_value_rule_and_remedy(monkeypatch, edits, expected):
    monkeypatch.chdir(ROOT)
    assert_reported(changed(CONFIG, edits), expected)


# Names of models and texts lead from one of these sections to another.
TOGETHER = {"experiment", "models", "corpora"}


@pytest.mark.parametrize("seed", range(60))
def test_faults_of_several_sections_are_reported_at_once(monkeypatch, seed):
    monkeypatch.chdir(ROOT)
    drawn = random.Random(seed).sample(ALONE, 12)
    edits, expected, touched = {}, [], set()
    for more, *lines in drawn:
        sections = {key.partition("/")[0] for key in more}
        sections |= TOGETHER if sections & TOGETHER else set()
        if not sections & touched:
            edits, expected, touched = edits | more, expected + lines, touched | sections
    assert len(edits) > 1
    assert_reported(changed(CONFIG, edits), expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"experiment: [1\nn_sink: 2\n", "config.yaml line 2, column 7: not valid YAML: expected ',' or ']'"),
        (b"a: 1\n\tb: 2\n", "config.yaml line 2, column 1: not valid YAML: found character '\\t'"),
        (
            b"a: !unknown 3\n",
            "config.yaml line 1, column 4: not valid YAML: a tag, such as !name, is not read; leave it out",
        ),
        (b"", "config.yaml: null is not a config; write keys at its top, like"),
        (b"- experiment\n", "config.yaml: ['experiment'] is not a config; write keys at its top, like"),
        (b"\xff\xfe\xfd", "config.yaml: cannot be read: 'utf-8' codec"),
        (b"a: \0\n", "config.yaml: cannot be read: unacceptable character #x0000"),
        (
            b"a: 2024-99-99\n",
            "config.yaml: cannot be read: month must be in 1..12; write short, plain YAML in",
        ),
        (b"[" * 5000, "config.yaml: cannot be read: maximum recursion depth exceeded"),
    ],
)
def test_file_that_is_no_config_is_refused_in_one_line(monkeypatch, tmp_path, text, message):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_bytes(text)
    with pytest.raises(ValueError) as caught:
        check_file("config.yaml")
    assert str(caught.value).startswith(message)
    assert re.fullmatch("[^\n]+; [^\n]+", str(caught.value))


def test_keys_written_twice_are_named_with_their_lines(tmp_path):
    file = tmp_path / "twice.yaml"
    file.write_text("a: &a\n  n: 1\n  m: 2\n  n: 3\nb: *a\na: 3\n")
    assert report(CONFIG, [file]) == [
        f"a.n: written twice in {file}, lines 2 and 4; keep one of them",
        f"a: written twice in {file}, lines 1 and 6; keep one of them",
    ]
