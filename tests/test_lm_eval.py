"""lm-evaluation-harness with eviction in force: against its own `hf`, and against decoding token by token."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from conftest import PROSE, VOCAB, tiny_llama, tiny_neox, use_float64_angles
from project import ROOT
from tiny_model import chat_tokenizer, write_tiny_model
from torch.nn import functional

from streamlm.cache.prepare import prepare
from streamlm.cache.sink_cache import SinkCache
from streamlm.config import StreamConfig
from streamlm.harness.likelihood import score_continuations

pytest.importorskip("lm_eval", reason="lm_eval is not installed: the extra eval brings it")

from lm_eval import simple_evaluate
from lm_eval.api.registry import get_model
from lm_eval.tasks import TaskManager

from streamlm.harness.generation import Generation
from streamlm.harness.model import StreamLM

ALL = 100_000  # a window longer than any request here
WORDS = PROSE.split()
DOCS = [
    {
        "text": PROSE * (1 + i % 3) + WORDS[i],
        "context": " ".join(WORDS[: 3 + i]),
        "choices": [" rain", " we went home", f" {WORDS[i]}"],
        "gold": i % 3,
    }
    for i in range(6)
]
TASKS = {
    "tiny_choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_rolling": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "tiny_writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{context}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["b", "\n"], "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with a BOS and an EOS, and positions for every request."""
    place = tmp_path_factory.mktemp("lm_eval") / "model"
    return write_tiny_model(place, chat_tokenizer(), max_position_embeddings=1024)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """A folder with the tasks and their data."""
    place = tmp_path_factory.mktemp("tasks")
    (place / "docs.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    for name, task in TASKS.items():
        files = {"data_files": {"test": str(place / "docs.jsonl")}, "cache_dir": str(place / "cache")}
        data = {"dataset_path": "json", "dataset_kwargs": files, "test_split": "test"}
        (place / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}))
    return place


def evaluate(model, tasks, names=tuple(TASKS), **arguments):
    """Return lm_eval's results, and its responses by task."""
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    arguments["dtype"] = "float64"  # hf sums a text of 2,000 nats in the type of the weights
    options = {"bootstrap_iters": 0, "task_manager": manager, "device": "cpu"}
    done = simple_evaluate(model, arguments, tasks=list(names), **options)
    responses = {name: [sample["resps"] for sample in done["samples"][name]] for name in names}
    return done["results"], responses


def flat(responses):
    """Return the numbers and words in nested responses."""
    if isinstance(responses, (list, tuple)):
        return [item for each in responses for item in flat(each)]
    return [responses]


def assert_alike(ours, theirs):
    """Assert equal log-likelihoods to 1e-4 nats, and all else the same."""
    for name in theirs[1]:
        for mine, other in zip(flat(ours[1][name]), flat(theirs[1][name]), strict=True):
            assert mine == (pytest.approx(other, abs=1e-4) if isinstance(other, float) else other)
        for metric, value in theirs[0][name].items():
            assert ours[0][name][metric] == (
                pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
            )


@pytest.fixture(scope="module")
def theirs(folder, tasks):
    pytest.importorskip("peft", reason="lm_eval's hf needs peft")
    return evaluate("hf", tasks, pretrained=str(folder))


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_window_longer_than_every_request_equals_hf(folder, tasks, theirs, batch_size):
    ours = evaluate("streamlm", tasks, pretrained=str(folder), window_size=ALL, batch_size=batch_size)
    assert_alike(ours, theirs)
    answers = flat(theirs[1]["tiny_writing"])
    assert len({*answers}) > 1 and any("b" not in answer for answer in answers)


def test_a_smaller_window_changes_the_numbers_and_batches_do_not(folder, tasks):
    dense = evaluate("streamlm", tasks, pretrained=str(folder), window_size=ALL)
    small = {"pretrained": str(folder), "n_sink": 2, "window_size": 12}
    ours = evaluate("streamlm", tasks, **small)
    for name in ("tiny_choice", "tiny_rolling"):
        kept, cut = (torch.tensor(flat(of[1][name]), dtype=torch.float64) for of in (dense, ours))
        assert (kept - cut).abs().max() > 0.1, name
    assert_alike(evaluate("streamlm", tasks, batch_size=5, **small), ours)


# Against decoding token by token


@torch.no_grad()
def slow_likelihood(model, context, continuation, cfg):
    """Decode one stream token by token: log-probability, and whether every token is the likeliest."""
    cache = SinkCache(model.config, cfg.n_sink, cfg.window_size, positions=cfg.positions)
    log_prob, is_greedy = 0.0, True
    stream = [*context, *continuation]
    for i, token in enumerate(stream[:-1]):
        logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        if i + 1 >= len(context):
            target = stream[i + 1]
            log_prob -= float(functional.cross_entropy(logits[None], torch.tensor([target])))
            is_greedy &= int(logits.argmax()) == target
    return log_prob, is_greedy


