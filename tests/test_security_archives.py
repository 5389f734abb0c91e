"""Archives of strangers: fetched without running them, expanded within bounds, their names no paths."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
from conftest import make_tar, make_zip

from streamlm import limits
from streamlm.sources import guarded_pip
from streamlm.sources.archives import extract_members, fetch_archive
from streamlm.sources.mediawiki import mediawiki_documents


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder in which pip looks for archives instead of the network."""
    folder = tmp_path / "index"
    folder.mkdir()
    for key, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    return folder


def hostile_sdist(folder, mark, how, suffix="tar.gz"):
    """Write a source archive whose code, if it runs, makes a marker file."""
    code = f"open({str(mark)!r}, 'w')\n"
    files = {"PKG-INFO": "Metadata-Version: 2.1\nName: demo\nVersion: 0.1\n", "text.txt": "words"}
    if how == "setup.py":
        files["setup.py"] = code + "from setuptools import setup\nsetup(name='demo', version='0.1')\n"
    else:
        files["pyproject.toml"] = "[build-system]\nrequires = []\nbuild-backend = 'b'\nbackend-path = ['.']\n"
        files["b.py"] = code
    members = {f"demo-0.1/{name}": content for name, content in files.items()}
    if suffix == "zip":
        return make_zip(folder / "demo-0.1.zip", members)
    return make_tar(folder / "demo-0.1.tar.gz", {name: text.encode() for name, text in members.items()})


def pinned(archive, **changes):
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    return {"kind": "package", "requirement": "demo==0.1", "sha256": digest} | changes


@pytest.mark.parametrize("how", ["setup.py", "backend"])
@pytest.mark.parametrize("suffix", ["tar.gz", "zip"])
def test_fetching_a_source_archive_runs_none_of_its_code(index, tmp_path, how, suffix):
    sdist = hostile_sdist(index, tmp_path / "ran", how, suffix)
    fetch_archive(pinned(sdist, pip_args=["--no-build-isolation"]), tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == sdist.read_bytes()
    assert not (tmp_path / "ran").exists()


def test_source_archive_with_another_hash_is_refused_and_runs_no_code(index, tmp_path):
    source = pinned(hostile_sdist(index, tmp_path / "ran", "setup.py"), sha256="0" * 64)
    with pytest.raises(ValueError, match=r"demo==0\.1 has sha256 \w{64}, expected 0{64}: not the pinned"):
        fetch_archive(source, tmp_path / "got")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "got").exists()


def test_pip_under_the_guard_starts_no_program(index, tmp_path):
    sdist = hostile_sdist(index, tmp_path / "ran", "setup.py")
    args = ["download", "--no-deps", "--no-build-isolation", "--dest", tmp_path, sdist]
    command = [sys.executable, "-P", guarded_pip.__file__, "0" * 64, tmp_path / "got", *args]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode != 0
    assert "fetching an archive runs no other program" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["--log=/tmp/it"], ["-r", "more.txt"], ["-e", "."], ["./folder"], ["--dest", "/tmp"], ["--python=x"],
        ["-ihttp://x"], ["--no-index", "evil"], ["--index-url", "x", "evil"], ["--proxy=x"], ["--lo=x"],
        ["--config-settings=x"], ["--index-url=x", "evil"],
    ],
    ids=str,
)  # fmt: skip
def test_pip_args_that_do_more_than_choose_a_file_are_refused(tmp_path, args):
    source = {"requirement": "demo==0.1", "sha256": "0" * 64, "pip_args": args}
    with pytest.raises(ValueError, match=r"pip_args must be options that choose the index or the file, got"):
        fetch_archive(source, tmp_path / "got")


def tar_of(path, *members):
    """Write a tar of TarInfo fields, with contents of zeros."""
    with tarfile.open(path, "w:gz") as tarred:
        for fields in members:
            info = tarfile.TarInfo(fields.pop("name"))
            for field, value in fields.items():
                setattr(info, field, value)
            tarred.addfile(info, io.BytesIO(bytes(info.size)) if info.isreg() else None)
    return path


@pytest.fixture
def small_limits(monkeypatch):
    """Bounds that a test reaches in no time."""
    monkeypatch.setattr(limits, "EXPANDED_BYTES", 1 << 20)


BOMB = bytes(4 << 20)


