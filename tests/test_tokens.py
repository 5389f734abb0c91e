"""Token ids piece by piece are those of the whole text, for tokenizers of every sort."""

import itertools
import random
from pathlib import Path

import numpy as np
import pytest
from project import ROOT
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from streamlm.sources import tokens
from streamlm.sources.documents import text_pieces
from streamlm.sources.tokens import token_pieces, tokenise

PROSE = (ROOT / "README.md").read_text() + (ROOT / "docs/concepts.md").read_text()
DIGITS = r"\d{1,3}(?=(?:\d{3})*(?!\d))|\D+"  # groups of three from the right
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPACE = "\u2581"


def bpe(pre_tokenizer=None, normalizer=None, model=None, trainer=None):
    core = Tokenizer(models.BPE(unk_token="?") if model is None else model)
    if pre_tokenizer is not None:
        core.pre_tokenizer = pre_tokenizer
    if normalizer is not None:
        core.normalizer = normalizer
    alphabet = sorted({*PROSE, *pre_tokenizers.ByteLevel.alphabet(), SPACE, "\u0300", "?"})
    trainer = trainer or trainers.BpeTrainer(
        vocab_size=900, special_tokens=["?"], initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(PROSE.split(), trainer)  # so that no token crosses into the next word
    return core


def split(pattern):
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


SPACES = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
UNIGRAM = trainers.UnigramTrainer(
    vocab_size=400, unk_token="?", special_tokens=["?"], show_progress=False,
    initial_alphabet=[*"abcdefghijklmnopqrstuvwxyz", SPACE],
)  # fmt: skip
MAKERS = {
    "byte level": lambda: bpe(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "words as Llama 3 has them, NFC": lambda: bpe(split(WORDS), normalizers.NFC()),
    "digits from the right": lambda: bpe(split(DIGITS)),
    "no words, spaces as marks": lambda: bpe(normalizer=SPACES),
    "marks in front of words": lambda: bpe(pre_tokenizers.Metaspace()),
    "unigram": lambda: bpe(pre_tokenizers.Metaspace(), None, models.Unigram(), UNIGRAM),
    "word pieces": lambda: bpe(
        pre_tokenizers.BertPreTokenizer(),
        normalizers.BertNormalizer(),
        models.WordPiece(unk_token="?"),
        trainers.WordPieceTrainer(vocab_size=400, special_tokens=["?"], show_progress=False),
    ),
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    made = PreTrainedTokenizerFast(tokenizer_object=MAKERS[request.param]())
    made.add_tokens([AddedToken("<|turn of the user|>", special=True), AddedToken("<mask>", lstrip=True)])
    return made


def drawn_text(seed):
    """Words, numbers, white space, accents that combine, special tokens; sometimes nothing between them."""
    rng = random.Random(seed)
    parts = [
        *PROSE.split()[:200], *(" \n\t" * 8), "\n\n", "    ", ".\n", "1234567890", "e\u0301", "\u00e9",
        "<|turn of the user|>", "<mask>", "<|turn of", "\u4e2d\u6587", " \u3000", "x" * 90,
    ]  # fmt: skip
    joints = ["", "", " "] if seed % 2 else [" "]
    return "".join(rng.choice(parts) + rng.choice(joints) for _ in range(rng.randrange(2, 900)))


@pytest.mark.parametrize("seed", range(12))
def test_pieces_are_those_of_the_whole(tokenizer, monkeypatch, seed):
    monkeypatch.setattr(tokens, "PIECE", 700)
    monkeypatch.setattr(tokens, "MARGIN", 150)
    text = drawn_text(seed)
    rng = random.Random(seed)
    ends = sorted(rng.randrange(len(text)) for _ in range(5))
    texts = [text[begin:end] for begin, end in itertools.pairwise([0, *ends, len(text)])]
    pieces = list(token_pieces(tokenizer, texts))
    assert [*itertools.chain(*pieces)] == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_prose_is_read_in_pieces_and_no_further_than_is_asked(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 3000)
    read = []

    def texts():
        for i in range(0, len(PROSE), 500):
            read.append(i)
            yield PROSE[i : i + 500]

    assert len(list(token_pieces(tokenizer, [PROSE]))) > 3
    first = next(token_pieces(tokenizer, texts()))
    assert 0 < len(first) <= 3000
    assert len(read) <= 7


def test_text_without_a_place_to_cut_is_read_whole(tokenizer, monkeypatch):
    monkeypatch.setattr(tokens, "PIECE", 700)
    assert len(list(token_pieces(tokenizer, ["x1" * 4000]))) == 1


def test_words_that_run_into_each_other_are_not_cut(monkeypatch):
    """Where tokens are pairs of words, the pairs depend on where the text began."""
    monkeypatch.setattr(tokens, "PIECE", 700)
    monkeypatch.setattr(tokens, "MARGIN", 150)  # an odd number of words
    vocab = {token: i for i, token in enumerate(["?", "a", " ", " a", " a a"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[(" ", "a"), (" a", " a")], unk_token="?"))
    made = PreTrainedTokenizerFast(tokenizer_object=core)
    text = " a" * 3001
    assert list(token_pieces(made, [text])) == [made(text, add_special_tokens=False)["input_ids"]]


def test_memory_does_not_grow_with_the_file(tmp_path, tokenizer):
    """Of a file of 40 MB, 256 ids need what one of 400 kB needs."""
    import tracemalloc

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    peaks = []
    for times in (1, 100):
        path = tmp_path / f"{times}.txt"
        path.write_text((PROSE + " ") * (times * 400_000 // len(PROSE)))
        tokenise([PROSE], tmp_path / "tokenizer", add_bos=False)
        tracemalloc.start()
        with path.open("rb") as file:
            ids = tokenise(text_pieces("x", file), tmp_path / "tokenizer", add_bos=False, max_tokens=256)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len(ids) == 256
    assert peaks[1] < 1.2 * peaks[0]


def test_file_is_refused_where_it_stops_being_text(tmp_path):
    for raw, message in (
        (b"a" * 70_000 + b"\xff", "x.txt is not UTF-8 \\(invalid start byte, near byte 7"),
        (b"a" * 70_000 + b"\0", "x.txt has the control character U\\+0000"),
        (b"\xef\xbb\xbf \n", "x.txt has no text"),
    ):
        Path(tmp_path / "x.txt").write_bytes(raw)
        with (tmp_path / "x.txt").open("rb") as file, pytest.raises(ValueError, match=message):
            list(text_pieces("x.txt", file))


def test_letters_over_the_edge_of_a_piece_stay_whole(tmp_path):
    text = "\ufeff" + "a" + "\u4e2d" * 50_000
    (tmp_path / "x.txt").write_text(text)
    with (tmp_path / "x.txt").open("rb") as file:
        assert "".join(text_pieces("x.txt", file)) == text[1:]


def test_ids_are_int64(tmp_path, tokenizer):
    tokenizer.save_pretrained(tmp_path)
    assert tokenise(["some words"], tmp_path, add_bos=False).dtype == np.int64
