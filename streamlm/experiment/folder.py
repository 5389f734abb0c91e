"""A folder in which the installed workflow runs: it has the settings, the package has the rules."""

from pathlib import Path
from shutil import copyfile

from streamlm.provenance import ROOT

# A wheel carries the workflow inside the package; in a checkout it is beside it.
PACKAGED = ROOT / "streamlm" / "project"
SOURCE = PACKAGED if PACKAGED.is_dir() else ROOT
SNAKEFILE = SOURCE / "Snakefile"

SETTINGS = (
    "config.yaml",
    "configs/pythia-70m.yaml",
    "configs/pythia-70m.expected.json",
    "profiles/default/config.yaml",
    "workflow/profiles/slurm/config.yaml",
)
INCLUDE = """\
# The rules are those of the installed streamlm: an upgrade of it upgrades them. Settings are in config.yaml.
from streamlm.experiment.folder import SNAKEFILE


include: SNAKEFILE


rule default:
    default_target: True
    input:
        rules.all.input,
"""


def make_folder(folder: Path) -> list[Path]:
    """Write a Snakefile, the config and the profiles into an empty folder; return the files.

    Raises:
        ValueError: if something is in it already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not an empty folder; name another one")
    folder.resolve().mkdir(parents=True, exist_ok=True)  # a link to a folder that is not there yet stays
    files = [folder / name for name in ("Snakefile", *SETTINGS)]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
    files[0].write_text(INCLUDE, encoding="utf-8")
    for name, file in zip(SETTINGS, files[1:], strict=True):
        copyfile(SOURCE / name, file)
    return files
