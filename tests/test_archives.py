"""Archives are written completely or not at all, and are read without unpacking."""

import hashlib
import os
import sys
import tempfile
import venv

import pytest
from conftest import make_tar, make_zip

from streamlm.sources.archives import extract_members, fetch_archive


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A one-package index that pip sees instead of the network, and its wheel."""
    info = "demo-1.0.dist-info"
    members = {
        "demo/text.txt": "words",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    index = tmp_path / "index"
    index.mkdir()
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(index), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    return make_zip(index / "demo-1.0-py3-none-any.whl", members)


def pinned(wheel, **changes):
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"kind": "package", "requirement": "demo==1.0", "sha256": digest} | changes


def files_under(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_fetch_makes_the_pinned_archive_and_nothing_else(wheel, tmp_path):
    target = tmp_path / "out" / "demo.archive"
    fetch_archive(pinned(wheel), target)
    assert files_under(target.parent) == [target]
    assert target.read_bytes() == wheel.read_bytes()
    assert files_under(tmp_path / "scratch") == []


def test_fetch_passes_pip_args_on(wheel, tmp_path):
    with pytest.raises(ValueError, match=r"cannot download demo==1\.0"):
        fetch_archive(pinned(wheel, pip_args=["--no-binary=:all:"]), tmp_path / "out" / "demo")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"sha256": "0" * 64}, ["demo==1.0 has sha256", "expected " + "0" * 64, "sha256 in the config"]),
        ({"requirement": "demo==9.9"}, ["cannot download demo==9.9", "No matching distribution", "network"]),
        ({"requirement": "absent==1.0"}, ["cannot download absent==1.0", "check the network"]),
    ],
    ids=["wrong hash", "no such version", "no such package"],
)
def test_fetch_failure_is_one_clear_line_and_leaves_nothing(wheel, tmp_path, changes, parts):
    with pytest.raises(ValueError, match=r"demo|absent") as caught:
        fetch_archive(pinned(wheel, **changes), tmp_path / "out" / "demo")
    message = str(caught.value)
    assert "\n" not in message
    assert [part for part in parts if part not in message] == []
    assert files_under(tmp_path / "scratch") == files_under(tmp_path / "out") == []


def test_fetch_without_network_says_so(wheel, tmp_path, monkeypatch):
    args = ["--index-url=http://127.0.0.1:9/simple", "--retries=1", "--no-cache-dir"]
    monkeypatch.delenv("PIP_NO_INDEX")
    source = pinned(wheel, requirement="absent==1.0", pip_args=args)
    with pytest.raises(ValueError, match=r"absent==1\.0: no connection to the package index, .*absent==1\.0"):
        fetch_archive(source, tmp_path / "absent")


def test_fetch_without_pip_says_so(wheel, tmp_path, monkeypatch):
    venv.create(tmp_path / "bare", with_pip=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bare/bin/python"))
    with pytest.raises(
        ValueError, match=r"demo==1\.0 is fetched with pip, which \S+/bin/python does not have"
    ):
        fetch_archive(pinned(wheel), tmp_path / "archive")


def test_wrong_hash_message_names_the_hash_that_came(wheel, tmp_path):
    with pytest.raises(ValueError, match=hashlib.sha256(wheel.read_bytes()).hexdigest()):
        fetch_archive(pinned(wheel, sha256="0" * 64), tmp_path / "demo")


def test_members_come_in_pattern_order_each_once(archive):
    found = list(extract_members(archive, ["demo/b.*", "*.txt", "*.md"]))
    assert found == [("demo/b.txt", b"second"), ("demo/a.txt", b"first"), ("demo/note.md", b"third")]


def test_members_pattern_without_match_is_named(archive):
    with pytest.raises(ValueError, match=rf"{archive.name} matches '\*\.csv'"):
        list(extract_members(archive, ["*.txt", "*.csv"]))


def test_members_are_never_written_to_disk(tmp_path):
    (tmp_path / "inside").mkdir()
    evil = make_tar(tmp_path / "inside" / "x.tar.gz", {"../escaped.txt": b"boo"})
    assert list(extract_members(evil, ["*"])) == [("../escaped.txt", b"boo")]
    assert files_under(tmp_path) == [evil]


@pytest.mark.parametrize("keep", [0, 10, 60, -30])
def test_damaged_archive_says_delete_it(archive, keep):
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(ValueError, match="delete it and run again") as caught:
        list(extract_members(archive, ["*.txt"]))
    assert "\n" not in str(caught.value)
