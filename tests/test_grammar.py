import re
from inspect import signature

import pytest

from streamlm.presses.grammar import (
    OURS,
    PRESSES,
    REFERENCES,
    Press,
    check_budgets,
    check_context,
    compared_methods,
    parse_press,
    press_label,
)


def test_press_is_read_as_it_is_written():
    assert parse_press("KnormPress") == parse_press(" KnormPress() ") == Press("KnormPress")
    assert parse_press("SnapKVPress(window_size=32)") == Press("SnapKVPress", {"window_size": 32})
    assert parse_press("CURPress(leverage_type='key')") == Press("CURPress", {"leverage_type": "key"})
    inner = Press("StreamingLLMPress", {"n_sink": 2})
    for text in ("KeyRerotationPress(StreamingLLMPress(n_sink=2))",
                 "KeyRerotationPress(press=StreamingLLMPress(n_sink=2))"):  # fmt: skip
        assert parse_press(text) == Press("KeyRerotationPress", {}, inner)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("KnormPres", f"unknown press 'KnormPres'; known are {', '.join(PRESSES)}"),
        ("KnormPress(window=3)", "KnormPress has no argument 'window'; known are none"),
        ("SnapKVPress(64)", "SnapKVPress has no argument without a name; known are window_size, kernel"),
        (
            "KeyRerotationPress",
            "KeyRerotationPress needs a press to wrap; write KeyRerotationPress(Str",
        ),
        ("KeyRerotationPress(KeyRerotationPress(KnormPress))", "cannot wrap KeyRerotationPress"),
        ("KeyRerotationPress(Knorm)", "unknown press 'Knorm'"),
        ("KnormPress(*[1])", "KnormPress has no argument without a name; known are none"),
        ("KeyRerotationPress(KnormPress, n=1)", "KeyRerotationPress has no argument 'n'; known are press"),
        (
            "CURPress(leverage_type='mean')",
            "leverage_type of CURPress cannot be 'mean'; use one of 'key', 'value', 'kv_avg', 'kv_product'",
        ),
        ("CURPress(leverage_type=[])", "leverage_type of CURPress cannot be []; use one of 'key', "),
        ("RandomPress(seed=x)", "seed of RandomPress cannot be x; use a whole number, 0 or more"),
        ("RandomPress(seed={[]: 1})", "seed of RandomPress cannot be {[]: 1}; use a whole"),
        ("RandomPress(seed='1')", "seed of RandomPress cannot be '1'; use a whole"),
        ("RandomPress(seed=1.5)", "seed of RandomPress cannot be 1.5; use a whole"),
        ("SnapKVPress(window_size=-8)", "window_size of SnapKVPress cannot be -8; use a whole number, 1"),
        ("SnapKVPress(window_size=2.5)", "window_size of SnapKVPress cannot be 2.5; use a whole"),
        ("SnapKVPress(kernel_size=4)", "kernel_size of SnapKVPress cannot be 4; use an odd number"),
        ("LagKVPress(lag_size=0)", "lag_size of LagKVPress cannot be 0; use a whole number, 1"),
        ("LagKVPress(cross_scoring=1)", "cross_scoring of LagKVPress cannot be 1; use True or False"),
        (
            "CriticalKVPress(KnormPress, epsilon=2)",
            "epsilon of CriticalKVPress cannot be 2; use a number from 0 to 1",
        ),
        ("KnormPress\0", "is not a press; write KnormPress"),
        ("kvpress.KnormPress", "is not a press; write KnormPress"),
        ("KnormPress(", "is not a press; write KnormPress"),
        ("", "is not a press; write KnormPress"),
    ],
)
def test_text_that_is_not_a_press_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        parse_press(text)
    assert "\n" not in str(caught.value)


@pytest.mark.kvpress
@pytest.mark.parametrize("name", ["PyramidKVPress", "ChunkKVPress", "QFilterPress"])
def test_press_of_kvpress_that_has_no_exact_budget_is_not_comparable(name):
    with pytest.raises(ValueError, match=f"{name} is not comparable at equal budgets, see docs/new-press"):
        parse_press(f"{name}()")


def test_budgets_must_fit_between_sinks_and_context():
    check_budgets([5, 99], 4, 100)
    with pytest.raises(ValueError, match="a budget of 100 keeps all of a context of 100 tokens; take"):
        check_budgets([100], 4, 100)
    with pytest.raises(ValueError, match="a budget of 4 leaves no window beside 4 sinks; raise it"):
        check_budgets([4], 4, 100)


def test_context_must_be_longer_than_what_a_press_scores_with():
    for text, window in (("SnapKVPress", 64), ("KeyRerotationPress(SnapKVPress(window_size=9))", 9)):
        check_context(parse_press(text), window + 1)
        with pytest.raises(ValueError, match=f"last {window} tokens of a context, and it has {window}; "):
            check_context(parse_press(text), window)
    check_context(parse_press("KnormPress"), 1)


def test_every_method_has_a_label_of_its_own():
    methods = compared_methods(2, [" KnormPress ", "SnapKVPress(window_size=8)"])
    assert methods["KnormPress"] == "KnormPress"
    assert list(methods) == [*OURS, *REFERENCES, "KnormPress", "SnapKVPress-window_size-8"]
    assert methods["KeyRerotationPress"] == "KeyRerotationPress(StreamingLLMPress(n_sink=2))"
    assert press_label("KeyRerotationPress(KnormPress())") == "KeyRerotationPress-KnormPress"
    for twice in (["KnormPress", "KnormPress()"], ["StreamingLLMPress"]):
        with pytest.raises(ValueError, match="is already compared"):
            compared_methods(2, twice)


@pytest.mark.kvpress
@pytest.mark.parametrize("name", PRESSES)
def test_table_names_the_arguments_that_kvpress_has(name):
    import kvpress

    spec, parameters = PRESSES[name], signature(getattr(kvpress, name)).parameters
    known = {key for key in parameters if key != "compression_ratio" and not key.startswith("_")}
    assert {*spec.arguments, *(["press"] * spec.wraps)} == known
    if spec.window_size:
        assert parameters["window_size"].default == spec.window_size
