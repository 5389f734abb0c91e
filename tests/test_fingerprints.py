"""What a rule of the workflow depends on: the modules that its script imports, and what their code means."""

import re
import shutil
from pathlib import Path

import pytest
from project import ROOT
from test_workflow import COMPARING, FETCHING, FIGURE, FROM_HUB, READING, TIMING
from test_workflow import MEASURING as MAIN_MEASURING
from test_workflow import SHOWING as MAIN_SHOWING

from streamlm import provenance
from streamlm.provenance import code_fingerprint

LOOKING = {"measure_attention_maps", "measure_sink_mass", "measure_sink_tokens"}
ASKING = {"measure_stream_eval", "measure_retrieval"}
BATCHED = {"measure_batches"}
MEASURING = MAIN_MEASURING | LOOKING | ASKING | BATCHED | {"measure_twin"}
TRAINING = {"train_twin"}
BYTES = {"train_twin", "measure_twin"}  # read texts without a tokenizer
ALONG = {"collect_methods_along", "collect_positions", "write_paper"}
SHOWING = MAIN_SHOWING | ALONG | {"collect_sink_mass", "collect_twins"}
OF_WORDS = {"measure_attention_maps", "measure_sink_tokens"} | ASKING  # need the tokenizer

# The rules whose script imports a wing or a module, directly or not: what an edit of it reruns, and all that
# follows. A module without a line has the rules of its wing; `plot_figure` has a figure's own module as well.
IMPORTING = {
    "__init__ __main__ cli extras limits py.typed": set(),
    "commands experiment generate harness": set(),
    "experiment.__init__ experiment.warm_start": MEASURING | TRAINING,
    "characters input_files records": FETCHING | READING | MEASURING | TRAINING | SHOWING,
    "records.fields": SHOWING - {"collect_sink_mass"},
    "records.names": MEASURING,
    "records.paper": (MEASURING - MAIN_MEASURING - BATCHED) | TRAINING | {"collect_twins", "write_paper"},
    "config": FROM_HUB
    | MEASURING
    | TRAINING
    | SHOWING - {"collect_sink_mass"}
    | {"convert_model", "fetch_sample"},
    "stats": MEASURING | SHOWING - {"collect_sink_mass"},
    "provenance": MEASURING | TRAINING,
    "cache": MEASURING,
    "cache.__init__ cache.folder": FROM_HUB | READING | MEASURING | TRAINING | {"convert_model"},
    "cache.stored cache.supported": FROM_HUB | MEASURING | {"convert_model"},
    "cache.footprint": set(),
    "sources": FETCHING | READING | BYTES,
    "sources.__init__": FETCHING | READING | BYTES | OF_WORDS,
    "sources.archives": FETCHING | READING | BYTES,
    "sources.corpus sources.documents sources.mediawiki": READING | BYTES | {"fetch_sample"},
    "sources.tokens": READING | BYTES | OF_WORDS | {"fetch_sample"},
    "sources.gguf sources.gguf_header": {"convert_model"} | FROM_HUB,
    "sources.hub sources.hub_client sources.hub_errors": FROM_HUB,
    "sources.hub_texts": {"fetch_sample"},
    "measure": MEASURING,
    "measure.__init__ measure.device": MEASURING | TRAINING,
    "tasks": ASKING,
    "tasks.stream_eval": {"measure_stream_eval"},
    "tasks.retrieval tasks.retrieval_text": {"measure_retrieval"},
    "pretrain": BYTES,
    "pretrain.training": TRAINING,
    "pretrain.scores": {"measure_twin"},
    "measure.perplexity": {"measure_perplexity"},
    "measure.scorers": {"measure_perplexity", "measure_sink_tokens", "measure_twin"},
    "measure.progress": TIMING
    | BYTES
    | ASKING
    | BATCHED
    | {"measure_perplexity", "measure_sink_mass", "measure_sink_tokens"},
    **{f"measure.{name.removeprefix('measure_')}": {name} for name in LOOKING},
    "measure.attention_maps": {"measure_attention_maps", "measure_twin"},
    "measure.memory": TIMING | COMPARING | ASKING | BATCHED,
    "measure.decoders measure.latency": TIMING | BATCHED,
    "presses": COMPARING | ASKING | BATCHED | {"collect_comparison", "write_comparison_summary"},
    "presses.adapter presses.agreement presses.setting": COMPARING | ASKING | BATCHED,
    "presses.prefill": {"measure_compression"} | ASKING | BATCHED,
    "presses.batches": BATCHED,
    "presses.decoding": {"measure_decoding"},
    "summaries": SHOWING,
    "summaries.main": SHOWING - {"collect_sink_mass"},
    "summaries.answer": {"write_answer", "write_summary"},
    "summaries.long_stream": ALONG | {"collect_long_stream"},
    "summaries.methods_along": ALONG,
    "summaries.positions": {"collect_positions", "write_paper"},
    "summaries.sink_mass": {"collect_sink_mass", "write_paper"},
    "summaries.tasks": {"write_paper"},
    "summaries.twins": {"collect_twins", "write_paper"},
    "summaries.paper": {"write_paper"},
    "summaries.latency": {"write_latency_summary"},
    "summaries.presses": {"collect_comparison", "write_comparison_summary"},
    "summaries.press_findings": {"write_comparison_summary"},
    "figures.__init__ figures.entry figures.style figures.table_files": FIGURE,
    "figures": set(),
}
IMPORTING = {name: rules for names, rules in IMPORTING.items() for name in names.split()}


