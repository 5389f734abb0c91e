"""What is installed: a light core, extras named where they are missing, a wheel that holds the workflow."""

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from fresh_environments import EXAMPLE
from packaging.requirements import Requirement
from project import PARTS, ROOT

from streamlm.experiment import preflight
from streamlm.experiment.folder import SETTINGS, make_folder
from streamlm.extras import DISTRIBUTION, EXTRAS, need

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Modules that exist for a library; who loads them asks for it first.
DEDICATED = {
    "gguf": ["sources.gguf", "sources.gguf_header"], "mwparserfromhell": ["sources.mediawiki"],
    "typer": ["cli"], "lm_eval": ["harness.generation", "harness.model"],
    "jsonschema": ["experiment.check", "experiment.config_file", "experiment.faults"],
}  # fmt: skip

# Hides libraries from the import system, as if they were not installed.
HIDE = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else self.finder.find_spec(name, path, target)

HIDDEN = {hidden}
sys.meta_path[:] = map(Without, sys.meta_path)
"""


def run_without(hidden, code, *args, cwd=ROOT):
    """Run code in a process in which some libraries are not there."""
    hidden = {*hidden, "sklearn"}  # transformers loads it where it is, and it needs scipy
    return subprocess.run(
        [sys.executable, "-c", HIDE.replace("{hidden}", repr(hidden)) + code, *args],
        cwd=cwd, capture_output=True, text=True,
    )  # fmt: skip


def names(requirements):
    return {re.match(r"[\w-]+", line)[0].lower() for line in requirements}


def test_core_is_light_and_every_range_is_open():
    assert names(PROJECT["dependencies"]) == {"torch", "transformers", "numpy", "safetensors", "tqdm"}
    assert all(re.fullmatch(r"[a-z]+>=[\d.]+", line) for line in PROJECT["dependencies"])


def test_every_optional_library_is_in_the_extra_that_is_named(monkeypatch):
    of = {extra: names(lines) - {DISTRIBUTION} for extra, lines in PROJECT["optional-dependencies"].items()}
    assert set().union(*of.values()) == set(EXTRAS) | {"pip", "pyyaml", "standard-pipes"}
    assert all(library in of[extra] for library, extra in EXTRAS.items())
    assert set(EXTRAS.values()) | {"all"} == set(of)
    monkeypatch.setitem(EXTRAS, "kvpressed", "compare")
    with pytest.raises(
        ModuleNotFoundError, match=r"^kvpressed is not installed; install it with: pip install "
    ):
        need("torch", "kvpressed")


def test_every_library_that_is_imported_is_in_the_core_or_in_an_extra():
    core = {"torch", "transformers", "numpy", "safetensors", "tqdm"}
    theirs = {"huggingface_hub", "tokenizers", "triton", "yaml"}  # what the core brings
    imported = set()
    for file in (ROOT / "streamlm").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    others = imported - sys.stdlib_module_names - {"streamlm"}
    assert others - set(EXTRAS) == core | theirs
    assert set(EXTRAS) - others == {"accelerate", "snakemake"}  # of transformers; a program


def test_front_door_works_with_the_core_alone():
    done = run_without(EXTRAS, EXAMPLE)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 1e-4


def test_missing_library_is_one_line_that_names_the_extra():
    code = """
from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

def attempt(name, act):
    try:
        act()
        print(name, "", "", sep="|")
    except ModuleNotFoundError as error:
        print(name, error.name, error, sep="|")

for file in sorted(Path("streamlm").rglob("*.py")):
    module = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
    attempt(module.removeprefix("streamlm."), lambda: import_module(module))

