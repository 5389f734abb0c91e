import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from streamlm.config import METHODS
from streamlm.figures.catalogue import FIGURES, TWIN_FIGURES, fill_caption, find_figure
from streamlm.figures.style import (
    HATCHES,
    LINE_STYLES,
    RC_PARAMS,
    bar_style,
    method_bar,
    method_style,
    styles_of,
)

PACKAGE = Path(__file__).parent.parent / "streamlm"


def in_grey(style, draw):
    """A picture (80, 80) of a style in shades of grey."""
    figure = Figure((0.8, 0.8))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    with matplotlib.rc_context(RC_PARAMS):
        draw(axes, style)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    return np.asarray(Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L"), dtype=float)


LINES = {
    "methods": {method.name: method_style(method) for method in METHODS.values()},
    "sizes and capacities": dict(enumerate(LINE_STYLES)),
    "beside kvpress": styles_of(["dense", "streamlm", "streamlm_dense_prefill", *"abcdefg"]),
}
BARS = {
    "methods": {method.name: method_bar(method) for method in METHODS.values()},
    "beside kvpress": {
        label: bar_style(style, hatch)
        for (label, style), hatch in zip(
            styles_of(["dense", "streamlm", *"abcd"]).items(), HATCHES, strict=True
        )
    },
}


@pytest.mark.parametrize(
    ("styles", "draw"),
    [
        *(
            (styles, lambda axes, style: axes.plot([0, 0.5, 1], [0.5] * 3, **style))
            for styles in LINES.values()
        ),
        *((styles, lambda axes, style: axes.bar(0.5, 1, 0.8, **style)) for styles in BARS.values()),
    ],
)
def test_styles_differ_in_grey(styles, draw):
    pictures = {label: in_grey(style, draw) for label, style in styles.items()}
    for (label, picture), (other, other_picture) in combinations(pictures.items(), 2):
        inked = (picture < 250) | (other_picture < 250)
        assert np.abs(picture - other_picture)[inked].mean() > 15, f"{label} looks like {other} in grey"


def test_styles_stand_in_one_module():
    for name in FIGURES:
        code = (PACKAGE / "figures" / f"{name}.py").read_text()
        assert not re.search(r"#[0-9a-f]{6}|color=\"|fontsize=\d|hatch=\"|marker=\"[^\"]", code), name


def test_every_figure_says_what_to_see_and_what_was_measured():
    config = yaml.safe_load((PACKAGE.parent / "config.yaml").read_text())
    for name in FIGURES:
        caption = fill_caption(name, config)
        assert "**What to see**" in caption
        own = (
            "small Llamas, trained here"
            if name in TWIN_FIGURES
            else "SmolLM2-135M-Instruct, Q4_1 dequantised"
        )
        assert f"**Measured** with {own}" in caption
        assert find_figure(name).title


def test_unknown_figure_is_refused():
    with pytest.raises(ValueError, match="unknown figure 'pie'; known are schemes, main_comparison"):
        find_figure("pie")


def test_import_loads_no_model_library_and_no_pyplot():
    code = "import sys, streamlm.figures.main_comparison; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"torch", "transformers", "matplotlib.pyplot"} & set(modules.split())
    assert "matplotlib.figure" in modules.split()
