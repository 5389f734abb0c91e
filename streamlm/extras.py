"""Which extra brings an optional library, and the line that says so where it is missing."""

from importlib.util import find_spec

DISTRIBUTION = "streamlm-cache"  # `streamlm` on the Python package index is another project

# By import name. torch, transformers, numpy, safetensors, tqdm and what these bring are always there.
EXTRAS = {
    "typer": "cli",
    "rich": "cli",
    "tabulate": "cli",
    "accelerate": "hub",
    "gguf": "hub",
    "pyarrow": "hub",
    "kvpress": "compare",
    "lm_eval": "eval",
    "jsonschema": "workflow",
    "matplotlib": "workflow",
    "mwparserfromhell": "workflow",
    "pandas": "workflow",
    "scipy": "workflow",
    "snakemake": "workflow",
}


def need(*libraries: str) -> None:
    """Raise ModuleNotFoundError, with the extra to install, unless these optional libraries are there."""
    for library in libraries:
        if find_spec(library) is None:
            raise ModuleNotFoundError(missing(library), name=library)


def missing(library: str) -> str:
    """Return the line about an optional library that is not there."""
    return f"{library} is not installed; install it with: pip install '{DISTRIBUTION}[{EXTRAS[library]}]'"
