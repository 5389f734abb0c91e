"""Thousands of damaged and hostile inputs at every door: each is taken, or refused in one line."""

import io
import json
import platform
import shutil
import subprocess
import tarfile
import zipfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import score_by_name
from fuzzing import try_input
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from mutations import changed_bytes, changed_json
from project import ROOT
from test_gguf import random_weights, write_gguf
from tiny_model import chat_tokenizer, write_tiny_model

from streamlm.config import Compute, StreamConfig
from streamlm.experiment.check import check_config
from streamlm.experiment.config_file import check_file
from streamlm.experiment.rescore import SampleSize
from streamlm.experiment.verdicts import Verifier, passed, verify_run
from streamlm.generate.chat import ChatTemplate
from streamlm.input_files import read_tokens
from streamlm.measure.open_model import open_model
from streamlm.measure.scoring import score_stream
from streamlm.records.files import read_losses, write_array
from streamlm.sources.archives import extract_members
from streamlm.sources.corpus import extract_documents
from streamlm.sources.gguf import convert_gguf
from streamlm.sources.tokens import read_tokenizer
from streamlm.stats import BootstrapConfig

pytestmark = pytest.mark.slow


def bounded(count):
    """Return settings for so many inputs, the same in every run."""
    return settings(
        max_examples=count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


def hold(folder, attempt, *args):
    """Check that an attempt is taken, or refused in one line."""
    outcome = try_input(folder, attempt, *args)
    OUTCOMES["taken" if outcome == "taken" else "refused"] += 1
    assert not outcome.startswith("!"), outcome


OUTCOMES = Counter()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, in which each attempt works."""
    torch.set_num_threads(1)  # threads do not outlive a fork
    platform.processor()  # asks a program, once in a process
    folder = tmp_path_factory.mktemp("fuzzing")
    write_tiny_model(folder / "honest", chat_tokenizer())
    return folder


def use_model(name, content):
    """Read a model, of which one file has this content, and score three tokens with it."""
    folder = Path("model")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree("honest", folder)
    (folder / name).write_bytes(content)
    tokenizer = read_tokenizer(folder)
    ChatTemplate(tokenizer, None).opening("hello")
    opened = open_model(folder, Compute(device="cpu", torch_threads=1))
    score_stream(opened.model, np.array([1, 2, 3, 4]), StreamConfig(n_sink=1, window_size=2))


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json"]
)
@bounded(150)
@given(data=st.data())
def test_settings_of_a_model_are_taken_or_refused(place, name, data):
    honest = json.loads((place / "honest" / name).read_text())
    hold(place, use_model, name, json.dumps(data.draw(changed_json(honest))).encode())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@bounded(80)
@given(data=st.data())
def test_damaged_file_of_a_model_is_taken_or_refused(place, name, data):
    hold(place, use_model, name, data.draw(changed_bytes((place / "honest" / name).read_bytes())))


def convert(content):
    """Convert a GGUF file of this content."""
    Path("it.gguf").write_bytes(content)
    convert_gguf(Path("it.gguf"), Path("converted"), "It")


@bounded(250)
@given(data=st.data())
def test_gguf_is_taken_or_refused(place, data):
    file = place / "honest.gguf"
    if not file.exists():
        write_gguf(file, random_weights())
    content = file.read_bytes()
    header = data.draw(changed_bytes(content[:4000]))  # most of it, so that most changes are there
    hold(place, convert, header + content[4000:])


def read_arrays(content):
    """Read ids and losses of this content."""
    for file, read in (
        ("ids.npy", read_tokens),
        ("it.npy", lambda path: read_losses(path.with_suffix(".json"))),
    ):
        Path(file).write_bytes(content)
        with suppress(ValueError):
            read(Path(file))


@bounded(300)
@given(data=st.data(), dtype=st.sampled_from(["<i8", "<f4", ">i8", "<f8"]))
def test_array_is_taken_or_refused(place, data, dtype):
    content = io.BytesIO()
    np.save(content, np.arange(20).astype(dtype))
    hold(place, read_arrays, data.draw(changed_bytes(content.getvalue())))


@pytest.fixture(scope="module")
def run_record(place):
    """An honest run, and what it is verified with."""
    ids, folder = np.arange(200) % 250, place / "results" / "runs" / "text"
    write_array(place / "tokens" / "text.npy", ids)
    record, losses = score_by_name(
        model_dir=place / "honest", ids=ids, dataset="Text", method="streaming", n_sink=1, window_size=20,
        bootstrap=BootstrapConfig(resamples=100),
    )  # fmt: skip
    write_array(folder / "sink1_window20.npy", losses)
    return record


def verify(content):
    """Verify a run whose record has this content."""
    path = Path("results/runs/text/sink1_window20.json")
    path.write_bytes(content)
    verdict = verify_run(
        Verifier(Path("results"), Path("honest"), Path("tokens"), SampleSize(9, 0), "cpu"), path
    )
    if not passed([verdict]):
        raise ValueError(verdict)


@bounded(250)
@given(data=st.data())
def test_record_is_confirmed_or_refused(place, run_record, data):
    hold(place, verify, json.dumps(data.draw(changed_json(run_record))).encode())


@bounded(100)
@given(data=st.data())
def test_damaged_record_is_confirmed_or_refused(place, run_record, data):
    hold(place, verify, data.draw(changed_bytes(json.dumps(run_record).encode())))


def archives():
    """Yield an honest archive of each kind."""
    files = {"a/one.txt": b"One rose. " * 300, "a/two.txt": b"Two roses."}
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    yield zipped.getvalue()
    for mode in ("w", "w:gz", "w:bz2", "w:xz"):
        tarred = io.BytesIO()
        with tarfile.open(fileobj=tarred, mode=mode) as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        yield tarred.getvalue()


def unpack(content):
    """Read the texts in an archive of this content."""
    Path("archive").write_bytes(content)
    list(extract_members(Path("archive"), ["*.txt"]))


@bounded(300)
@given(data=st.data(), honest=st.sampled_from([*archives()]))
def test_archive_is_taken_or_refused(place, data, honest):
    hold(place, unpack, data.draw(changed_bytes(honest)))


GUTENBERG = b"""The Project Gutenberg eBook of A Rose\n\nTitle: A Rose\n\nCharacter set encoding: UTF-8\n
*** START OF THE PROJECT GUTENBERG EBOOK A ROSE ***\n\nA rose is a rose.\n\n[Illustration]\n
*** END OF THE PROJECT GUTENBERG EBOOK A ROSE ***\n"""
MEDIAWIKI = b"""<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">
<page><title>Rose</title><ns>0</ns>
<revision><text>
'''Rose''' is a [[flower|plant]]{{cite|x={{y}}}}.&lt;ref name="a"&gt;b&lt;/ref&gt;
== Kinds ==\n* [[File:a.png|thumb|x [[y]]]]\n{| class="w"\n|-\n| a || b\n|}
</text></revision></page></mediawiki>"""
TEXTS = {"gutenberg": GUTENBERG, "mediawiki": MEDIAWIKI, "text": "Une rose, naïve.\r\n".encode()}


def read_text(form, content):
    """Read the documents in a file of this content."""
    Path("text").write_bytes(content)
    extract_documents({"kind": "path", "format": form}, Path("text"))


@pytest.mark.parametrize("form", TEXTS)
@bounded(120)
@given(data=st.data())
def test_text_is_taken_or_refused(place, form, data):
    hold(place, read_text, form, data.draw(changed_bytes(TEXTS[form])))


CONFIG = (ROOT / "config.yaml").read_bytes()


def check(content):
    """Check a config of this content, as the workflow does."""
    Path("config.yaml").write_bytes(content)
    check_file("config.yaml")
    try:
        check_config(yaml.safe_load(content), ["config.yaml"])
    except ValueError as error:
        raise ValueError(str(error).replace("\n  ", "; ")) from error


@bounded(200)
@given(data=st.data())
def test_config_is_taken_or_refused(place, data):
    value = data.draw(changed_json(yaml.safe_load(CONFIG)))
    hold(
        place, check, yaml.safe_dump(value, allow_unicode=data.draw(st.booleans())).encode("utf-8", "replace")
    )


@bounded(200)
@given(data=st.data())
def test_damaged_config_is_taken_or_refused(place, data):
    hold(place, check, data.draw(changed_bytes(CONFIG)))


def test_thousands_were_tried_and_some_taken():
    if sum(OUTCOMES.values()) < 2_000:
        pytest.skip("only some of the tests before this one were run")
    assert min(OUTCOMES["taken"], OUTCOMES["refused"]) >= 200, OUTCOMES


def compute_for_ever():
    while True:
        pass


@pytest.mark.parametrize(
    ("attempt", "fault"),
    [
        (lambda: 1 // 0, "ZeroDivisionError"),
        (lambda: print(1, file=open("/tmp/outside", "w")), "wrote to /tmp/outside"),  # noqa: PTH123, SIM115
        (lambda: subprocess.run(["true"]), "subprocess.Popen"),
        (lambda: bytearray(2**31), "MemoryError"),
        (compute_for_ever, "ended by signal 24"),
        (lambda: check(b"a: b: c\nd: \n" + b"x" * 9), None),
    ],
)
def test_faults_are_seen(place, attempt, fault):
    outcome = try_input(place, attempt)
    assert outcome.startswith("!") == (fault is not None)
    assert fault is None or fault in outcome
