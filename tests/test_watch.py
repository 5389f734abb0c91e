"""A text as a cache reads it: attention is that of the slow twin, and what is shown is what is meant."""

import io
import json
import re
from contextlib import contextmanager
from html.parser import HTMLParser

import numpy as np
import pytest
import reference
import torch
from check_report import CHROMIUM, FLAGS
from command import refuse, streamlm
from conftest import VOCAB, tiny_llama, tiny_neox, use_float64_angles
from families import build
from rich.console import Console
from tiny_model import byte_tokenizer, write_tiny_model

from streamlm.cache.prepare import prepare
from streamlm.commands.watch_page import watch_page
from streamlm.commands.watch_text import legend, picture, summary
from streamlm.config import StreamConfig
from streamlm.generate.watching import WatchedToken, _numbers, kept_tokens, token_texts, watch

IDS = np.random.default_rng(3).integers(VOCAB, size=40)
HOSTILE = "</script><script>alert(1)</script> [bold]x[/] \x1b[31m & $5 日本 🙂\n"


LOSSES = {tiny_llama: reference.llama_losses, tiny_neox: reference.neox_losses}


@pytest.mark.parametrize("make", [tiny_llama, tiny_neox])
@pytest.mark.parametrize(("n_sink", "window_size"), [(0, 5), (1, 1), (3, 6), (4, 36), (4, 50)])
@pytest.mark.parametrize("layer", [None, 0, 1])
def test_shares_are_those_of_the_slow_twin(make, n_sink, window_size, layer):
    caches = [reference.Evicting(n_sink, window_size) for _ in range(2)]
    with torch.inference_mode():
        LOSSES[make](use_float64_angles(make()), [*IDS.tolist(), 0], n_sink, window_size, caches)
    cfg = StreamConfig(n_sink=n_sink, window_size=window_size)
    with prepare(use_float64_angles(make())) as model:
        tokens = list(watch(model, IDS, cfg, layer))
    assert [token.position for token in tokens] == list(range(len(IDS)))
    for token in tokens:
        seen = [caches[i].seen[token.position] for i in ([0, 1] if layer is None else [layer])]
        assert token.kept.tolist() == sorted(seen[0])
        slow = {t: np.mean([shares[t].mean().item() for shares in seen]) for t in token.kept.tolist()}
        np.testing.assert_allclose(token.shares, [*slow.values()], rtol=0, atol=1e-9)
        on_sinks = sum(share for t, share in slow.items() if t < n_sink)
        np.testing.assert_allclose(token.totals(cfg), [on_sinks, 1 - on_sinks, 0], rtol=0, atol=1e-9)


def test_one_token_attends_to_itself():
    with prepare(tiny_neox()) as model:
        (token,) = watch(model, IDS[:1], StreamConfig(n_sink=4, window_size=8))
    assert (token.kept.tolist(), token.shares.tolist()) == ([0], [1.0])


def test_learned_sinks_take_what_is_on_no_token():
    plain = build("gpt_oss 64")
    plain.set_attn_implementation("eager")
    ids = IDS[:12] % plain.config.vocab_size
    with torch.inference_mode():
        given = plain(torch.as_tensor(ids)[None], output_attentions=True).attentions
    cfg = StreamConfig(n_sink=4, window_size=60)
    with prepare(build("gpt_oss 64")) as model:
        tokens = list(watch(model, ids, cfg))
    for token in tokens:
        shares = torch.stack([layer[0, :, token.position].mean(0) for layer in given]).double().mean(0)
        np.testing.assert_allclose(token.shares, shares[: token.position + 1], rtol=0, atol=1e-6)
        sinks, window, nowhere = token.totals(cfg)
        assert nowhere == pytest.approx(1 - shares.sum().item(), abs=1e-6)
        assert 0.001 < nowhere < 1
        assert sinks + window + nowhere == pytest.approx(1)


