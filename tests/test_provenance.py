import pytest

from streamlm import provenance
from streamlm.provenance import code_fingerprint


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A script that imports streamlm.a, which imports streamlm.b inside a function; streamlm.c is apart."""
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    package = tmp_path / "streamlm"
    package.mkdir()
    (package / "a.py").write_text('"""Text."""\n\ndef f():\n    from streamlm import b\n    return b.x\n')
    (package / "b.py").write_text("x = 1\n")
    (package / "c.py").write_text("x = 1\n")
    script = tmp_path / "script.py"
    script.write_text("import os\nfrom streamlm.a import f\n\nf()\n")
    return script


def test_fingerprint_names_every_project_file_once(project):
    files = [line.split()[0] for line in code_fingerprint(project)]
    assert files == ["script.py", "streamlm/a.py", "streamlm/b.py"]


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