@torch.no_grad()
def slow_greedy(model, context, n_tokens, cfg):
    """Return the tokens that greedy decoding writes, each from the whole stream read again."""
    written = []
    for _ in range(n_tokens):
        cache = SinkCache(model.config, cfg.n_sink, cfg.window_size, positions=cfg.positions)
        for token in [*context, *written]:
            logits = model(torch.tensor([[token]]), past_key_values=cache).logits[0, -1]
        written.append(int(logits.argmax()))
    return written


def drawn_pairs(capacity):
    """Contexts and continuations of drawn and of edge lengths, some with one context, one of each greedy."""
    generator = torch.Generator().manual_seed(capacity)

    def ids(n):
        return torch.randint(VOCAB, (n,), generator=generator).tolist()

    shared = ids(int(torch.randint(1, 2 * capacity, (), generator=generator)))
    lengths = [
        (1, 1), (1, 2), (capacity, 1), (capacity - 1, 1), (capacity - 1, 2), (capacity, 2), (capacity + 1, 1),
        (1, 3 * capacity), (2 * capacity, 7), (5, 0),
    ]  # fmt: skip
    return [(ids(max(n, 1)), ids(m)) for n, m in lengths] + [(shared, ids(n)) for n in (1, 4, 2 * capacity)]


@pytest.fixture(scope="module", params=[tiny_llama, tiny_neox])
def streaming(request):
    with prepare(use_float64_angles(request.param())) as model:
        yield model


CONFIGS = [
    StreamConfig(n_sink=2, window_size=6), StreamConfig(n_sink=0, window_size=7),
    StreamConfig(n_sink=4, window_size=1), StreamConfig(n_sink=1, window_size=9, positions="text"),
    StreamConfig(n_sink=3, window_size=200),
]  # fmt: skip


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("cfg", CONFIGS, ids=str)
def test_likelihoods_are_those_of_decoding_token_by_token(streaming, cfg, batch_size, monkeypatch):
    monkeypatch.setattr("streamlm.generate.sampling.CHUNK", 5)
    monkeypatch.setattr("streamlm.harness.likelihood.HEAD_BLOCK", 4)
    pairs = drawn_pairs(min(cfg.capacity, 20))
    for context, _ in pairs[:4]:
        pairs.append((context, slow_greedy(streaming, context, 3, cfg)))

    def make_cache(n_tokens):
        fit = cfg.within(n_tokens)
        return SinkCache(streaming.config, fit.n_sink, fit.window_size, positions=fit.positions)

    found = dict(score_continuations(streaming, pairs, make_cache, batch_size=batch_size))
    assert found.keys() == {*range(len(pairs))}
    for index, (context, continuation) in enumerate(pairs):
        log_prob, is_greedy = slow_likelihood(streaming, context, continuation, cfg)
        assert found[index].log_prob_nats == pytest.approx(log_prob, abs=1e-6), (context, continuation)
        assert found[index].is_greedy == is_greedy
    assert sum(each.is_greedy for each in found.values()) >= 4


def request(*arguments):
    return SimpleNamespace(args=arguments)


@pytest.fixture
def exact(folder, monkeypatch):
    """Return a `StreamLM` of given arguments in float64 throughout."""
    monkeypatch.setattr("streamlm.harness.model.load_model", lambda *_, **__: model)
    vocab = len(chat_tokenizer())
    with prepare(use_float64_angles(tiny_llama(vocab_size=vocab, eos_token_id=None))) as model:
        yield lambda **arguments: StreamLM(folder, **arguments)


def test_requests_are_read_as_streams_of_their_own(exact):
    lm = exact(n_sink=1, window_size=5)
    prefix = lm.tokenizer.bos_token_id
    pairs = [
        ("The rain", " fell"),
        ("", "We went"),
        ("The rain", " f"),
        ("home ", "again"),
        ("It was", " late"),
    ]
    expected = [
        (list(b"The rain"), list(b" fell")), ([prefix], list(b"We went")), (list(b"The rain"), list(b" f")),
        (list(b"home"), list(b" again")), (list(b"It was"), list(b" late")),
    ]  # fmt: skip
    found = lm.loglikelihood([request(*pair) for pair in pairs], disable_tqdm=True)
    rolled = lm.loglikelihood_rolling([request(text) for text in (PROSE, "", PROSE[:9])])
    for (log_prob, is_greedy), (context, continuation) in zip(found, expected, strict=True):
        ids = [[token if token == prefix else lm.tok_encode(chr(token))[0] for token in part]
               for part in (context, continuation)]  # fmt: skip
        slow = slow_likelihood(lm.model, *ids, lm.cfg)
        assert (log_prob, is_greedy) == (pytest.approx(slow[0], abs=1e-6), slow[1])
    for log_prob, text in zip(rolled, (PROSE, "", PROSE[:9]), strict=True):
        slow, _ = slow_likelihood(lm.model, [prefix], lm.tok_encode(text), lm.cfg)
        assert log_prob == pytest.approx(slow, abs=1e-6)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_greedy_answers_are_those_of_decoding_token_by_token(exact, batch_size):
    lm = exact(n_sink=2, window_size=6, batch_size=batch_size)
    contexts = ["The rain", "We went home, and nobody", "W"]
    written = [slow_greedy(lm.model, lm.tok_encode(context), 12, lm.cfg) for context in contexts]
    texts = [lm.tokenizer.decode(ids, skip_special_tokens=True) for ids in written]
    arguments = {"max_gen_toks": 12}
    assert lm.generate_until([request(context, arguments) for context in contexts]) == texts
    stop = texts[0][3]
    arguments["until"] = [stop]
    found = lm.generate_until([request(context, arguments) for context in contexts])
    assert found == [text.partition(stop)[0] for text in texts]


