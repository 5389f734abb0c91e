"""A module imports only from modules above it; heavy libraries stay where they belong."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "streamlm"

# Top to bottom; what each may import from outside. `steps`, `ring`, `layers`, `archives`, `text`, `gguf`,
# `experiment`, `faults`, `config_check`, `summary` and `tables` are rooms of their own, so that an edit of
# one reruns only what depends on it.
LAYERS = {
    "__init__": set(),
    "config": set(),
    "provenance": set(),
    "records": {"numpy"},
    "stats": {"numpy", "scipy"},
    "presses": set(),
    "experiment": set(),
    "preflight": set(),
    "faults": {"jsonschema", "yaml"},
    "config_check": {"yaml"},
    "rope": {"torch"},
    "attention": {"torch"},
    "steps": {"torch"},
    "ring": {"torch"},
    "layers": {"torch", "transformers"},
    "cache": {"torch", "transformers"},
    "compute": {"torch"},
    "linear": {"torch"},
    "models": {"torch", "transformers", "safetensors"},
    "memory": {"torch", "transformers"},
    "capture": {"torch", "transformers"},
    "archives": set(),
    "text": {"mwparserfromhell"},
    "data": {"numpy", "transformers"},
    "gguf": {"torch", "transformers", "gguf", "tokenizers", "safetensors"},
    "hub_errors": {"httpx", "huggingface_hub"},
    "hub": {"httpx", "huggingface_hub", "transformers"},
    "hub_texts": {"huggingface_hub", "datasets"},
    "layout": {"torch", "transformers"},
    "progress": {"tqdm"},
    "checkpoint": {"numpy", "torch", "safetensors"},
    "scoring": {"numpy", "torch", "transformers"},
    "perplexity": {"numpy", "torch", "transformers"},
    "agreement": {"numpy", "torch"},
    "press_adapter": {"torch", "transformers", "kvpress"},
    "press_setting": {"numpy", "torch", "transformers"},
    "compression": {"numpy", "torch", "transformers"},
    "decode_comparison": {"numpy", "torch", "transformers"},
    "decoders": {"numpy", "torch", "transformers"},
    "latency": {"numpy", "torch", "transformers"},
    "summary": {"numpy", "tabulate"},
    "comparison_summary": {"numpy"},
    "long_stream": {"numpy"},
    "latency_summary": {"numpy", "tabulate"},
    "tables": set(),
    "table_files": {"numpy", "pandas"},
    "plotting": {"numpy", "matplotlib"},
    "figures": {"numpy", "matplotlib"},
    "latency_figures": {"numpy", "matplotlib"},
    "comparison_figures": {"numpy", "matplotlib"},
    "scheme_figure": {"numpy", "matplotlib"},
    "verify_summaries": set(),
    "verify": {"numpy", "transformers"},
    "generation": {"torch", "transformers"},
    "chat": {"torch", "transformers", "jinja2"},
    "commands": set(),
    "commands.options": {"typer", "numpy"},
    "commands.check": {"typer"},
    "commands.measure": {"typer", "tabulate"},
    "commands.ablate": {"typer", "tabulate"},
    "commands.compare": {"typer", "tabulate"},
    "commands.look": {"typer", "tabulate"},
    "commands.session": {"rich"},
    "commands.write": {"typer"},
    "cli": {"typer"},
}


def imported(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}: relative import"
            yield node.module


def file_of(module):
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_module_has_its_place():
    assert sorted(map(file_of, LAYERS)) == sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("module", LAYERS)
def test_module_imports_only_from_above(module):
    above = list(LAYERS)[: list(LAYERS).index(module)]
    ours = {"streamlm", *(f"streamlm.{name}" for name in above)}
    for name in imported(file_of(module)):
        top = name.partition(".")[0]
        assert name in ours or top in LAYERS[module] | set(sys.stdlib_module_names), (
            f"{module} imports {name}"
        )


@pytest.mark.parametrize("module", ["figures", "summary", "experiment", "hub_texts", "cli"])
def test_light_modules_never_load_torch(module):
    code = f"import sys, streamlm.{module}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, check=True
    )
    assert done.stdout.strip() == "False"