def sparse_tar(path):
    """Write a tar of 512 bytes of data that stand for 1 TiB."""
    header = tarfile.TarInfo("a.txt")
    header.size, header.type = 512, tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[386:410] = b"%011o\0%011o\0" % (0, 512)
    block[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(bytes(block) + bytes(512 * 3))
    return path


def zip_bomb(path, compression):
    with zipfile.ZipFile(path, "w", compression) as zipped:
        zipped.writestr("a.txt", BOMB)
    return path


BOMBS = {
    "zip": lambda path: zip_bomb(path, zipfile.ZIP_DEFLATED),
    "zip, bzip2": lambda path: zip_bomb(path, zipfile.ZIP_BZIP2),
    "zip, lzma": lambda path: zip_bomb(path, zipfile.ZIP_LZMA),
    "zip of many files": lambda path: make_zip(path, {f"{n}.txt": bytes(1 << 19) for n in range(9)}),
    "tar.gz": lambda path: tar_of(path, {"name": "a.txt", "size": 4 << 20}),
    "tar.gz, skipped": lambda path: tar_of(path, {"name": "b", "size": 4 << 20}, {"name": "a.txt"}),
    "tar.bz2": lambda path: path.write_bytes(
        bz2.compress(gzip.decompress(BOMBS["tar.gz"](path).read_bytes()))
    ),
    "tar.xz": lambda path: path.write_bytes(
        lzma.compress(gzip.decompress(BOMBS["tar.gz"](path).read_bytes()))
    ),
    "sparse tar": sparse_tar,
}


@pytest.mark.parametrize("kind", BOMBS)
def test_archive_that_expands_without_bound_is_refused(small_limits, tmp_path, kind):
    BOMBS[kind](tmp_path / "it")
    with pytest.raises(
        ValueError, match=r"^it has [\d,]+ bytes and expands to more than 1,048,576: it is dam"
    ):
        list(extract_members(tmp_path / "it", ["*.txt"]))


def test_export_that_expands_without_bound_is_refused(small_limits):
    with pytest.raises(ValueError, match=r"the MediaWiki export has .* and expands to more than 1,048,576"):
        list(mediawiki_documents(bz2.compress(b"<mediawiki>" + b" " * (4 << 20))))


def test_honest_text_of_any_size_passes_the_bounds(small_limits, tmp_path):
    words = random.Random(0).choices(
        ["the", "of", "and", "to", "a", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are"],
        k=10**6,
    )
    text = " ".join(words)  # 16 times smaller compressed, which is more than prose
    make_zip(tmp_path / "it", {"a.txt": text})
    assert [*extract_members(tmp_path / "it", ["*"])] == [("a.txt", text.encode())]


def test_archive_with_too_many_members_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "ARCHIVE_MEMBERS", 20)
    for path in (
        make_zip(tmp_path / "a", dict.fromkeys(map(str, range(21)), "")),
        make_tar(tmp_path / "b", dict.fromkeys(map(str, range(21)), b"")),
    ):
        with pytest.raises(ValueError, match="has more than 20 members"):
            list(extract_members(path, ["*"]))


def test_list_of_files_without_bound_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(limits, "ARCHIVE_HEADER_BYTES", 100_000)
    make_zip(tmp_path / "a", dict.fromkeys((f"{n:060}" for n in range(2000)), ""))
    tar_of(tmp_path / "b", {"name": "long" * 30_000, "size": 0})
    for name in "ab":
        with pytest.raises(ValueError, match="has a list of files of more than 100,000 bytes"):
            list(extract_members(tmp_path / name, ["*"]))


def test_chained_headers_of_a_tar_are_one_line(tmp_path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 2
    (tmp_path / "it").write_bytes((header.tobuf() + b"a".ljust(512, b"\0")) * 5000)
    with pytest.raises(ValueError, match=r"it \(.*\); delete it and run again"):
        list(extract_members(tmp_path / "it", ["*"]))


@pytest.mark.parametrize("type_", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, b"5"])
def test_links_devices_and_folders_in_a_tar_are_no_files(tmp_path, type_):
    path = tar_of(tmp_path / "it", {"name": "a.txt", "type": type_, "linkname": "/etc/passwd"})
    with pytest.raises(ValueError, match=r"no file in .* matches '\*'"):
        list(extract_members(path, ["*"]))


def test_link_in_a_zip_is_no_file(tmp_path):
    info = zipfile.ZipInfo("a.txt")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "it", "w") as zipped:
        zipped.writestr(info, "/etc/passwd")
    with pytest.raises(ValueError, match=r"no file in .* matches"):
        list(extract_members(tmp_path / "it", ["*"]))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_name_that_is_there_twice_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a", "w") as zipped:
        zipped.writestr("a.txt", "one")
        zipped.writestr("a.txt", "two")
    tar_of(tmp_path / "b", {"name": "a.txt", "size": 3}, {"name": "a.txt", "size": 4})
    for name in "ab":
        with pytest.raises(ValueError, match=r"has 'a\.txt' more than once"):
            list(extract_members(tmp_path / name, ["*"]))


@pytest.mark.parametrize("name", ["/etc/absolute.txt", "../../up.txt", "C:\\x.txt", "a\x1b]0;x.txt"])
def test_names_that_point_elsewhere_are_only_names(tmp_path, name):
    (tmp_path / "in").mkdir()
    for path in (make_zip(tmp_path / "in/a", {name: b"x"}), make_tar(tmp_path / "in/b", {name: b"x"})):
        assert [content for _, content in extract_members(path, ["*"])] == [b"x"]
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "in"]


def patched(path, old, new, count=-1):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, count))
    return path


def test_zip_that_is_encrypted_or_lies_about_sizes_is_one_line(tmp_path):
    def stored(name):
        with zipfile.ZipFile(tmp_path / name, "w") as zipped:
            zipped.writestr("a.txt", "text of some length")
        return tmp_path / name

    encrypted = stored("encrypted")
    for signature, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content = bytearray(encrypted.read_bytes())
        content[content.index(signature) + at] |= 1
        encrypted.write_bytes(content)
    larger = patched(stored("larger"), struct.pack("<II", 19, 19), struct.pack("<II", 19, 2**31))
    smaller = patched(stored("smaller"), struct.pack("<II", 19, 19), struct.pack("<II", 19, 3))
    unknown = patched(
        stored("unknown"), b"PK\x01\x02\x14\x03\x14\0\0\0\0\0", b"PK\x01\x02\x14\x03\x14\0\0\0\x63\0"
    )
    assert list(extract_members(larger, ["*"])) == [("a.txt", b"text of some length")]  # its hash is right
    for path in (encrypted, smaller, unknown):
        with pytest.raises(ValueError, match=r"^cannot read .* \(.*\); delete it and run again$"):
            list(extract_members(path, ["*"]))