def rules_of_scripts():
    """Return the rules that run each script, by its name."""
    rules = {}
    for file in (ROOT / "workflow" / "rules").glob("*.smk"):
        for text in re.split(r"^rule ", file.read_text(), flags=re.MULTILINE)[1:]:
            (script,) = re.findall(r'script:\s+"\.\./scripts/(\w+)\.py"', text)
            rules.setdefault(script, set()).add(re.match(r"\w+", text)[0])
    return rules


def test_every_module_is_known_to_the_rules_that_import_it_and_to_no_others():
    files = (ROOT / "streamlm").rglob("*.py")
    found = {".".join(file.relative_to(ROOT / "streamlm").with_suffix("").parts): set() for file in files}
    for script, rules in rules_of_scripts().items():
        for part in code_fingerprint(ROOT / "workflow" / "scripts" / f"{script}.py"):
            file = Path(part.split()[0])
            if file.parts[0] == "streamlm":
                found[".".join(file.with_suffix("").parts[1:])] |= rules
            else:
                assert file.stem == script  # a script depends on no other
    assert found == {name: IMPORTING.get(name, IMPORTING.get(name.partition(".")[0])) for name in found}


def test_every_script_is_run_by_a_rule():
    assert {file.stem for file in (ROOT / "workflow" / "scripts").glob("*.py")} == rules_of_scripts().keys()


@pytest.mark.parametrize(
    ("more", "changes"),
    [("# a comment\n", False), ('"""A docstring."""\n', False), ("\n\n\n", False), ("SPARE = 1\n", True)],
)
def test_fingerprints_change_with_what_a_file_means_alone(tmp_path, monkeypatch, more, changes):
    before = fingerprints(ROOT)
    for part in ("streamlm", "workflow/scripts"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in [*tmp_path.rglob("*.py")]:
        file.write_text(file.read_text() + more)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    after = fingerprints(tmp_path)
    assert after.keys() == before.keys()
    assert {file for file in after if after[file] != before[file]} == (set(after) if changes else set())


def fingerprints(root):
    """Return the hash of every file that a rule depends on."""
    scripts = (root / "workflow" / "scripts").glob("*.py")
    return dict(part.split() for script in scripts for part in code_fingerprint(script))
