"""Honest inputs with faults put in: values of JSON, and bytes."""

import json
import struct

from hypothesis import strategies as st

HOSTILE = [
    0,
    -1,
    1,
    7,
    2**31,
    2**63,
    10**9,
    10**18,
    -(10**18),
    10**400,
    0.5,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    None,
    True,
    "",
    "x",
    "7",
    "true",
    "../../../etc/passwd",
    "/dev/zero",
    "~",
    "org/name",
    "a" * 20_000,
    "\x1b]0;x\x07",
    "\u2028\u202e",
    "\x00",
    "$x^$",
    "{{ 1/0 }}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "!!python/object:os.system",
    "${jndi:x}",
    "__import__('os')",
    [],
    {},
    [[]],
    [None],
    [0],
    {"": 0},
    {"rope_type": "x"},
    ["full_attention"] * 3,
    [1e308] * 9,
]
NUMBERS = [0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1]
BYTES = [
    b"",
    b"\x00",
    b"\xff" * 9,
    b"\n",
    b"{",
    b"[" * 300,
    b"<" * 300,
    b"{{" * 300,
    b" " * 300,
    b"\r",
    b"\xe2\x80\xa8",
    b"\x1b[2J",
]


def deep(depth):
    """Return a value nested so deep."""
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def paths(value, path=()):
    """Yield the path of every value within a JSON value."""
    yield path
    for key, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from paths(inner, (*path, key))


@st.composite
def changed_json(draw, honest):
    """Return a JSON value like an honest one, in which up to three values are replaced or left out."""
    value = json.loads(json.dumps(honest))
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths(value))))
        new = draw(
            st.one_of(st.sampled_from(HOSTILE), st.integers(), st.text(max_size=9), st.just(deep(400)))
        )
        if not path:
            value = new if draw(st.integers(0, 9)) == 0 else value
            continue
        *above, last = path
        place = value
        for key in above:
            place = place[key]
        if draw(st.booleans()) or isinstance(place, list):
            place[last] = new
        else:
            del place[last]
    return value


@st.composite
def changed_bytes(draw, honest):
    """Return bytes like honest ones: overwritten, cut, with something put in or repeated."""
    content = bytearray(honest)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        match draw(st.sampled_from(["number", "byte", "cut", "insert", "repeat"])):
            case "number":
                content[at : at + 8] = struct.pack("<Q", draw(st.sampled_from(NUMBERS)))
            case "byte":
                content[at : at + 1] = bytes([draw(st.integers(0, 255))])
            case "cut":
                del content[at : at + draw(st.integers(1, 1 + len(content)))]
            case "insert":
                content[at:at] = draw(st.sampled_from(BYTES)) * draw(st.sampled_from([1, 1, 1000]))
            case "repeat":
                content[at:at] = content[at : at + 64] * draw(st.integers(1, 50))
    return bytes(content)
