"""Files that a user names: arrays that lie, devices, pipes."""

import json
import os
import resource
import socket
import struct
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
from command import only_line, streamlm
from tiny_model import write_tiny_model

from streamlm import limits
from streamlm.input_files import open_text, read_array, read_bytes, read_tokens
from streamlm.records.files import read_losses
from streamlm.sources.corpus import extract_documents


def npy(header, data=bytes(24), version=1):
    header = header if isinstance(header, bytes) else header.encode("latin-1")
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header + data


def fields(descr="'<i8'", order="False", shape="(3,)"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


NO_ARRAY = {
    "10^12 elements": npy(fields(shape="(1000000000000,)")),
    "10^30 elements": npy(fields(shape=f"({10**30},)")),
    "10^12 elements without a byte": npy(fields("'|V0'", shape="(1000000000000,)")),
    "negative shape": npy(fields(shape="(-3,)")),
    "fractional shape": npy(fields(shape="(1.5,)")),
    "3,000 axes": npy(fields(shape=f"({'1,' * 3000})")),
    "objects": npy(fields("'|O'")),
    "fields of objects": npy(fields("[('a','<i8'),('b','O')]")),
    "wrong dtype": npy(fields("(('<i8',),)")),
    "huge dtype": npy(fields("('<i8',(1000000,1000000))")),
    "header of 10 MB": npy(fields() + " " * 10**7, version=2),
    "header of 4 GB": b"\x93NUMPY\x02\0" + b"\xff\xff\xff\xff{",
    "code": npy("__import__('os').mkdir('ran')\n"),
    "deep": npy("(" * 9000),
    "deep, negative": npy("-" * 9000 + "1"),
    "sum": npy("1+" * 4000 + "1j"),
    "no dictionary": npy("{[]: 1}"),
    "bytes": npy(b"\xff\xfe\0{"),
    "version 9": npy(fields(), version=9),
    "cut short": npy(fields(), bytes(10)),
    "empty": b"",
    "pickle": b"\x80\x04]\x94K\x01a.",
    "zip": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("kind", NO_ARRAY)
def test_file_that_is_no_array_is_one_line_and_takes_no_memory(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    Path("it.npy").write_bytes(NO_ARRAY[kind])
    for read in (read_tokens, read_array, read_losses):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(
            ValueError, match=r"it\.npy is not a whole \.npy file of numbers; write it again"
        ) as e:
            read("it.npy")
        assert "pickle" not in str(e.value)
        assert "\n" not in str(e.value)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert [path.name for path in tmp_path.iterdir()] == ["it.npy"]


@pytest.mark.parametrize(
    ("array", "got"),
    [
        (np.ones(3), "<f8"), (np.ones(3, bool), "|b1"), (np.ones(3, ">i8"), ">i8"), (np.ones((3, 1)), "3, 1"),
        (np.array(5), r"shape \(\)"), (np.ones(3, [("\x1b", "<i8")]), "V8"), (np.array(["a"]), "<U1"),
    ],
    ids=range(7),
)  # fmt: skip
def test_ids_of_another_sort_are_refused_with_what_they_are(tmp_path, array, got):
    np.save(tmp_path / "it.npy", array)
    with pytest.raises(ValueError, match=rf"one row of int64 token ids, got .*{got}.*; write them again"):
        read_tokens(tmp_path / "it.npy")


def test_losses_of_another_sort_are_refused(tmp_path):
    for other in (np.ones(3, int), np.array(["a"]), np.float32(1), np.array([np.nan])):
        np.save(tmp_path / "it.npy", other)
        with pytest.raises(ValueError, match=r"they are not finite floating-point numbers|no file"):
            read_losses(tmp_path / "it.json")


def test_order_of_storage_and_emptiness_change_no_ids(tmp_path):
    for content, ids in (
        (npy(fields(order="True"), struct.pack("<3q", 1, 2, 3)), [1, 2, 3]),
        (npy(fields(shape="(0,)"), b""), []),
    ):
        (tmp_path / "it.npy").write_bytes(content)
        assert read_tokens(tmp_path / "it.npy").tolist() == ids


@pytest.fixture
def place(tmp_path, monkeypatch):
    write_tiny_model(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/null", "/dev/full"])
def test_device_is_refused(device):
    with pytest.raises(ValueError, match=f"{device} is a device, and may never end; use a file or a pipe"):
        read_bytes(Path(device), 10)


def test_folder_socket_and_missing_file_are_one_line(tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        for name in ("s", ".", "absent", "s/below", "a\x1b"):
            with pytest.raises(ValueError, match=r"^(no such file: |cannot read )[^\n\x1b]*$"):
                read_bytes(tmp_path / name, 10)
            with pytest.raises(ValueError, match=r"^no such file: [^\n\x1b]*$"):
                read_array(tmp_path / name)
    with pytest.raises(ValueError, match="cannot read"):
        read_bytes(Path("a\0b"), 10)


def test_file_larger_than_asked_is_refused(tmp_path):
    (tmp_path / "it").write_bytes(b"x" * 11)
    with pytest.raises(ValueError, match="it has more than 10 bytes; use a smaller file, or a part"):
        read_bytes(tmp_path / "it", 10)


@pytest.mark.parametrize("late", [False, True], ids=["soon", "late"])
def test_pipe_with_a_writer_is_read_and_waited_for_with_a_word(monkeypatch, tmp_path, late):
    monkeypatch.setattr(limits, "QUIET_PIPE_SECONDS", 0.3 if late else 20)
    os.mkfifo(tmp_path / "pipe")

    def write():
        time.sleep(1 if late else 0)
        with (tmp_path / "pipe").open("wb") as file:
            file.write(b"words")
            file.flush()
            time.sleep(0.2)
            file.write(b" and more" * 10_000)

    writer = threading.Thread(target=write)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer.start()
        with open_text(tmp_path / "pipe") as file:
            assert file.read() == b"words" + b" and more" * 10_000
    writer.join()
    said = [str(w.message) for w in caught if "waiting for somebody to write into the pipe" in str(w.message)]
    assert len(said) == late


SIZES = ("--model-name", "model", "--n-sink", 2, "--window-size", 20)


def test_command_refuses_devices_and_folders_in_one_line(place):
    Path("t.txt").write_text("hello world " * 20)
    np.save("i.npy", np.array([1, -2, 3]))
    for args, said in (
        (("evaluate", *SIZES, "--text", "/dev/zero"), "/dev/zero is a device"),
        (("evaluate", *SIZES, "--tokens", "/dev/zero"), "no such file: /dev/zero"),
        (("generate", *SIZES, "--prompts", "/dev/zero"), "/dev/zero is a device"),
        (("generate", *SIZES, "--prompts", "."), "is a folder"),
        (("evaluate", *SIZES, "--tokens", "i.npy"), "token id -2 is outside the vocabulary"),
    ):
        assert said in only_line(streamlm(place, *args))


def test_command_reads_a_text_from_a_pipe(place):
    text = "hello world " * 20
    Path("t.txt").write_text(text)
    reading, writing = os.pipe()
    writer = threading.Thread(target=lambda: os.fdopen(writing, "wb").write(text.encode()))
    writer.start()
    piped = streamlm(
        place, "evaluate", *SIZES, "--json", "--text", f"/dev/fd/{reading}"
    )  # as bash's <( ) gives it
    writer.join()
    os.close(reading)
    plain = streamlm(place, "evaluate", *SIZES, "--json", "--text", "t.txt")
    assert piped.returncode == 0, piped.stderr
    assert json.loads(piped.stdout)["tokens"]["sha256"] == json.loads(plain.stdout)["tokens"]["sha256"]


def test_text_of_the_config_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(ValueError, match=r"no such file: .*; correct the path"):
            extract_documents({"kind": "path", "format": "text"}, path)
