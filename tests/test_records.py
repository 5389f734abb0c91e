import hashlib

import numpy as np
import pytest

from streamlm.records.files import atomic_path, hash_ids, read_losses, read_record, write_array, write_json


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "record.json"
    write_json(target, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, {"a": float("nan")})
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert read_record(target) == {"a": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]


def test_folder_replaces_an_older_folder_whole(tmp_path):
    for name in ("old", "new"):
        with atomic_path(tmp_path / "model") as folder:
            folder.mkdir()
            (folder / name).touch()
    assert [file.name for file in (tmp_path / "model").iterdir()] == ["new"]


def test_losses_lie_beside_their_record(tmp_path):
    losses = np.array([1.5, 2.5], np.float32)
    write_array(tmp_path / "run.npy", losses)
    assert read_losses(tmp_path / "run.json").tolist() == [1.5, 2.5]


@pytest.mark.parametrize(
    ("content", "message"), [(None, "there is no record"), ("{", "not JSON"), ("[]", "holds no record")]
)
def test_unreadable_record_is_named(tmp_path, content, message):
    path = tmp_path / "record.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_record(path)


def test_hash_is_of_little_endian_int64():
    raw = (1).to_bytes(8, "little") + (258).to_bytes(8, "little")
    assert hash_ids(np.array([1, 258])) == hashlib.sha256(raw).hexdigest()
    assert hash_ids(np.array([1, 258], dtype=">i4")) == hash_ids(np.array([1, 0, 258])[::2])