def test_a_layer_that_sees_further_than_the_window_keeps_what_it_sees():
    from test_text_positions import tiny_sliding

    cfg = StreamConfig(n_sink=4, window_size=6)  # a layer with a window of 9 keeps these 9, and no sinks
    with prepare(tiny_sliding(9)) as model:
        *_, token = watch(model, IDS, cfg)
        *_, full = watch(model, IDS, cfg, 0)
    assert token.kept.tolist() == [*range(4), *range(31, 40)]
    assert full.kept.tolist() == [*range(4), *range(34, 40)]
    assert token.shares.sum() == pytest.approx(1)


def test_layer_that_does_not_attend_is_refused():
    with (
        prepare(tiny_llama()) as model,
        pytest.raises(ValueError, match="layer 2 does not attend; those that do are 0 to 1"),
    ):
        list(watch(model, IDS[:1], StreamConfig(n_sink=4, window_size=8), 2))
    assert _numbers([3, 1]) == "1, 3"  # of a model with states of fixed size between them


def test_kept_tokens_are_the_policy():
    for t in range(12):
        seen = [j for j in range(t + 1) if j < 2 or t - j < 5]
        assert kept_tokens(t, StreamConfig(n_sink=2, window_size=5)).tolist() == seen


@pytest.mark.parametrize(
    "text", ["plain words", HOSTILE, "e\u0301 a\u0308 \u2028", "\U0001f468\u200d\U0001f469"]
)
def test_texts_of_tokens_are_the_text(text):
    tokenizer = byte_tokenizer()
    texts = token_texts(tokenizer, tokenizer(text)["input_ids"])
    assert "".join(texts) == text
    assert "" in texts or text.isascii()


def test_clean_up_of_a_tokenizer_takes_nothing_away():
    tokenizer = byte_tokenizer(clean_up_tokenization_spaces=True)
    tokenizer.add_tokens([" ,", " n't"])  # of which a clean-up drops the space
    ids = tokenizer("No , I do n't .")["input_ids"]
    assert tokenizer.decode(ids) == "No, I don't."
    assert token_texts(tokenizer, ids) == ["N", "o", " ,", " ", "I", " ", "d", "o", " n't", " ", "."]


def a_token():
    return WatchedToken(4, np.array([0, 3, 4]), np.array([0.5, 0.25, 0.125]))


TEXTS = ["One", " [b]two[/b]", " three\x1b[2J", " four", "!"]
CFG = StreamConfig(n_sink=1, window_size=2)


def test_looks_numbers_and_bars():
    assert summary(a_token(), TEXTS, CFG) == (
        "token 4: 50.0 % of its attention on 1 sink, 37.5 % on 2 tokens of the window, 12.5 % on no token; "
        'most on "One" (token 0): 50.0 %'
    )
    shown = picture(a_token(), TEXTS, CFG, 200, 24)
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans if span.style}
    assert styles["One"] == styles["sink"] == "bold reverse"
    assert styles[" [b]two[/b]"] == styles[r" three\x1b[2J"] == styles["forgotten"] == "dim strike"
    assert styles[" four"] == styles["5 % of the attention or more"] == "underline"
    text, numbers, *three, looks = shown.plain.split("\n")
    assert text == r"One [b]two[/b] three\x1b[2J four!"
    assert numbers == summary(a_token(), TEXTS, CFG)
    assert three == [
        "sinks     50.0 % " + 20 * "█", "window    37.5 % " + 15 * "█", "no token  12.5 % " + 5 * "█"
    ]  # fmt: skip
    assert looks == legend().plain == "sink window forgotten 5 % of the attention or more"


def test_line_of_numbers_is_one_line_whatever_the_token():
    token = WatchedToken(1, np.array([0, 1]), np.array([0.0, 1.0]))
    line = summary(token, ["", '.\n\n\t"\x1b[2J\u2028'], StreamConfig(n_sink=0, window_size=2))
    assert line == (
        "token 1: 0.0 % of its attention on 0 sinks, 100.0 % on 2 tokens of the window; most on "
        r'".\n\n\t"\x1b[2J\u2028" (token 1): 100.0 %'
    )


