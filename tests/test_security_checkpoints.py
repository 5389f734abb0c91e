"""Checkpoints, records and losses as files of strangers: read as data, within bounds."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from conftest import VOCAB, tiny_llama
from safetensors import safe_open
from safetensors.torch import save

from streamlm.cache.prepare import prepare
from streamlm.cache.tensor_file import digest_of
from streamlm.config import StreamConfig
from streamlm.measure.checkpoint import Checkpoint
from streamlm.measure.scoring import score_stream
from streamlm.records.files import read_losses, read_record

IDS = np.random.default_rng(0).integers(VOCAB, size=64)


def keep(path):
    """Score a few tokens, and leave the checkpoint where it is."""
    path.unlink(missing_ok=True)
    restore(path)


def restore(path):
    """Score a few tokens; return how many losses came from a checkpoint."""
    state = Checkpoint(path, {"of": "this"}, every=16)
    with prepare(tiny_llama()) as model:
        cfg = StreamConfig(n_sink=2, window_size=9)
        score_stream(model, IDS, cfg, chunk=16, checkpoint=state)
    return state.restored


def rewrite(path, change, digest=None):
    """Write the tensors of a checkpoint again, changed."""
    with safe_open(path, framework="pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    if digest is not None:
        about["digest"] = digest(about, tensors)
    path.write_bytes(save(tensors, metadata=about))


@pytest.mark.parametrize("name", ["losses", "counts", "0.keys", "1.values", "0.sinks"])
def test_changed_tensor_of_a_checkpoint_is_refused(tmp_path, name):
    path = tmp_path / "state"
    keep(path)
    rewrite(path, lambda tensors: None)
    assert restore(path) == 48
    keep(path)
    rewrite(path, lambda tensors: tensors[name].flatten()[:1].add_(1))
    with pytest.raises(ValueError, match=r"damaged \(it does not hold what was written to it\); remove it"):
        restore(path)


def test_flipped_bit_of_a_checkpoint_is_never_taken_up(tmp_path):
    path = tmp_path / "state"
    keep(path)
    content = path.read_bytes()
    for at in np.random.default_rng(0).integers(len(content), size=60):
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        try:
            assert restore(path) == 0  # the identity is another: it is begun again
        except ValueError as error:
            assert re.fullmatch(r"the checkpoint .* is damaged .*", str(error))


class Runs:
    """Is executed where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("executed",))


FOREIGN = {
    "pickle": lambda path: path.write_bytes(pickle.dumps(Runs())),
    "torch": lambda path: torch.save({"losses": Runs()}, path),
    "npz": lambda path: np.savez(path.open("wb"), losses=np.array([Runs()], object)),
    "zip bomb": lambda path: zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED).writestr("a", b"0" * 10**7),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text('{"losses": 1}'),
    "header of 2**60 bytes": lambda path: path.write_bytes((2**60).to_bytes(8, "little") + b"{}"),
    "weights": lambda path: path.write_bytes(save({"weight": torch.zeros(3)})),
    "another format": lambda path: path.write_bytes(save({"a": torch.zeros(3)}, metadata={"format": "pt"})),
    "identity is no JSON": lambda path: path.write_bytes(save({}, metadata={"identity": "{"})),
    "identity is deep": lambda path: path.write_bytes(save({}, metadata={"identity": "[" * 10**5})),
    "folder": lambda path: path.mkdir(),
    "pipe": lambda path: os.mkfifo(path),
}


@pytest.mark.parametrize("write", FOREIGN.values(), ids=FOREIGN)
def test_file_that_is_no_checkpoint_is_refused_and_never_executed(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "state")
    with pytest.raises(ValueError, match=r"state is damaged .*; remove it to start again") as caught:
        restore(tmp_path / "state")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("losses"),
        lambda tensors: tensors.update(losses=torch.zeros(5000)),
        lambda tensors: tensors.update(losses=torch.zeros(2, 24)),
        lambda tensors: tensors.update(losses=torch.zeros(())),
        lambda tensors: tensors.update(losses=torch.zeros(48, dtype=torch.float64)),
        lambda tensors: tensors.update(losses=torch.zeros(48, dtype=torch.bfloat16)),
        lambda tensors: tensors.update(losses=torch.full((48,), torch.nan)),
        lambda tensors: tensors.update(losses=torch.zeros(32)),
        lambda tensors: tensors.pop("counts"),
        lambda tensors: tensors.update(counts=torch.zeros(3)),
        lambda tensors: tensors.update(counts=torch.tensor([48, -(2**62)])),
        lambda tensors: tensors.update(counts=torch.tensor([48.0, 0.5])),
        lambda tensors: tensors.update({"0.keys": torch.zeros(1)}),
        lambda tensors: tensors.update({"0.keys": torch.zeros(1, 2, 11, 8, dtype=torch.int8)}),
        lambda tensors: tensors.update(pads=torch.tensor([3, 4])),
        lambda tensors: tensors.update(more=torch.zeros(1)),
    ],
)
def test_checkpoint_of_wrong_shapes_is_refused_though_its_digest_is_right(tmp_path, change):
    path = tmp_path / "state"
    keep(path)
    rewrite(path, change, digest_of)
    with pytest.raises(ValueError, match=r"state is damaged .*; remove it to start again"):
        restore(path)


