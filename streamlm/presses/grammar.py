"""Names of kvpress's methods, checked without importing kvpress, which changes transformers globally."""

import ast
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OURS = ("streamlm", "streamlm_dense_prefill")
REFERENCES = ("StreamingLLMPress", "KeyRerotationPress")  # labels of the presses that are always compared


def _is_whole(value: Any, least: int) -> bool:
    return type(value) is int and value >= least


# What an argument may be, in words, and the test of it; kvpress itself looks at few of them.
COUNT = ("a whole number, 0 or more", lambda value: _is_whole(value, 0))
SIZE = ("a whole number, 1 or more", lambda value: _is_whole(value, 1))
ODD = ("an odd number, 1 or more", lambda value: _is_whole(value, 1) and value % 2 == 1)
SHARE = ("a number from 0 to 1", lambda value: type(value) in (int, float) and 0 <= value <= 1)
FLAG = ("True or False", lambda value: isinstance(value, bool))
PRESS = ("a press", lambda value: False)  # read as one before any other
Rule = tuple[str, Callable[[Any], bool]]


@dataclass(frozen=True)
class Kind:
    """What a press of kvpress takes and needs."""

    arguments: Mapping[str, Rule] = field(default_factory=dict)
    wraps: bool = False  # its one required argument is another press
    needs_queries: bool = False  # beside keys and values


# Presses that score tokens and can keep exactly so many in every layer, from what a pass gives them alone:
# no statistics or weights to download, no attention weights, no budgets that differ between layers.
PRESSES: Mapping[str, Kind] = {
    "CriticalKVPress": Kind(
        {"press": PRESS, "epsilon": SHARE, "first_stage_ratio": SHARE}, wraps=True, needs_queries=True
    ),
    "ExpectedAttentionPress": Kind(
        {
            "n_future_positions": SIZE,
            "n_sink": COUNT,
            "use_covariance": FLAG,
            "use_vnorm": FLAG,
            "epsilon": SHARE,
        },
        needs_queries=True,
    ),
    "KeyDiffPress": Kind(),
    "KeyRerotationPress": Kind({"press": PRESS}, wraps=True),
    "KnormPress": Kind(),
    "LagKVPress": Kind({"n_sink": COUNT, "lag_size": SIZE, "cross_scoring": FLAG}),
    "RandomPress": Kind({"seed": COUNT}),
    "SnapKVPress": Kind({"window_size": SIZE, "kernel_size": ODD}, needs_queries=True),
    "StreamingLLMPress": Kind({"n_sink": COUNT}),
    "TOVAPress": Kind(needs_queries=True),
}


@dataclass(frozen=True)
class Press:
    """A press as it is written: `SnapKVPress(window_size=32)`, `KeyRerotationPress(KnormPress)`."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    inner: "Press | None" = None

    @property
    def needs_queries(self) -> bool:
        """Whether it, or what it wraps, needs more than keys and values."""
        return PRESSES[self.name].needs_queries or (self.inner is not None and self.inner.needs_queries)

    @property
    def rerotates(self) -> bool:
        """Whether the kept keys are turned to the places 0, 1, … in the cache."""
        return self.name == "KeyRerotationPress"


def parse_press(text: str) -> Press:
    """Return the press that `text` names, in Python's own notation.

    Raises:
        ValueError: if it is no such text, or the press or an argument is unknown or missing.
    """
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):  # the latter for a null byte
        node = ast.Constant(None)
    return _press(node, text)


def _press(node: ast.expr, text: str) -> Press:
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise ValueError(f"{text!r} is no press; write KnormPress, or SnapKVPress(window_size=32)")
    name = call.func.id
    if name not in PRESSES:
        raise ValueError(f"unknown press {name!r}; known are {', '.join(PRESSES)}")
    kind = PRESSES[name]
    given = {str(keyword.arg): keyword.value for keyword in call.keywords}
    if kind.wraps and call.args:
        given["press"] = call.args[0]
    unknown = sorted(given.keys() - kind.arguments.keys())
    if unknown or len(call.args) > kind.wraps:
        known = ", ".join(kind.arguments) or "none"
        what = repr(unknown[0]) if unknown else "one without a name"
        raise ValueError(f"{name} has no argument {what}; known are {known}")
    if kind.wraps and "press" not in given:
        raise ValueError(f"{name} needs a press to wrap; write {name}(StreamingLLMPress)")
    inner = _press(given.pop("press"), text) if kind.wraps else None
    if inner is not None and PRESSES[inner.name].wraps:
        raise ValueError(f"{name} cannot wrap {inner.name}; give it a press that scores tokens itself")
    return Press(name, {key: _argument(name, key, value) for key, value in given.items()}, inner)


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
    window = scorer.arguments.get("window_size", 64) if scorer.name == "SnapKVPress" else 0
    if window >= context_tokens:
        raise ValueError(
            f"{scorer.name} scores with the last {window} tokens of a context, and it has {context_tokens}; "
            "take a smaller window_size or a longer context"
        )


def check_budgets(budgets: Collection[int], n_sink: int, context_tokens: int) -> None:
    """Raise ValueError unless every budget, in tokens, can be kept of a context and holds the sinks."""
    for budget in budgets:
        if budget >= context_tokens:
            raise ValueError(
                f"a budget of {budget} keeps all of a context of {context_tokens} tokens; take a smaller "
                "budget or a longer context"
            )
        if budget <= n_sink:
            raise ValueError(f"a budget of {budget} leaves no window beside {n_sink} sinks; raise it")


def press_label(text: str) -> str:
    """Return a name for files of a press as it is written: SnapKVPress-window_size-32."""
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")


def compared_methods(n_sink: int, presses: Iterable[str]) -> dict[str, str]:
    """Return all that is compared, by label: `OURS`, the `REFERENCES`, and presses as they are written.

    Raises:
        ValueError: if a press cannot be read, or two have one label.
    """
    streaming = f"StreamingLLMPress(n_sink={n_sink})"
    references = (streaming, f"KeyRerotationPress({streaming})")
    methods = dict(zip((*OURS, *REFERENCES), (*OURS, *references), strict=True))
    for text in presses:
        parse_press(text)
        if press_label(text) in methods:
            raise ValueError(f"{text} is compared already; name every press once")
        methods[press_label(text)] = text.strip()
    return methods
