"""The hub path, without the internet: the real clients fetch from `hub_server`, each in its own process."""

import json
import random
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command import only_line
from hub_files import ARTICLES, BOOKS, PG19, PYTHIA, WIKITEXT, environment, parquet, wikitext_files
from hub_server import Fault
from project import ROOT
from test_gguf import random_weights, write_gguf
from transformers import AutoModelForCausalLM

from streamlm.cache.models import load_model
from streamlm.sources.corpus import read_sample

REMEDIES = ("HF_ENDPOINT", "HF_HOME", "default experiment")
MODEL = """
from pathlib import Path
from streamlm.sources.hub import fetch_model
from streamlm.sources.hub_errors import one_line
with one_line():
    fetch_model({source}, Path("data/models/pythia-70m"), "Tiny Pythia")
"""
TEXT = """
from pathlib import Path
from streamlm.sources.corpus import write_sample
from streamlm.sources.hub_errors import one_line
from streamlm.sources.hub_texts import fetch_documents
with one_line():
    documents, source = fetch_documents({source})
write_sample(Path("data/text/sample.json"), "A text", source, documents)
"""
SAMPLE = "data/text/sample.json"


def fetch(hub, folder, program, source, **changes):
    """Run a fetch in its own process: the clients read their environment when they are imported."""
    return subprocess.run(
        [sys.executable, "-c", program.format(source=source)],
        cwd=folder, env=environment(hub, folder, **changes), capture_output=True, text=True,
    )  # fmt: skip


def fetched(hub, folder, program, source, **changes):
    done = fetch(hub, folder, program, source, **changes)
    assert (done.returncode, done.stderr) == (0, "")
    if program == MODEL:
        return folder / "data" / "models" / "pythia-70m"
    return read_sample(folder / SAMPLE)


def survivors(folder):
    """Return what a failed fetch left in data/, and what it left half-done anywhere."""
    kept = [path for path in (folder / "data").rglob("*") if path.is_file()]
    return kept + list(folder.rglob("*incomplete*"))


