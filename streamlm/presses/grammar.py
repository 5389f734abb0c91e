"""Names of kvpress's methods, checked without importing kvpress, which changes transformers globally."""

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamlm.limits import PRESS_LETTERS, PRESS_NUMBER, SEED

STREAMLM, DENSE_PREFILL = OURS = ("streamlm", "streamlm_dense_prefill")
REFERENCES = ("StreamingLLMPress", "KeyRerotationPress")  # labels of the presses that are always compared

# What a value may be, in words, and the test of it; kvpress itself checks few of its arguments.
Rule = tuple[str, Callable[[Any], bool]]


def _is_whole(value: Any, low: int, high: int = PRESS_NUMBER) -> bool:
    return type(value) is int and low <= value <= high


def one_of(*words: str) -> Rule:
    """Return the rule of an argument that is one of a few words."""
    return f"one of {', '.join(map(repr, words))}", lambda value: value in words


_MOST = f"at most {PRESS_NUMBER:,}"
COUNT: Rule = (f"a whole number, 0 or more, {_MOST}", lambda value: _is_whole(value, 0))
SIZE: Rule = (f"a whole number, 1 or more, {_MOST}", lambda value: _is_whole(value, 1))
ODD: Rule = (f"an odd number, 1 or more, {_MOST}", lambda value: _is_whole(value, 1) and value % 2 == 1)
DRAWN: Rule = (f"a whole number, 0 or more, at most {SEED}", lambda value: _is_whole(value, 0, SEED))
SHARE: Rule = ("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
POSITIVE: Rule = (
    f"a number above 0, at least {1 / PRESS_NUMBER:g}, {_MOST}",  # float32 has each of these
    lambda value: type(value) in (int, float) and 1 / PRESS_NUMBER <= value <= PRESS_NUMBER,
)
FRACTION: Rule = ("a number above 0, at most 1", lambda value: SHARE[1](value) and value > 0)
FLAG: Rule = ("True or False", lambda value: isinstance(value, bool))


@dataclass(frozen=True)
class PressSpec:
    """What a press of kvpress takes and needs."""

    arguments: Mapping[str, Rule] = field(default_factory=dict)  # all but the wrapped press, by name
    wraps: bool = False  # its first argument, `press`, is another press
    needs_queries: bool = False  # in addition to keys and values
    masks: bool = False  # heads of a layer keep different numbers, so the others are masked, not dropped
    window_size: int = 0  # default of the last tokens of a context that it scores with


# Presses that score tokens and can keep an exact number of them in every layer, from what a forward pass
# provides: no statistics or weights to download, no attention weights, no budgets that differ between layers.
PRESSES: Mapping[str, PressSpec] = {
    "AdaKVPress": PressSpec({"alpha_safeguard": SHARE}, wraps=True, masks=True),
    "BlockPress": PressSpec({"block_size": SIZE}, wraps=True),
    "CapPress": PressSpec(
        {"tau": POSITIVE, "n_future_positions": SIZE, "n_sink": COUNT, "epsilon": SHARE}, needs_queries=True
    ),
    "CompactorPress": PressSpec(
        {
            "sink_size_start": COUNT,
            "sink_size_end": COUNT,
            "chunk_size": SIZE,
            "sketch_dimension": SIZE,
            "blending": POSITIVE,
        },
        needs_queries=True,
    ),
    "CriticalAdaKVPress": PressSpec(
        {"alpha_safeguard": SHARE, "epsilon": SHARE, "first_stage_ratio": SHARE},
        wraps=True,
        needs_queries=True,
        masks=True,
    ),
    "CriticalKVPress": PressSpec(
        {"epsilon": SHARE, "first_stage_ratio": SHARE}, wraps=True, needs_queries=True
    ),
    "CURPress": PressSpec(
        {
            "num_sinks": COUNT,
            "leverage_type": one_of("key", "value", "kv_avg", "kv_product"),
            "use_random_leverage": FLAG,
            "use_local_approximation": FLAG,
            "local_window_size": SIZE,
        }
    ),
    "EntropyGatedChunkKVPress": PressSpec(
        {"chunk_length": SIZE, "low_entropy_chunk_length": SIZE}, wraps=True
    ),
    "ExpectedAttentionPress": PressSpec(
        {
            "n_future_positions": SIZE,
            "n_sink": COUNT,
            "use_covariance": FLAG,
            "use_vnorm": FLAG,
            "epsilon": SHARE,
        },
        needs_queries=True,
    ),
    "KeyDiffPress": PressSpec(),
    "KeyRerotationPress": PressSpec(wraps=True),
    "KnormPress": PressSpec(),
    "LagKVPress": PressSpec({"n_sink": COUNT, "lag_size": SIZE, "cross_scoring": FLAG}),
    "LeverageScorePress": PressSpec({"sketch_dimension": SIZE}, needs_queries=True),
    "MergingPress": PressSpec({"similarity_threshold": SHARE, "merge_fraction": FRACTION}, wraps=True),
    "NonCausalAttnPress": PressSpec({"chunk_size": SIZE}, needs_queries=True),
    "RandomPress": PressSpec({"seed": DRAWN}),
    "SnapKVPress": PressSpec({"window_size": SIZE, "kernel_size": ODD}, needs_queries=True, window_size=64),
    "StreamingLLMPress": PressSpec({"n_sink": COUNT}),
    "TOVAPress": PressSpec(needs_queries=True),
}


@dataclass(frozen=True)
class Press:
    """A press as it is written: `SnapKVPress(window_size=32)`, `KeyRerotationPress(KnormPress)`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inner: "Press | None" = None

    @property
    def needs_queries(self) -> bool:
        """Whether it, or the press that it wraps, needs more than keys and values."""
        return PRESSES[self.name].needs_queries or (self.inner is not None and self.inner.needs_queries)

    @property
    def rerotates(self) -> bool:
        """Whether the kept keys are rotated to the positions 0, 1, … of the cache."""
        return self.name == "KeyRerotationPress"


WRITTEN = re.compile(
    r"[\w.,=()'\"+\[\]{}:* -]*", re.ASCII
)  # no comments: figures and tables show it as it is


def parse_press(text: str) -> Press:
    """Return the press that `text` names, in Python's own notation.

    Raises:
        ValueError: if it is not a press in this notation, or the press or an argument is unknown or missing.
    """
    if len(text) > PRESS_LETTERS:
        raise ValueError(f"{text[:40]!r}… has more than {PRESS_LETTERS} characters; give fewer arguments")
    try:
        node = ast.parse(text.strip(), mode="eval").body if WRITTEN.fullmatch(text) else ast.Constant(None)
    except SyntaxError:
        node = ast.Constant(None)
    return _press(node, text)


def _press(node: ast.expr, text: str) -> Press:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"{text!r} is not a press; write KnormPress, or SnapKVPress(window_size=32)")
    name = call.func.id
    if name not in PRESSES:
        names = ", ".join(PRESSES)
        if name in _exported():
            raise ValueError(
                f"{name} is not comparable at equal budgets, see docs/new-press.md; presses that are: {names}"
            )
        raise ValueError(f"unknown press {name!r}; known are {names}")
    spec = PRESSES[name]
    given = [(str(keyword.arg), keyword.value) for keyword in call.keywords]
    given += [("press", value) for value in call.args[:1] if spec.wraps]
    values = dict(given)
    if len(values) < len(given):
        raise ValueError(f"{name} is given an argument twice; give each once")
    known = ["press"] * spec.wraps + list(spec.arguments)
    unknown = [repr(key) for key in sorted(values.keys() - known)]
    if unknown or len(call.args) > spec.wraps:
        what = (*unknown, "without a name")[0]
        raise ValueError(f"{name} has no argument {what}; known are {', '.join(known) or 'none'}")
    inner = _inner(name, values.pop("press", None), text) if spec.wraps else None
    return Press(name, {key: _argument(name, key, value) for key, value in values.items()}, inner)


def _exported() -> set[str]:
    """Return the names of kvpress's presses, if it is installed, without importing it."""
    found = find_spec("kvpress")
    if found is None or found.origin is None:
        return set()
    return set(re.findall(r'"(\w+Press)"', Path(found.origin).read_text("utf-8")))


def _inner(name: str, node: ast.expr | None, text: str) -> Press:
    """Return the press that `name` wraps."""
    if node is None:
        raise ValueError(f"{name} needs a press to wrap; write {name}(StreamingLLMPress)")
    inner = _press(node, text)
    if inner.inner is not None:
        raise ValueError(f"{name} cannot wrap {inner.name}; give it a press that scores tokens itself")
    return inner


def _argument(name: str, key: str, node: ast.expr) -> Any:
    words, fits = PRESSES[name].arguments[key]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        value = None
    if not fits(value):
        raise ValueError(f"{key} of {name} cannot be {ast.unparse(node)}; use {words}")
    return value


def check_context(press: Press, context_tokens: int) -> None:
    """Raise ValueError unless a context, in tokens, is long enough for the press."""
    scorer = press.inner or press
    default = PRESSES[scorer.name].window_size
    window = scorer.arguments.get("window_size", default) if default else 0
    if window >= context_tokens:
        raise ValueError(
            f"{scorer.name} scores with the last {window} tokens of a context, and it has {context_tokens}; "
            "take a smaller window_size or a longer context"
        )


def check_budgets(budgets: Collection[int], n_sink: int, context_tokens: int) -> None:
    """Raise ValueError unless every budget, in tokens, is below the context and above the sinks."""
    for budget in budgets:
        if budget >= context_tokens:
            raise ValueError(
                f"a budget of {budget} keeps all of a context of {context_tokens} tokens; take a smaller "
                "budget or a longer context"
            )
        if budget <= n_sink:
            raise ValueError(f"a budget of {budget} leaves no window beside {n_sink} sinks; raise it")


def press_label(text: str) -> str:
    """Return the name of a press in file names: SnapKVPress-window_size-32."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def compared_methods(n_sink: int, presses: Iterable[str]) -> dict[str, str]:
    """Return what is compared, by label: `OURS`, the `REFERENCES`, and presses as they are written.

    Raises:
        ValueError: if a press cannot be read, or two have the same label.
    """
    streaming = f"StreamingLLMPress(n_sink={n_sink})"
    references = (streaming, f"KeyRerotationPress({streaming})")
    methods = dict(zip((*OURS, *REFERENCES), (*OURS, *references), strict=True))
    for text in presses:
        parse_press(text)
        if press_label(text) in methods:
            raise ValueError(f"{text} is already compared; name every press once")
        methods[press_label(text)] = text.strip()
    return methods
