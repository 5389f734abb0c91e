"""Documents are read from archives and files; the stream is exactly their joined text."""

import hashlib
import json
import warnings

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from streamlm.sources.corpus import extract_documents, read_sample, tokenise_documents, write_sample
from streamlm.sources.documents import Document


def test_documents_of_a_local_text_are_the_file_unchanged(tmp_path):
    (tmp_path / "story.txt").write_text(" Once \n\n\n upon ")
    documents = extract_documents({"kind": "path", "format": "text"}, tmp_path / "story.txt")
    assert documents == [Document("story", " Once \n\n\n upon ")]


def test_documents_of_a_package_follow_its_patterns(archive):
    source = {
        "kind": "package",
        "format": "gutenberg",
        "members": ["*/b.txt", "*.txt"],
        "sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
    }
    assert [document.text for document in extract_documents(source, archive)] == ["second", "first"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"format": "pdf"}, "unknown format 'pdf'"),
        ({"kind": "ftp"}, "unknown kind of source 'ftp'"),
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
    with pytest.raises(ValueError, match=r"sample\.json is not a sample"):
        read_sample(tmp_path / "sample.json")


@pytest.fixture(params=[False, True], ids=["plain", "adds bos by itself"])
def tokenizer_dir(request, tmp_path):
    """A byte-level tokenizer with a few merges and a BOS, which some tokenizers put in front unasked."""
    alphabet = ["<s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "ll", "Ġhe", "ĊĊ"]
    merges = [("h", "e"), ("l", "l"), ("Ġ", "he"), ("Ċ", "Ċ")]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(alphabet)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    if request.param:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.mark.parametrize("max_samples", [None, 1, 2, 99])
@pytest.mark.parametrize("add_bos", [False, True])
def test_stream_is_the_joined_text_tokenised_once(tokenizer_dir, add_bos, max_samples):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ids = tokenise_documents(DOCUMENTS, tokenizer_dir, add_bos=add_bos, max_samples=max_samples)
    would_add = AutoTokenizer.from_pretrained(tokenizer_dir)("x")["input_ids"][0] == 0
    assert ["begins a text with BOS" in str(w.message) for w in caught] == [True] * (
        would_add and not add_bos
    )
    core = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    text = "\n\n".join(document.text for document in DOCUMENTS[:max_samples])
    expected = core.encode(text, add_special_tokens=False).ids
    assert ids.tolist() == [core.token_to_id("<s>")] * add_bos + expected
    assert core.decode(ids.tolist()) == text
    assert ids.dtype == np.int64


def test_stream_without_tokens_is_refused(tokenizer_dir):
    with pytest.raises(ValueError, match="there are no tokens in the text"):
        tokenise_documents([], tokenizer_dir, add_bos=True, max_samples=None)


def test_bos_asked_of_a_tokenizer_without_one_is_refused(tokenizer_dir):
    config = tokenizer_dir / "tokenizer_config.json"
    settings = json.loads(config.read_text()) | {"bos_token": None, "add_bos_token": False}
    config.write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="has no BOS"):
        tokenise_documents(DOCUMENTS, tokenizer_dir, add_bos=True, max_samples=None)