def test_model_folder_is_like_a_packaged_one(hub, tmp_path, pythia):
    folder = fetched(hub, tmp_path, MODEL, PYTHIA)
    names = {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert {path.name for path in folder.iterdir()} == names
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("streamlm_title") == "Tiny Pythia"
    assert config.pop("streamlm_commit") == PYTHIA["revision"]
    assert config == json.loads(pythia["config.json"])
    for name in names - {"config.json"}:
        assert (folder / name).read_bytes() == pythia[name]
    model = load_model(folder, dtype=torch.float32, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ours = dict(model.named_parameters())
    assert all(torch.equal(weight, ours[name]) for name, weight in theirs.named_parameters())


def test_articles_of_wikitext_are_whole_and_only_their_file_is_fetched(hub, tmp_path):
    sample = fetched(hub, tmp_path, TEXT, WIKITEXT)
    assert {document.title: document.text for document in sample.documents} == {
        title: text.strip() for title, text in ARTICLES.items()
    }
    assert sample.source["commit"] == WIKITEXT["revision"]
    assert not any("train" in path for _, path in hub.asked)


def test_one_book_is_streamed_without_the_rest_of_the_file(hub, tmp_path):
    noise = random.Random(0).randbytes(20_000_000).hex()
    file = parquet(text=[BOOKS[0], noise], url=["a", "b"])
    hub.add("datasets", PG19["repo"], {"data/test-00000.parquet": file}, PG19["revision"])
    sample = fetched(hub, tmp_path, TEXT, PG19)
    assert [document.text for document in sample.documents] == [BOOKS[0]]
    assert hub.sent < len(file) / 2


def test_branch_is_recorded_as_its_commit(hub, tmp_path):
    sample = fetched(hub, tmp_path, TEXT, {**PG19, "revision": "main"})
    assert (sample.source["revision"], sample.source["commit"]) == ("main", PG19["revision"])


def test_parquet_conversion_of_the_hub_is_a_revision_like_any(hub, tmp_path):
    files = {"default/test/0000.parquet": parquet(text=BOOKS)}
    hub.add("datasets", "old/pg19", files, branch="refs/convert/parquet")
    source = {
        **PG19,
        "repo": "old/pg19",
        "revision": "refs/convert/parquet",
        "config": "default",
        "rows": None,
    }
    assert [document.text for document in fetched(hub, tmp_path, TEXT, source).documents] == BOOKS


def test_gguf_of_a_hub_becomes_a_model_folder(hub, tmp_path):
    write_gguf(tmp_path / "m.gguf", random_weights())
    hub.add("models", "org/gguf", {"m.gguf": (tmp_path / "m.gguf").read_bytes()})
    done = fetch(hub, tmp_path, MODEL, {"repo": "org/gguf", "revision": "main", "gguf": "m.gguf"})
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "data" / "models" / "pythia-70m"
    assert json.loads((folder / "config.json").read_text())["streamlm_title"] == "Tiny Pythia"
    assert (folder / "model.safetensors").is_file()


def test_filled_cache_serves_offline(hub, tmp_path):
    fetched(hub, tmp_path, MODEL, PYTHIA)
    online = fetched(hub, tmp_path, TEXT, WIKITEXT)
    shutil.rmtree(tmp_path / "data")
    hub.asked.clear()
    assert (fetched(hub, tmp_path, MODEL, PYTHIA, HF_HUB_OFFLINE="1") / "model.safetensors").is_file()
    assert fetched(hub, tmp_path, TEXT, WIKITEXT, HF_HUB_OFFLINE="1") == online
    assert hub.asked == []


def test_streamed_text_needs_its_file_in_the_cache_offline(hub, tmp_path):
    fetched(hub, tmp_path, TEXT, PG19)
    (tmp_path / SAMPLE).unlink()
    line = only_line(fetch(hub, tmp_path, TEXT, PG19, HF_HUB_OFFLINE="1"))
    assert f"from the cache in HF_HOME ({tmp_path / 'hf'}), as HF_HUB_OFFLINE is set: it is not there" in line
    download = [Path(sys.executable).parent / "hf", "download", PG19["repo"], "--repo-type", "dataset"]
    only = ["--revision", PG19["revision"], "--include", "README.md", "--include", "data/test-*"]
    subprocess.run([*download, *only], env=environment(hub, tmp_path), check=True, capture_output=True)
    assert fetched(hub, tmp_path, TEXT, PG19, HF_HUB_OFFLINE="1").documents[0].text == BOOKS[0]


READ = ("GET",)
FAULTS = {
    "401": (TEXT, WIKITEXT, Fault(401, "/api/"), "401 Unauthorized for /api/datasets/.*set HF_TOKEN"),
    "404": (TEXT, WIKITEXT, Fault(404, "/api/"), "404 Not Found for /api/datasets/.*correct the name"),
    "429": (TEXT, WIKITEXT, Fault(429, "/resolve/"), "429 Too Many Requests for /datasets/.*wait"),
    "429 of a listing": (TEXT, WIKITEXT, Fault(429, "/tree/"), "429 Too Many Requests for /api/datasets/"),
    "500": (TEXT, WIKITEXT, Fault(500, "/resolve/"), "500 Internal Server Error for .*try again"),
    "500 in a stream": (TEXT, PG19, Fault(500, "/cdn/"), "500 Internal Server Error for /cdn/.*try again"),
    "stalled listing": (TEXT, PG19, Fault("stall", "/tree/"), "it sent nothing for 1 s; try again"),
    "stalled body": (MODEL, PYTHIA, Fault("stall", "/cdn/", READ), "it sent nothing for 1 s; try again"),
    "body cut short": (MODEL, PYTHIA, Fault("cut", "/cdn/", READ), "the connection broke off .*try again"),
    "wrong weights": (MODEL, PYTHIA, Fault("corrupt", "/cdn/"), "^model.safetensors of .*another hash"),
    "wrong config": (MODEL, PYTHIA, Fault("corrupt", "config.json"), "^config.json, gen.*another hash"),
    "wrong text": (TEXT, WIKITEXT, Fault("corrupt", "/cdn/"), "^test-00000-of-.*another hash"),
    "wrong stream": (TEXT, PG19, Fault("corrupt", "/cdn/"), "Parquet magic bytes not found"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault_is_one_line_with_remedies_and_a_retry_picks_up(hub, tmp_path, name):
    program, source, fault, reason = FAULTS[name]
    hub.faults.append(fault)
    line = only_line(fetch(hub, tmp_path, program, source))
    assert re.search(reason, line), line
    assert all(part in line for part in (*REMEDIES, source["repo"], hub.url)), line
    assert survivors(tmp_path) == []
    hub.faults.clear()
    fetched(hub, tmp_path, program, source)


@pytest.mark.parametrize(("program", "source"), [(MODEL, PYTHIA), (TEXT, WIKITEXT)], ids=["model", "text"])
def test_hub_that_is_gone_is_one_line(hub, tmp_path, program, source):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # not listening
        gone = f"http://127.0.0.1:{taken.getsockname()[1]}"
        line = only_line(fetch(hub, tmp_path, program, source, HF_ENDPOINT=gone))
    assert f"from {gone}: no server answers there; check the network and HF_ENDPOINT" in line
    assert all(part in line for part in REMEDIES)
    assert survivors(tmp_path) == []
    fetched(hub, tmp_path, program, source)


@pytest.mark.parametrize(
    ("program", "source", "fault"),
    [
        (TEXT, WIKITEXT, Fault(429, "/resolve/", times=2)),
        (TEXT, WIKITEXT, Fault(500, "/resolve/", ("HEAD",), times=2)),
        (TEXT, PG19, Fault(429, "/cdn/", times=2)),
        (TEXT, WIKITEXT, Fault("cut", "/cdn/", READ, times=1)),
        (TEXT, WIKITEXT, Fault("stall", "/cdn/", READ, times=1)),
    ],
    ids=["429", "500", "429 in a stream", "cut", "stall"],
)
def test_passing_fault_is_not_noticed(hub, tmp_path, program, source, fault):
    hub.faults.append(fault)
    fetched(hub, tmp_path, program, source)
    assert fault.times == 0


def test_what_came_whole_is_not_fetched_again(hub, tmp_path):
    hub.faults.append(Fault("corrupt", "/cdn/"))
    only_line(fetch(hub, tmp_path, MODEL, PYTHIA))
    hub.faults.clear()
    hub.asked.clear()
    fetched(hub, tmp_path, MODEL, PYTHIA)
    assert [
        path for method, path in hub.asked if method == "GET" and "/api/" not in path and "cdn" not in path
    ] == []


def test_weights_in_pickles_are_refused(hub, tmp_path, pythia):
    files = {name: content for name, content in pythia.items() if not name.endswith(".safetensors")}
    hub.add("models", PYTHIA["repo"], files, PYTHIA["revision"])
    line = only_line(fetch(hub, tmp_path, MODEL, PYTHIA))
    assert "has no model.safetensors, and pickled weights (pytorch_model.bin) are never loaded" in line
    assert not any(path.endswith(".bin") for _, path in hub.asked)


def test_model_that_needs_code_of_its_own_is_refused_and_the_code_not_fetched(hub, tmp_path, pythia):
    auto_map = {"AutoModelForCausalLM": "modeling.Own", "AutoConfig": "modeling.Cfg"}
    config = json.loads(pythia["config.json"]) | {"model_type": "own", "auto_map": auto_map}
    code = b"import pathlib; pathlib.Path('ran').touch()"
    files = {**pythia, "config.json": json.dumps(config).encode(), "modeling.py": code}
    hub.add("models", PYTHIA["repo"], files, PYTHIA["revision"])
    line = only_line(fetch(hub, tmp_path, MODEL, PYTHIA))
    assert "a model of type 'own', which transformers does not know without the repository's own code" in line
    assert not any(path.endswith(".py") for _, path in hub.asked)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("files", "change", "message"),
    [
        ({"pg19.py": b"raise SystemExit"}, {}, "has no parquet for config None, split test .*scripts"),
        (None, {"column": "txt"}, "has no column 'txt'; use one of text, url"),
        (None, {"split": "dev"}, "has no parquet for config None, split dev"),
        (
            {"data/test-00000-of-00002.parquet": parquet(text=["half of it"])},
            {"rows": None},
            "the cache has 1 of 2 parts of test.parquet of emozilla/pg19; fetch them with",
        ),
        (None, {"revision": "v9"}, "404 Not Found for .*v9; correct the name and the revision"),
        (wikitext_files(), {"config": "wikitext-2"}, "no config 'wikitext-2'; use one of wikitext-103"),
        (wikitext_files(), {}, "has no config None; use one of wikitext-103-raw-v1, wikitext-103-v1"),
        (wikitext_files(), {"config": "wikitext-103-v1", "split": "dev"}, "no split 'dev'; use one of te"),
    ],
)  # fmt: skip
def test_wrong_name_of_a_text_is_one_line(hub, tmp_path, files, change, message):
    if files:
        hub.add("datasets", PG19["repo"], files, PG19["revision"])
    line = only_line(fetch(hub, tmp_path, TEXT, PG19 | change))
    assert re.search(message, line), line


def test_no_option_lets_code_of_a_hub_run():
    for file in [
        *(ROOT / "streamlm").rglob("*.py"),
        *(ROOT / "workflow").rglob("*.*"),
        *(ROOT / "configs").iterdir(),
    ]:
        if file.suffix in {".py", ".yaml", ".smk"}:
            text = file.read_text().replace("trust_remote_code=False", "")
            if file.parent.name == "commands":  # an option of old commands, which is read only to warn
                text = text.replace("    trust_remote_code: Annotated[\n", "")
                text = text.replace("    if source.trust_remote_code:\n        warnings.warn(\n", "")
            assert "trust_remote_code" not in text, file
            assert "pickle.load" not in text, file
