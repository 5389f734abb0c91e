"""Imports keep the contracts in pyproject.toml, and light modules load no torch."""

import re
import shutil
import subprocess
import sys
import tomllib

import grimp
import pytest
from project import ROOT

# Libraries that need no contract of their own: torch and transformers have others.
COMMON = {"numpy", "safetensors", "tabulate"}


def broken_contracts(folder):
    """Return the names of the contracts that import-linter finds broken in a project."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--no-logo"],
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    broken = re.findall(r"^(.+) BROKEN$", done.stdout, re.MULTILINE)
    assert f"{len(broken)} broken." in done.stdout, done.stdout + done.stderr
    assert done.returncode == (1 if broken else 0)
    return broken


def test_imports_keep_every_contract():
    assert broken_contracts(ROOT) == []


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("config", "from streamlm.cache import rope", "Wings import only from wings below"),
        ("cache/rope", "from streamlm.presses import grammar", "Wings import only from wings below"),
        (
            "cache/rope",
            "from streamlm.cache import attention",
            "cache: modules import only from modules below",
        ),
        ("presses/grammar", "from streamlm.presses import adapter", "presses: modules import only from mod"),
        ("commands/options", "from streamlm import cli", "No cycles, in figures and commands too"),
        ("cache/models", "import kvpress", "Only the adapter imports kvpress"),
        ("figures/style", "def draw():\n    import torch.nn", "Planning, summaries and figures never load"),
        ("experiment/plan", "from streamlm.measure import scoring", "Planning, summaries and figures never"),
        ("commands/options", "import torch", "Who computes imports torch"),
        ("cli", "import yaml", "Libraries of configs stay in their check"),
        ("brand_new", "", "Wings import only from wings below"),
        ("cache/brand_new", "", "cache: modules import only from modules below"),
    ],
)
def test_forbidden_import_and_module_without_a_position_are_found(tmp_path, module, line, contract):
    shutil.copytree(ROOT / "streamlm", tmp_path / "streamlm")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "streamlm" / f"{module}.py").open("a") as file:
        file.write(f"\n{line}\n")
    assert any(name.startswith(contract) for name in broken_contracts(tmp_path))


def test_every_library_has_a_contract():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    protected = {name for contract in contracts for name in contract.get("protected_modules", [])}
    graph = grimp.build_graph("streamlm", include_external_packages=True, cache_dir=None)
    imported = graph.modules - sys.stdlib_module_names
    assert {name for name in imported if not name.startswith("streamlm")} == protected | COMMON


@pytest.mark.parametrize(
    "module",
    [
        "figures.catalogue",
        "figures.main_comparison",
        "summaries.main",
        "experiment.plan",
        "sources.hub_texts",
        "cli",
    ],
)
def test_light_modules_never_load_torch(module):
    code = f"import sys, streamlm.{module}; print('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "False"