HOSTILE = {
    "lists in lists": b"[" * 100_000,
    "objects in objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "closed lists": b"[" * 900 + b"]" * 900,
    "a field forty deep": b'{"model": ' + b"[" * 40 + b"]" * 40 + b"}",
    "number of 5,000 digits": b'{"a": ' + b"1" * 5000 + b"}",
    "number of 70 bits": b'{"a": 1180591620717411303424}',
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "1e999": b'{"a": 1e999}',
    "a list": b"[1, 2]",
    "null": b"null",
    "a text": b'"record"',
    "nothing": b"",
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "a BOM": b"\xef\xbb\xbf{}",
    "raw control characters": b'{"a": "\x1b[2J"}',
    "pickle": pickle.dumps({"a": 1}),
    "more after it": b"{} {}",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_json_is_refused_with_one_line(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"record\.json") as caught:
        read_record(path)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.mkdir(), "is not a plain file"),
        (os.mkfifo, "is not a plain file"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a plain file"),
        (lambda path: path.symlink_to(path), "there is no record"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**30), "has 1,073,741,824 bytes"),
        (lambda path: None, "there is no record"),
    ],
    ids=["folder", "pipe", "device", "loop", "1 GiB", "missing"],
)
def test_file_that_is_no_record_is_refused_unread(tmp_path, make, message):
    make(tmp_path / "record.json")
    with pytest.raises(ValueError, match=message):
        read_record(tmp_path / "record.json")


@pytest.mark.parametrize("text", [r"\u001b[2J", r"x\u202ey", r"\ud800", r"\u0085", r"\r"])
def test_record_with_a_character_that_steers_is_refused(tmp_path, text):
    for record in (f'{{"{text}": 1}}', f'{{"a": ["b", {{"c": "{text}"}}]}}'):
        (tmp_path / "record.json").write_text(record)
        with pytest.raises(ValueError, match=r"record.json is not JSON of a record: .* has the character \\"):
            read_record(tmp_path / "record.json")


def array_header(shape, descr="<f4"):
    """Return a `.npy` file without data."""
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


def as_npz(path, **arrays):
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


NO_LOSSES = {
    "terabytes": lambda path: path.write_bytes(array_header((10**12,))),
    "negative": lambda path: path.write_bytes(array_header((-5,))),
    "overflow": lambda path: path.write_bytes(array_header((2**62, 2**62))),
    "objects": lambda path: np.save(path, np.array([Runs()], object), allow_pickle=True),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Runs())),
    "npz": lambda path: as_npz(path, losses=np.zeros(10**6)),
    "code as header": lambda path: path.write_bytes(array_header("(__import__('os').mkdir('executed'),)")),
    "texts": lambda path: np.save(path, np.array(["a", "b"])),
    "times": lambda path: np.save(path, np.zeros(3, "M8[s]")),
    "one number": lambda path: np.save(path, np.float32(1)),
    "infinite": lambda path: np.save(path, np.array([np.inf], np.float32)),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(array_header((5,)) + bytes(19)),
    "pipe": os.mkfifo,
    "folder": lambda path: path.mkdir(),
}


@pytest.mark.parametrize("write", NO_LOSSES.values(), ids=NO_LOSSES)
def test_file_that_holds_no_losses_is_refused_and_never_executed(tmp_path, monkeypatch, write):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run.npy")
    with pytest.raises(
        ValueError, match=r"cannot read the losses of \S*run\.json(:| from) .*run\.npy"
    ) as caught:
        read_losses(tmp_path / "run.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
