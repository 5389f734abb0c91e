import pytest

from streamlm import provenance
from streamlm.provenance import code_fingerprint

FILES = {
    "script.py": "import os\nfrom streamlm.a import f\n\nf()\n",
    "streamlm/__init__.py": "version = 1\n",
    "streamlm/a.py": '"""Text."""\n\ndef f():\n    from streamlm import b\n    return b.x\n',
    "streamlm/b.py": "x = 1\n",
    "streamlm/c.py": "x = 1\n",
    "streamlm/wing/__init__.py": "from streamlm.wing.shared import y\n",
    "streamlm/wing/shared.py": "y = 1\n",
    "streamlm/wing/module.py": "z = 1\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A script that imports streamlm.a, which imports streamlm.b in a function; nothing imports the rest."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "FRONT_DOOR", {"Door": "streamlm.wing.module"})
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path / "script.py"


def files_of(script):
    return [line.split()[0] for line in code_fingerprint(script)]


def test_fingerprint_names_every_project_file_once(project):
    assert files_of(project) == ["script.py", "streamlm/a.py", "streamlm/b.py"]


@pytest.mark.parametrize(
    "line",
    [
        "from streamlm.wing.module import z",
        "from streamlm.wing import module",
        "import streamlm.wing.module",
        "from streamlm import Door",
    ],
)
def test_fingerprint_follows_wings_and_the_front_door(project, line):
    project.write_text(f"{line}\n")
    wing = ["streamlm/wing/__init__.py", "streamlm/wing/module.py", "streamlm/wing/shared.py"]
    assert files_of(project) == ["script.py", *wing]


def test_fingerprint_follows_an_import_of_a_wing_itself(project):
    project.write_text("from streamlm.wing import y\n")
    assert files_of(project) == ["script.py", "streamlm/wing/__init__.py", "streamlm/wing/shared.py"]


@pytest.mark.parametrize(
    ("file", "old", "new", "changes"),
    [
        ("script.py", "f()", "f() or 1", True),
        ("streamlm/b.py", "x = 1", "x = 2", True),
        ("streamlm/b.py", "x = 1", "x = 1  # why", False),
        ("streamlm/a.py", '"""Text."""', '"""Other text."""', False),
        ("streamlm/a.py", "return b.x", "return (b.x)", False),
        ("streamlm/c.py", "x = 1", "x = 2", False),
    ],
)
def test_fingerprint_follows_meaning(project, file, old, new, changes):
    before, path = code_fingerprint(project), project.parent / file
    path.write_text(path.read_text().replace(old, new))
    assert (code_fingerprint(project) != before) is changes


@pytest.mark.parametrize("file", ["streamlm/wing/__init__.py", "streamlm/wing/module.py"])
def test_edit_past_the_front_door_changes_the_fingerprint(project, file):
    project.write_text("from streamlm import Door\n")
    before = code_fingerprint(project)
    with (project.parent / file).open("a") as source:
        source.write("more = 1\n")
    assert code_fingerprint(project) != before


def test_every_name_of_the_front_door_leads_to_its_module(tmp_path):
    for name, module in provenance.FRONT_DOOR.items():
        (tmp_path / "script.py").write_text(f"from streamlm import {name}\n")
        file = f"{module.replace('.', '/')}.py"
        assert file in files_of(tmp_path / "script.py")
        assert (provenance.ROOT / file).is_file()
