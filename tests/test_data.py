"""Archives come whole or not at all; documents are prose; the stream is the exact concatenated text."""

import hashlib
import io
import json
import os
import tarfile
import tempfile
import zipfile

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from streamlm.data import (
    extract_documents,
    extract_members,
    fetch_archive,
    read_sample,
    tokenise_documents,
    write_sample,
)
from streamlm.text import Document

MEMBERS = {"demo/b.txt": b"second", "demo/a.txt": b"first", "demo/note.md": b"third"}


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path, members):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(params=[(make_zip, "demo.whl"), (make_tar, "demo.tar.gz")], ids=["wheel", "tar.gz"])
def archive(request, tmp_path):
    make, name = request.param
    return make(tmp_path / name, MEMBERS)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A one-package index that pip sees instead of the network, and its wheel."""
    info = "demo-1.0.dist-info"
    members = {
        "demo/text.txt": "words",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    index = tmp_path / "index"
    index.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    return make_zip(index / "demo-1.0-py3-none-any.whl", members)


def pinned(wheel, **changes):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"kind": "package", "requirement": "demo==1.0", "sha256": digest} | changes


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_fetch_makes_the_pinned_archive_and_nothing_else(wheel, tmp_path):
    target = tmp_path / "out" / "demo.archive"
    fetch_archive(pinned(wheel), target)
    assert files_under(target.parent) == [target]
    assert target.read_bytes() == wheel.read_bytes()
    assert files_under(tmp_path / "scratch") == []


def test_fetch_passes_pip_args_on(wheel, tmp_path):
    with pytest.raises(ValueError, match=r"cannot download demo==1\.0"):
        fetch_archive(pinned(wheel, pip_args=["--no-binary=:all:"]), tmp_path / "out" / "demo")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sha256": "0" * 64}, ["demo==1.0 has sha256", "expected " + "0" * 64, "sha256 in the config"]),
        ({"requirement": "demo==9.9"}, ["cannot download demo==9.9", "No matching distribution", "network"]),
        ({"requirement": "absent==1.0"}, ["cannot download absent==1.0", "check the network"]),
    ],
    ids=["wrong hash", "no such version", "no such package"],
)
def test_fetch_failure_is_one_clear_line_and_leaves_nothing(wheel, tmp_path, changes, parts):
    with pytest.raises(ValueError, match=r"demo|absent") as caught:
        fetch_archive(pinned(wheel, **changes), tmp_path / "out" / "demo")
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []
    assert files_under(tmp_path / "scratch") == files_under(tmp_path / "out") == []


def test_fetch_without_network_says_so(wheel, tmp_path, monkeypatch):
    args = ["--index-url=http://127.0.0.1:9/simple", "--retries=1", "--no-cache-dir"]
    monkeypatch.delenv("PIP_NO_INDEX")
    source = pinned(wheel, requirement="absent==1.0", pip_args=args)
    with pytest.raises(ValueError, match=r"absent==1\.0: no connection to the package index, .*absent==1\.0"):
        fetch_archive(source, tmp_path / "absent")


def test_wrong_hash_message_names_the_hash_that_came(wheel, tmp_path):
    with pytest.raises(ValueError, match=hashlib.sha256(wheel.read_bytes()).hexdigest()):
        fetch_archive(pinned(wheel, sha256="0" * 64), tmp_path / "demo")


def test_members_come_in_pattern_order_each_once(archive):
    found = list(extract_members(archive, ["demo/b.*", "*.txt", "*.md"]))
    assert found == [("demo/b.txt", b"second"), ("demo/a.txt", b"first"), ("demo/note.md", b"third")]


def test_members_pattern_without_match_is_named(archive):
    with pytest.raises(ValueError, match=rf"{archive.name} matches '\*\.csv'"):
        list(extract_members(archive, ["*.txt", "*.csv"]))


def test_members_are_never_written_to_disk(tmp_path):
    (tmp_path / "inside").mkdir()
    evil = make_tar(tmp_path / "inside" / "x.tar.gz", {"../escaped.txt": b"boo"})
    assert list(extract_members(evil, ["*"])) == [("../escaped.txt", b"boo")]
    assert files_under(tmp_path) == [evil]


@pytest.mark.parametrize("keep", [0, 10, 60, -30])
def test_damaged_archive_says_delete_it(archive, keep):
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(ValueError, match="delete it and run again") as caught:
        list(extract_members(archive, ["*.txt"]))
    assert "\n" not in str(caught.value)


def test_documents_of_a_local_text_are_the_file_unchanged(tmp_path):
    (tmp_path / "story.txt").write_text(" Once \n\n\n upon ")
    documents = extract_documents({"kind": "path", "format": "text"}, tmp_path / "story.txt")
    assert documents == [Document("story", " Once \n\n\n upon ")]


def test_documents_of_a_package_follow_its_patterns(archive):
    source = {"kind": "package", "format": "gutenberg", "members": ["*/b.txt", "*.txt"]}
    assert [document.text for document in extract_documents(source, archive)] == ["second", "first"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "pdf"}, "unknown format 'pdf'"),
        ({"kind": "ftp"}, "unknown kind 'ftp'"),
        ({}, "no such file"),
    ],
)
def test_documents_refuse_what_they_cannot_read(tmp_path, changes, match):
    with pytest.raises(ValueError, match=match):
        extract_documents({"kind": "path", "format": "text"} | changes, tmp_path / "absent.txt")


DOCUMENTS = [Document("A", "hello wörld 12\n"), Document("B", "  hello 日本\n\nagain"), Document("C", "last")]


def test_sample_round_trips_byte_for_byte(tmp_path):
    source = {"kind": "path", "format": "text"}
    write_sample(tmp_path / "one.json", "True name", source, DOCUMENTS)
    write_sample(tmp_path / "two.json", "True name", dict(reversed(source.items())), DOCUMENTS)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    sample = read_sample(tmp_path / "one.json")
    assert (sample.dataset, sample.source, sample.documents) == ("True name", source, DOCUMENTS)
    record = json.loads((tmp_path / "one.json").read_text())
    assert record["documents"][0] == {"title": "A", "text": "hello wörld 12\n"}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"dataset": "x"}', '{"dataset": "x", "documents": [{"a": 1}]}']
)
def test_sample_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "sample.json").write_text(content)
    with pytest.raises(ValueError, match=r"sample\.json is no sample"):
        read_sample(tmp_path / "sample.json")


@pytest.fixture(params=[False, True], ids=["plain", "adds bos by itself"])
def tokenizer_dir(request, tmp_path):
    """A byte-level tokenizer with a few merges and a BOS, which some tokenizers put in front unasked."""
    alphabet = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "Ġhe", "ĊĊ"]
    merges = [("h", "e"), ("l", "l"), ("Ġ", "he"), ("Ċ", "Ċ")]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", add_bos_token=request.param)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("max_samples", [None, 1, 2, 99])
@pytest.mark.parametrize("add_bos", [False, True])
def test_stream_is_the_joined_text_tokenised_once(tokenizer_dir, add_bos, max_samples):
    ids = tokenise_documents(DOCUMENTS, tokenizer_dir, add_bos=add_bos, max_samples=max_samples)
    core = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    text = "\n\n".join(document.text for document in DOCUMENTS[:max_samples])
    expected = core.encode(text, add_special_tokens=False).ids
    assert ids.tolist() == [core.token_to_id("<s>")] * add_bos + expected
    assert core.decode(ids.tolist()) == text
    assert ids.dtype == np.int64


def test_stream_without_tokens_is_refused(tokenizer_dir):
    with pytest.raises(ValueError, match="no tokens in 0 documents"):
        tokenise_documents([], tokenizer_dir, add_bos=True, max_samples=None)


def test_bos_asked_of_a_tokenizer_without_one_is_refused(tokenizer_dir):
    config = tokenizer_dir / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"bos_token": None, "add_bos_token": False}
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no BOS"):
        tokenise_documents(DOCUMENTS, tokenizer_dir, add_bos=True, max_samples=None)