from streamlm import stats
from streamlm.presses import setting
from streamlm.sources import corpus, hub_texts
attempt("trend", lambda: stats.trend([1.0], [1.0]))
attempt("presses", lambda: setting.open_setting(Mock(), module="", n_ids=1))
attempt("wikipedia", lambda: corpus._FORMATS["mediawiki"]("", b""))
attempt("hub", lambda: hub_texts.fetch_documents({}))
"""
    done = run_without(EXTRAS, code)
    assert done.returncode == 0, done.stderr
    said = {
        name: (library, line) for name, library, line in (row.split("|") for row in done.stdout.splitlines())
    }
    for name, (library, line) in said.items():
        if library in EXTRAS and name not in DEDICATED.get(library, ()):
            extra = f"{DISTRIBUTION}[{EXTRAS[library]}]"
            assert line == f"{library} is not installed; install it with: pip install '{extra}'", name
    called = {"trend": "scipy", "presses": "kvpress", "wikipedia": "mwparserfromhell", "hub": "pyarrow"}
    assert {name: said[name][0] for name in called} == called
    assert said["figures"][0] == "matplotlib"
    assert said["cache.models"] == said["measure.scoring"] == said["generate.chat"] == ("", "")


@pytest.mark.parametrize(
    ("library", "args"), [("typer", ["version"]), ("tabulate", ["version"]), ("matplotlib", ["figures"])]
)
def test_command_without_its_extra_ends_with_that_line(tmp_path, library, args):
    code = "from streamlm.__main__ import main; main()"
    done = run_without({library}, f"sys.path.insert(0, {str(ROOT)!r}); {code}", *args, cwd=tmp_path)
    extra = f"{DISTRIBUTION}[{EXTRAS[library]}]"
    assert done.stderr == f"streamlm: {library} is not installed; install it with: pip install '{extra}'\n"
    assert (done.returncode, done.stdout) == (1, "")


def test_harness_without_its_extra_ends_with_that_line(tmp_path):
    code = f"sys.path.insert(0, {str(ROOT)!r}); from streamlm.harness.__main__ import main; main()"
    done = run_without({"lm_eval"}, code, cwd=tmp_path)
    line = f"streamlm: lm_eval is not installed; install it with: pip install '{DISTRIBUTION}[eval]'\n"
    assert (done.returncode, done.stderr) == (1, line)


def pins(name):
    """Return the pins of a list in envs/: a version by the name of a package."""
    found = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "envs" / name).read_text(), re.MULTILINE)
    return {re.sub("[_.]", "-", package.lower()): version for package, version in found}


def test_pins_are_within_the_ranges_and_leave_cuda_to_torch():
    pinned = pins("requirements-latest.txt") | pins("requirements.txt")  # the first alone has lm_eval
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    extras = PROJECT["optional-dependencies"]
    for line in [
        *PROJECT["dependencies"],
        *(line for lines in extras.values() for line in lines),
        *groups["test"],
    ]:
        wanted = Requirement(line)
        if wanted.name != DISTRIBUTION:
            assert wanted.specifier.contains(pinned[wanted.name.replace("_", "-")]), line
    for name in ("requirements.txt", "requirements-latest.txt"):
        assert not [package for package in pins(name) if package.startswith(("nvidia-", "cuda-"))]
    assert "kvpress" not in pins("requirements-latest.txt")


def test_hooks_and_release_have_the_pins_of_make_test():
    pinned = pins("requirements.txt")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    named = [library for hook in hooks for library in hook["additional_dependencies"]]
    named += re.findall(r"\w+==[\d.]+", (ROOT / ".github/workflows/release.yml").read_text())
    assert len(named) == 5
    assert all(pinned[name] == version for name, version in (library.split("==") for library in named))


def test_container_has_all_that_the_workflow_needs():
    parts = {line[1:] for line in (ROOT / ".containerignore").read_text().split() if line != "*"}
    assert parts >= {part for part in PARTS if part != "README.md"}
    metadata = PROJECT["license-files"] + [PROJECT["readme"], "pyproject.toml"]
    assert parts >= set(metadata)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, unpacked as pip would."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (file,) = folder.glob("streamlm_cache-*.whl")
    zipfile.ZipFile(file).extractall(folder / "site")
    return folder / "site"


def from_wheel(wheel, cwd, *args):
    environment = {**os.environ, "PYTHONPATH": str(wheel)}
    return subprocess.run(
        [sys.executable, "-m", *args], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_wheel_holds_the_workflow_whole(wheel):
    packaged = wheel / "streamlm" / "project"
    for folder in ("workflow", "profiles"):
        files = {file.relative_to(ROOT) for file in (ROOT / folder).rglob("*") if file.is_file()}
        assert files == {
            file.relative_to(packaged) for file in (packaged / folder).rglob("*") if file.is_file()
        }
    assert all(
        (packaged / name).read_bytes() == (ROOT / name).read_bytes() for name in ("Snakefile", *SETTINGS)
    )
    assert (wheel / "streamlm" / "py.typed").is_file()


def test_installed_workflow_plans_the_experiment_in_a_folder_of_its_own(wheel, tmp_path):
    made = from_wheel(wheel, tmp_path, "streamlm", "init", "mine")
    assert made.returncode == 0, made.stderr
    assert made.stdout.split() == [f"mine/{name}" for name in ("Snakefile", *SETTINGS)]
    planned = from_wheel(wheel, tmp_path / "mine", "snakemake", "-n")
    assert planned.returncode == 0, planned.stdout + planned.stderr
    assert re.search(r"^measure_perplexity +42$", planned.stdout, re.MULTILINE)
    figure = from_wheel(wheel, tmp_path / "mine", "snakemake", "-n", "results/figures/ablation_n_sink.png")
    assert figure.returncode == 0, figure.stdout
    refused = from_wheel(wheel, tmp_path / "mine", "snakemake", "-n", "--sdm", "apptainer")
    assert refused.returncode != 0
    assert "jobs of `streamlm init` run in the environment of snakemake" in refused.stdout + refused.stderr


def test_folder_with_something_in_it_stays_as_it_is(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(ValueError, match="exists and is not an empty folder; name another one"):
            make_folder(place)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_installed_workflow_does_a_job(wheel, tmp_path):
    from_wheel(wheel, tmp_path, "streamlm", "init", "mine")
    place = tmp_path / "mine"
    (place / "notes.txt").write_text("Only a few words.")
    notes = {"title": "Notes", "add_bos": False, "max_samples": None,
             "source": {"kind": "path", "format": "text", "path": "notes.txt"}}  # fmt: skip
    (place / "mine.yaml").write_text(yaml.safe_dump({"corpora": {"notes": notes}}))
    done = from_wheel(
        wheel, place, "snakemake", "--cores", "1", "data/notes/sample.json", "--configfile", "mine.yaml"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Only a few words." in (place / "data/notes/sample.json").read_text()


def test_library_of_a_rule_is_missing_before_any_job_starts(monkeypatch):
    preflight.check_libraries({"measure_compression", "fetch_sample", "plot_figure"})
    monkeypatch.setattr(preflight, "LIBRARIES", {"fetch_sample": "datasetted"})
    monkeypatch.setitem(EXTRAS, "datasetted", "hub")
    preflight.check_libraries({"measure_compression", "plot_figure"})
    with pytest.raises(ValueError, match=r"^datasetted is not installed; .*\[hub\]'$"):
        preflight.check_libraries({"measure_compression", "fetch_sample"})


def test_ablation_asks_for_what_draws_before_it_measures(tmp_path):
    args = ["ablate", "--ablation-type", "n_sink", "--text", "none.txt", "--figure", "figure.png"]
    code = f"sys.path.insert(0, {str(ROOT)!r}); from streamlm.__main__ import main; main()"
    done = run_without({"matplotlib"}, code, *args, cwd=tmp_path)
    assert done.stderr.startswith("streamlm: matplotlib is not installed; install it with: pip install ")


def script(folder, name, body):
    file = folder / name
    file.write_text(f"#!/bin/sh\n{body}\n")
    file.chmod(0o755)


def set_up(tmp_path, **variables):
    """Run the set-up with only these programs beside the usual ones; return what it says."""
    pins = tmp_path / "pins.txt"
    pins.write_text("")
    usual = os.pathsep.join([str(tmp_path / "bin"), str(usual_programs(tmp_path))])
    return subprocess.run(
        ["sh", ROOT / "envs/set_up.sh", tmp_path / "made", pins],
        env={"PATH": usual, **variables}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip


def usual_programs(tmp_path):
    folder = tmp_path / "usual"
    if not folder.exists():
        folder.mkdir()
        for name in ("sh", "grep"):
            (folder / name).symlink_to(
                next(Path(part) / name for part in ("/bin", "/usr/bin") if (Path(part) / name).exists())
            )
    return folder


@pytest.fixture
def programs(tmp_path):
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


REAL = f'exec "{sys.executable}" "$@"'
OLD = 'case "$1" in --version) echo Python 3.9.1;; *) exit 1;; esac'
# A Python like Debian's without python3-venv.
BARE = f'case "$2" in *_base_exec*) echo "$0";; *ensurepip*) exit 1;; *) exec "{sys.executable}" "$@";; esac'


def test_set_up_takes_the_first_python_that_will_do(tmp_path, programs):
    script(programs, "python3", OLD)
    script(programs, "python3.12", REAL)
    done = set_up(tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"Python {sys.version.split()[0]}" in done.stdout.splitlines()[0]
    assert (tmp_path / "made/bin/python").exists()


def test_set_up_says_which_pythons_it_found(tmp_path, programs):
    script(programs, "python3", OLD)
    done = set_up(tmp_path)
    assert done.returncode == 1
    assert "needs Python 3.11 to 3.14, python3 is Python 3.9.1, python3.13 is missing" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    named = set_up(tmp_path, PYTHON="my own python")
    assert "needs Python 3.11 to 3.14, my own python is missing; install one, or uv" in named.stderr


def test_set_up_says_what_a_python_lacks(tmp_path, programs):
    script(programs, "python3", BARE)
    done = set_up(tmp_path)
    assert done.returncode == 1
    package = "python{}.{}-venv".format(*sys.version_info)
    lacks = (
        f"{programs}/python3 lacks venv or ensurepip; install them (Debian, Ubuntu: apt install {package})"
    )
    assert lacks in done.stderr
    script(programs, "python3.12", REAL)
    assert set_up(tmp_path).returncode == 0


def test_set_up_uses_uv_where_it_is(tmp_path, programs):
    script(programs, "uv", f'echo "$@" >> "{tmp_path}/said"')
    assert set_up(tmp_path).returncode == 0
    script(programs, "python3", REAL)
    assert set_up(tmp_path).returncode == 0
    fetched, _, found, installed = (tmp_path / "said").read_text().splitlines()
    assert fetched == f"venv --quiet --clear --seed --python >=3.11,<3.15 {tmp_path}/made"
    assert f"--python {Path(sys._base_executable)} " in found
    assert installed == f"pip install --python {tmp_path}/made/bin/python --requirement {tmp_path}/pins.txt"