def test_a_special_token_ends_an_answer(exact):
    lm = exact()
    end = lm.tokenizer.get_added_vocab()["<|im_start|>"]
    writing = Generation.parse({"until": ["<|im_start|>", ""]}).writing(lm.tokenizer, lm.cfg, {7})
    assert writing.stop_ids == {7, end}
    assert writing.stop_texts == ["<|im_start|>"]
    assert writing.max_new_tokens == 256


def test_sampled_answers_differ_and_follow_the_seed_of_lm_eval(exact):
    lm = exact()
    asked = [request("The rain", {"do_sample": True, "temperature": 2.0, "top_k": 40, "max_gen_toks": 9})] * 4

    def draw(seed):
        torch.manual_seed(seed)
        return lm.generate_until(asked)

    assert len({*draw(1)}) > 1
    assert draw(1) == draw(1) != draw(2)


def test_a_chat_is_written_in_the_template_of_the_model(folder):
    lm = StreamLM(folder, device="cpu")
    chat = [{"role": "system", "content": "Sum."}, {"role": "user", "content": "Hi"}]
    text = lm.apply_chat_template(chat)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    assert lm.tokenizer_name == str(folder).replace("/", "__")


# What is refused


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ({"window": 8}, "--model streamlm does not have the argument window; it has pretrained, n_sink, "),
        ({"n_sink": "four"}, "n_sink must be a whole number, got 'four'"),
        ({"window_size": 1e9}, "window_size must be a whole number, got 1000000000.0"),
        ({"window_size": 0}, "window_size must be >= 1, got 0"),
        ({"batch_size": "auto"}, "batch_size must be a whole number, got 'auto'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"kv_dtype": "int3"}, "kv_dtype must be None, "),
        ({"dtype": "int8"}, "unknown dtype 'int8'"),
        ({"device": "abacus"}, "unknown device 'abacus'"),
        ({"positions": "page"}, 'positions must be "cache" or "text", got'),
    ],
)
def test_arguments_that_cannot_be_are_refused(folder, arguments, line):
    with pytest.raises(ValueError, match=line) as caught:
        get_model("streamlm").create_from_arg_obj({"pretrained": str(folder)}, arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            {"num_beams": 4},
            "--model streamlm does not have the generation argument num_beams; it has until, ",
        ),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
        ({"do_sample": True, "temperature": -1.0}, "temperature must be from"),
    ],
)
def test_generation_arguments_that_cannot_be_are_refused(arguments, line):
    with pytest.raises(ValueError, match=line):
        Generation.parse(arguments)


def typed(cwd, *arguments):
    """Run the command as a user types it."""
    environment = {**os.environ, "HF_DATASETS_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "streamlm.harness", *arguments],
        cwd=cwd, env=environment, capture_output=True, text=True,
    )  # fmt: skip


def test_the_command_prints_a_table_and_writes_results(folder, tasks, tmp_path):
    ours = ["--model", "streamlm", "--tasks", "tiny_rolling", "--include_path", str(tasks), "--device", "cpu"]
    arguments = f"pretrained={folder},n_sink=4,window_size=28,kv_dtype=int8"
    done = typed(tmp_path, *ours, "--model_args", arguments, "--output_path", "out.json")
    assert done.returncode == 0, done.stderr
    assert "|tiny_rolling|" in done.stdout and "word_perplexity" in done.stdout
    (written,) = tmp_path.glob("out*.json")
    record = json.loads(written.read_text())
    assert record["config"]["model_args"]["window_size"] == 28
    assert record["results"]["tiny_rolling"]["word_perplexity,none"] > 1


def test_a_wrong_argument_of_the_command_is_one_line(folder, tasks, tmp_path):
    ours = ["--model", "streamlm", "--tasks", "tiny_rolling", "--include_path", str(tasks)]
    done = typed(tmp_path, *ours, "--model_args", f"pretrained={folder},sinks=4")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(
        "streamlm: --model streamlm does not have the argument sinks"
    )


def test_the_benchmark_prints_speeds_and_ratios(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import harness

    sizes = ["--window-size=28", "--tokens=300", "--repeats=2", "--steps=2"]
    monkeypatch.setattr(sys, "argv", ["harness.py", f"--model={tmp_path / 'none'}", *sizes])
    harness.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "small-random, 4+28; median [min, max] of 2 runs"
    assert [line.startswith("ratio:") for line in lines[2:]] == [False, False, True, False, True]
