"""`streamlm generate` as a user types it: prompts, their texts, and where these end."""

import json

import pytest
from command import refuse, streamlm
from tiny_model import byte_tokenizer, write_tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model."""
    path = tmp_path_factory.mktemp("generate")
    write_tiny_model(path / "model")
    (path / "empty.txt").write_text(" \n")
    return path


def generate(place, *args):
    return streamlm(place, "generate", "--model-name", "model", "--ignore-eos", *args)


def test_generate_writes_on_far_past_the_trained_length(place):
    common = ("--window-size", 20, "--max-new-tokens", 300, "--temperature", 1)
    shown = generate(place, "--prompt", "Once upon a time", *common)
    assert shown.returncode == 0, shown.stderr
    assert "300 tokens in" in shown.stderr
    assert "24 tokens kept" in shown.stderr
    written = generate(place, "--prompt", "Once upon a time", *common, "--output", "story.txt")
    assert (written.stdout, (place / "story.txt").read_text()) == ("", shown.stdout)
    answer = generate(place, "--prompt", "Once upon a time", *common, "--json")
    (text,) = json.loads(answer.stdout)["texts"]
    assert (text["text"] + "\n", text["new_tokens"], text["ended_by"]) == (shown.stdout, 300, "length")
    other = generate(place, "--prompt", "Once upon a time", *common, "--seed", 1)
    assert other.stdout != shown.stdout


def test_prompts_of_a_file_are_answered_as_they_would_be_alone(place):
    prompts = ["A rose", "is", "a rose of another name"]
    (place / "prompts.txt").write_text("\n".join(prompts) + "\n\n")
    common = ("--window-size", 20, "--max-new-tokens", 40, "--dtype", "float64")
    done = generate(place, "--prompts", "prompts.txt", *common)
    assert done.returncode == 0, done.stderr
    alone = [json.loads(generate(place, "--prompt", p, *common, "--json").stdout) for p in prompts]
    blocks = zip(prompts, alone, strict=True)
    assert done.stdout == "".join(f"==> {p} <==\n{a['texts'][0]['text']}\n\n" for p, a in blocks)


def test_a_prompt_ends_at_a_line_feed_and_nowhere_else(place):
    prompts = ["first half\u2028second half", "page one\x0cpage two\x85end", "other"]
    (place / "lines.txt").write_bytes("\r\n".join(["\ufeff" + prompts[0], *prompts[1:], ""]).encode())
    done = generate(place, "--prompts", "lines.txt", "--max-new-tokens", 2, "--json")
    assert [text["prompt"] for text in json.loads(done.stdout)["texts"]] == prompts


def test_prompts_that_are_not_utf8_are_refused(place):
    (place / "latin.txt").write_bytes("café\n".encode("latin-1"))
    refuse(generate(place, "--prompts", "latin.txt"), 1, "latin.txt is not UTF-8")
    refuse(generate(place, "--prompt", "caf\udce9"), 1, "--prompt is not UTF-8; set the terminal to UTF-8")
    refuse(streamlm(place, "chat", "--system", "tr\udce8s"), 1, "--system is not UTF-8")


def test_prompt_beyond_the_vocabulary_is_refused(place):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens(["beyond"])
    write_tiny_model(place / "short", tokenizer, vocab_size=len(tokenizer) - 1)
    done = streamlm(place, "generate", "--model-name", "short", "--prompt", "far beyond")
    refuse(done, 1, "is outside the vocabulary of")


def test_generate_ends_in_front_of_a_stop_text(place):
    common = ("--prompt", "Hm", "--max-new-tokens", 60, "--temperature", 1, "--json")
    whole = json.loads(generate(place, *common).stdout)["texts"][0]["text"]
    stop = next(char for char in whole[10:] if char.isascii() and char.isprintable())
    (text,) = json.loads(generate(place, *common, "--stop", stop).stdout)["texts"]
    assert (text["text"], text["ended_by"]) == (whole[: whole.index(stop)], "stop text")


def test_generate_refuses(place):
    refuse(generate(place), 2, "give exactly one of --prompt and --prompts")
    refuse(
        generate(place, "--prompt", "a", "--top-p", 2),
        2,
        "'--top-p': Input should be less than or equal to 1",
    )
    refuse(generate(place, "--prompts", "empty.txt"), 1, "empty.txt has no prompt")
    refuse(generate(place, "--prompts", "missing.txt"), 1, "missing.txt")
    refuse(generate(place, "--prompt", "", "--output", "never.txt"), 1, "the prompt '' has no tokens")
    refuse(generate(place, "--prompt", "a", "--chat"), 1, "has no chat template")