@pytest.mark.parametrize(("width", "height"), [(30, 14), (80, 24), (200, 8)])
def test_picture_fits_a_terminal_and_ends_with_the_newest_token(width, height):
    screen = io.StringIO()
    token = WatchedToken(399, kept_tokens(399, CFG), np.array([0.5, 0.25, 0.25]))
    texts = ["[b]old[/b] \x1b[2J"] * 398 + [" almost", " NEWEST"]
    Console(file=screen, force_terminal=True, width=width, height=height).print(
        picture(token, texts, CFG, width, height)
    )
    assert "\x1b[2J" not in screen.getvalue()
    rows = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    assert len(rows) < height
    assert max(map(len, rows)) <= width
    assert " ".join(rows).index("[b]old[/b]") < " ".join(rows).index("NEWEST")
    assert " ".join(rows).split()[-1] == "more"


def a_page(texts=TEXTS, shares=None):
    tokens = [
        WatchedToken(t, kept_tokens(t, CFG), shares or np.full(n, 0.5 / n))
        for t in range(len(texts))
        for n in [len(kept_tokens(t, CFG))]
    ]
    return watch_page(tokens, texts, CFG, dataset="it's", about="<A model> reads it's.")


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*)</script>\n', page)[1])


class Tags(HTMLParser):
    """The tags of a page."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_page_needs_nothing_else_and_obeys_no_text():
    page = a_page([HOSTILE, "</script>", "b"])
    assert not re.search(r"https?:|src=|href=|url\(|@import", page)
    tags = Tags(page).found
    assert [tag for tag, _ in tags if tag in ("script", "link", "img", "iframe", "b")] == ["script"] * 2
    assert all(not name.startswith("on") for _, attributes in tags for name in attributes)
    assert data_of(page)["texts"][0] == HOSTILE.replace("\x1b", r"\x1b")
    assert "<p>&lt;A model&gt; reads it&#x27;s.</p>" in page
    assert "<title>What 1+2 keeps of it&#x27;s</title>" in page


def a_heavy_sink(n_tokens=1500):
    """A sink with nearly all of the attention: so little is on each other token that it would round to 0."""
    cfg, shares = StreamConfig(n_sink=1, window_size=n_tokens), np.full(n_tokens, 0.05 / (n_tokens - 1))
    shares[0] = 0.95
    tokens = [WatchedToken(t, np.arange(t + 1), shares[: t + 1]) for t in range(n_tokens)]
    return watch_page(tokens, ["a "] * n_tokens, cfg, dataset="d", about="")


def test_many_small_shares_are_not_lost_on_a_page():
    data = data_of(a_heavy_sink())
    assert data["totals"][-1] == pytest.approx([0.95, 0.05, 0], abs=1e-6)
    assert sum(data["shares"][-1]) == pytest.approx(1, abs=1e-3)


@contextmanager
def in_chromium(path, page):
    """A page that is opened from its file, and a list that grows by its messages, dialogs and requests."""
    from playwright.sync_api import sync_playwright

    path.write_text(page, encoding="utf-8")
    with sync_playwright() as driver, driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
        opened, faults = browser.new_page(), []
        opened.on("console", lambda message: faults.append(message.text))
        opened.on("pageerror", lambda error: faults.append(str(error)))
        opened.on("dialog", lambda dialog: faults.append(dialog.message))
        opened.on("request", lambda request: request.url.startswith("file:") or faults.append(request.url))
        opened.goto(path.as_uri())
        yield opened, faults


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_slider_moves_through_the_text(tmp_path):
    text = a_page([*TEXTS[:2], HOSTILE, *TEXTS[3:]])
    with in_chromium(tmp_path / "page.html", text) as (page, faults):
        looks = "[...document.querySelectorAll('#text span')].map(span => span.className)"
        shades = "[...document.querySelectorAll('#text span')].map(span => span.style.backgroundColor)"
        assert page.evaluate(looks) == ["sink", "forgotten", "forgotten", "", "newest"]
        assert [shade != "" for shade in page.evaluate(shades)] == [True, False, False, True, True]
        shown = page.evaluate("document.getElementById('text').textContent")
        assert shown == "".join([*TEXTS[:2], HOSTILE.replace("\x1b", r"\x1b"), *TEXTS[3:]])
        assert page.inner_text("#position") == "4 of 4"
        assert page.inner_text("#none") == "50.0 %"
        page.focus("#at")
        for _ in range(3):
            page.keyboard.press("ArrowLeft")
        assert page.evaluate(looks) == ["sink", "newest"]
        assert page.inner_text("#sinks") == page.inner_text("#window") == "25.0 %"
        assert page.inner_text("#most") == '25.0 %: "One" (token 0)'
        page.keyboard.press("Home")
        assert page.evaluate(looks) == ["sink newest"]
        page.keyboard.press("End")
        assert page.inner_text("#position") == "4 of 4"
        assert not faults


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_page_runs_no_script_but_its_own(tmp_path):
    other = "<script>document.title = 'other'</script><p onclick='1'>"
    with in_chromium(tmp_path / "page.html", a_page().replace("<div", other + "<div")) as (page, faults):
        assert page.title() == "What 1+2 keeps of it's"
        assert page.inner_text("#position") == "4 of 4"
        assert "Content Security Policy" in faults[0]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_long_page_sums_as_the_line_of_numbers_does(tmp_path):
    with in_chromium(tmp_path / "page.html", a_heavy_sink()) as (page, faults):
        shown = [page.inner_text(each) for each in ("#sinks", "#window", "#none")]
    assert (shown, faults) == (["95.0 %", "5.0 %", "0.0 %"], [])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("watch")
    write_tiny_model(path / "model")
    (path / "text.txt").write_text("Attention sinks keep a stream of text steady. " * 6)
    (path / "own.html").write_text("<p>mine</p>")
    return path


def test_command_shows_lines_in_a_pipe_and_writes_a_page(place):
    args = ("watch", "--model-name", "model", "--text", "text.txt", "--window-size", 20)
    done = streamlm(place, *args, "--max-eval-tokens", 150, "--html", "page.html")
    assert done.returncode == 0, done.stderr
    about, first, last, file = done.stdout.splitlines()
    assert about == (
        "model reads text.txt: 4 sinks and a window of 20 tokens, the newest included. Attention is the mean "
        "over all layers that attend and their heads."
    )
    assert first.startswith("token 99: ")
    assert re.fullmatch(r"token 149: \d.* on 4 sinks, \d.* on 20 tokens of the window; most on .*", last)
    assert file == "page.html"
    page = (place / "page.html").read_text()
    assert f"<p>{about}</p>" in page
    assert streamlm(place, *args, "--max-eval-tokens", 3, "--layer", 1, "--html", "page.html").returncode == 0
    assert "the heads of layer 1" in (place / "page.html").read_text()


def test_command_refuses_in_a_line(place):
    args = ("watch", "--model-name", "model", "--text", "text.txt")
    refuse(streamlm(place, *args, "--html", "own.html"), 2, "own.html")
    assert (place / "own.html").read_text() == "<p>mine</p>"
    refuse(streamlm(place, *args, "--layer", 7, "--max-eval-tokens", 5), 1, "layer 7 does not attend")
    refuse(
        streamlm(place, *args, "--max-eval-tokens", 2001), 2, "--max-eval-tokens of watch is at most 2,000"
    )
    for delay in (-1, 61, "nan", "inf"):
        refuse(streamlm(place, *args, "--delay", delay), 2, "--delay is from 0 to 60 seconds")
