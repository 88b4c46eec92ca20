"""Files: written whole or not at all, and read as written or not at all."""

import io
import json
import os
import pickle
import stat

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from sklearn_sae._saving import files
from sklearn_sae._saving.files import Damaged, Foreign, read, remove_leftovers, write

CONTENT = {"name": "a", "values": [1, 0.1, None, True, "ü"], "inner": {"x": {}}}
OTHER = {"other": 1}
ARRAYS = {
    "weights": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "curve": np.array([0.1, np.nan, -np.inf]),
    "empty": np.zeros(0),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "file.safetensors"
    write(path, CONTENT, ARRAYS)
    return path


def same(arrays, others):
    return arrays.keys() == others.keys() and all(
        arrays[name].dtype == others[name].dtype
        and np.array_equal(arrays[name], others[name], equal_nan=True)
        for name in arrays
    )


def refused(path, error, match=None):
    """Reading raises an error of this very type that names the file and says what is wrong."""
    with pytest.raises(error, match=match) as caught:
        read(path)
    assert type(caught.value) is error
    assert str(path) in str(caught.value)


# ------------------------------------------------------------------ there and back


def test_what_is_read_is_what_was_written(path):
    content, arrays = read(path)
    assert content == CONTENT
    assert same(arrays, ARRAYS)


def test_arrays_are_aligned_and_may_be_written_to(path):
    for array in read(path)[1].values():
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0 or array.size == 0


def test_one_content_gives_the_same_bytes(path, tmp_path):
    other = tmp_path / "other"
    for _ in range(10):
        write(str(other), CONTENT, dict(reversed(ARRAYS.items())))
        assert other.read_bytes() == path.read_bytes()


def test_other_programs_can_read_it(path):
    with safe_open(path, framework="numpy") as file:
        entry = json.loads(file.metadata()["sklearn_sae"])
        np.testing.assert_array_equal(file.get_tensor("weights"), ARRAYS["weights"])
    assert entry["content"] == CONTENT
    assert entry["format_version"] == 1


# ------------------------------------------------------------------ writing


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the package catches it."""


class Breaking(io.FileIO):
    """A file on a disk that is full after a few bytes."""

    def write(self, data):
        super().write(data[:20])
        raise OSError("No space left on device")


def breaking_open(path, mode):
    return Breaking(path, mode)


def fail(error):
    def function(*args, **kwargs):
        raise error

    return function


@pytest.mark.parametrize(
    ("module", "function", "replacement"),
    [
        (files, "open", breaking_open),
        (os, "fsync", fail(OSError("No space left on device"))),
        (os, "replace", fail(PermissionError("No space left on device"))),
    ],
    ids=["write", "fsync", "replace"],
)
@pytest.mark.parametrize("exists", [True, False])
def test_a_write_that_fails_changes_nothing(
    path, monkeypatch, module, function, replacement, exists
):
    if not exists:
        path.unlink()
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    monkeypatch.setattr(module, function, replacement, raising=False)
    with pytest.raises(OSError, match="No space left"):
        write(path, OTHER, ARRAYS)
    monkeypatch.undo()
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_an_interrupted_write_changes_nothing(path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.setattr(os, "fsync", fail(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write(path, OTHER, ARRAYS)
    assert [*path.parent.iterdir()] == [path]
    assert path.read_bytes() == before


def test_the_data_are_on_the_disk_before_they_take_the_place(path, monkeypatch):
    done = []

    def note(name, function):
        def noted(*args):
            done.append(name)
            return function(*args)

        monkeypatch.setattr(os, name, noted)

    note("fsync", os.fsync)
    note("replace", os.replace)
    write(path, CONTENT, ARRAYS)
    assert done == ["fsync", "replace"]


def test_a_write_replaces_what_was_there(path):
    write(path, OTHER, ARRAYS)
    assert read(path)[0] == OTHER


@pytest.mark.skipif(os.name != "posix", reason="file modes and links as on POSIX")
def test_modes_and_links_stay(path):
    path.chmod(0o640)
    link = path.with_name("link")
    link.symlink_to(path)
    write(link, OTHER, ARRAYS)
    assert link.is_symlink()
    assert read(path)[0] == OTHER
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.skipif(os.name != "posix", reason="file modes as on POSIX")
def test_a_new_file_has_the_usual_mode(path):
    usual = path.with_name("usual")
    usual.touch()
    assert path.stat().st_mode == usual.stat().st_mode


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*missing"):
        write(tmp_path / "missing" / "file", CONTENT, ARRAYS)


def test_a_folder_is_not_replaced(tmp_path):
    with pytest.raises(IsADirectoryError, match="it names a folder. Give the name of a file"):
        write(tmp_path, CONTENT, ARRAYS)
    assert [*tmp_path.parent.glob(".sklearn_sae*")] == []


@pytest.mark.parametrize("name", ["new/", "new//", "new/.", "new/..", f"new{os.sep}"])
def test_the_name_of_a_folder_is_not_that_of_a_file(tmp_path, name):
    with pytest.raises(IsADirectoryError, match="names a folder.*new.*model.safetensors"):
        write(f"{tmp_path}/{name}", CONTENT, ARRAYS)
    assert [*tmp_path.iterdir()] == []


def leave(path, monkeypatch, age=0.0):
    """What a write to ``path`` leaves that is killed before it takes the place; its file."""
    before = {*path.parent.iterdir()}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(os, "replace", fail(Killed()))
        patch.setattr(files.Path, "unlink", lambda path, missing_ok=False: None)
        write(path, OTHER, ARRAYS)
    (left,) = {*path.parent.iterdir()} - before
    os.utime(left, (left.stat().st_atime - age, left.stat().st_mtime - age))
    return left


def test_a_later_write_removes_what_a_killed_one_left(path, monkeypatch):
    old, new = leave(path, monkeypatch, age=7200.0), leave(path, monkeypatch)
    other = leave(path.with_name("other"), monkeypatch, age=7200.0)
    write(path, CONTENT, ARRAYS)
    # Another process may be writing the new one, and the other is no business of this file.
    assert {*path.parent.iterdir()} == {path, new, other} and not old.exists()
    remove_leftovers(path, older_than=0)
    assert {*path.parent.iterdir()} == {path, other}
    path.unlink()
    write(path.with_name("other"), CONTENT, ARRAYS)
    assert [*path.parent.iterdir()] == [path.with_name("other")]


def test_leftovers_that_cannot_be_removed_do_no_harm(path, monkeypatch):
    left = leave(path, monkeypatch, age=7200.0)
    monkeypatch.setattr(files.Path, "unlink", fail(PermissionError("open elsewhere")))
    write(path, OTHER, ARRAYS)
    assert read(path)[0] == OTHER and left.exists()


def test_a_long_name_leaves_room_for_that_of_the_temporary_file(tmp_path):
    write(tmp_path / ("x" * 255), CONTENT, ARRAYS)
    write(tmp_path / ("[*]" + "x" * 252), CONTENT, ARRAYS)


def test_a_header_that_could_not_be_read_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="larger than 262144 bytes"):
        write(tmp_path / "file", {"long": "x" * 2**18}, ARRAYS)
    assert [*tmp_path.iterdir()] == []


# ------------------------------------------------------------------ reading other things


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        read(tmp_path / "nothing")


def npz():
    file = io.BytesIO()
    np.savez(file, spikes=np.zeros(3))
    return file.getvalue()


@pytest.mark.parametrize(
    "data", [npz(), pickle.dumps([1.0] * 100), b"an ordinary text", bytes(range(255, 0, -1))]
)
def test_a_foreign_file_is_refused(tmp_path, data):
    path = tmp_path / "foreign"
    path.write_bytes(data)
    refused(path, Foreign, "was not written by sklearn_sae")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    path = tmp_path / "foreign"
    save_file({"a": np.zeros(3)}, path, metadata)
    refused(path, Foreign)


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    refused(path, Damaged, "is damaged or cut short: it ends within its header")


def test_a_newer_format_is_refused(path, monkeypatch):
    monkeypatch.setattr(files, "FORMAT_VERSION", 2)
    write(path, CONTENT, ARRAYS)
    monkeypatch.undo()
    refused(
        path, ValueError, "file format 2, and this version of sklearn_sae reads format 1. Upgrade"
    )


@pytest.mark.parametrize(
    "entry",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"format_version":1}',
        '{"format_version":"1","content":{},"sha256":""}',
        '{"format_version":1.5,"content":{}}',
        '{"format_version":0,"content":{}}',
        '{"format_version":1,"content":[]}',
        '{"format_version":1,"content":{}}',
        '{"format_version":1,"content":{"a":NaN}}',
        '{"format_version":1,"content":{"a":1e999}}',
        '{"format_version":1,"content":{"a":"\\ud800"}}',
        f'{{"format_version":{"9" * 5000}}}',
        "[" * 30_000,
    ],
    ids=lambda entry: entry[:40],
)
def test_a_malformed_header_is_refused(path, entry):
    save_file(ARRAYS | {"weights": np.zeros(3)}, path, {"sklearn_sae": entry})
    refused(path, Damaged, "is damaged or cut short: (its header is not|its checksum is wrong)")


@pytest.mark.parametrize("depth", [100, 800, *range(900, 1000, 5), 10_000])
def test_a_header_nested_without_end_is_refused(path, depth):
    nested = "[" * depth + "]" * depth
    entry = f'{{"format_version":1,"content":{{"a":{nested}}}}}'
    save_file({"a": np.zeros(3)}, path, {"sklearn_sae": entry})
    refused(path, Damaged, "is damaged or cut short: (its header is not|its checksum is wrong)")


def test_a_header_that_claims_to_be_huge_is_not_read(path, monkeypatch):
    monkeypatch.setattr(files, "safe_open", fail(AssertionError("was read")))
    data = path.read_bytes()
    with open(path, "wb") as file:
        file.write((2**18 + 8).to_bytes(8, "little") + data[8:])
        file.truncate(2**19)
    refused(path, Foreign)


def test_a_dtype_that_is_never_written_is_refused(path):
    header = json.dumps(
        {
            "__metadata__": {"sklearn_sae": '{"format_version":1,"content":{}}'},
            "a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    refused(path, Damaged, "a is of a dtype")


# ------------------------------------------------------------------ damage


def test_every_truncation_is_refused(path):
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refused(path, Damaged)


@pytest.mark.parametrize("tail", [b"\0", b" " * 8, b"tail"])
def test_a_longer_file_is_refused(path, tail):
    path.write_bytes(path.read_bytes() + tail)
    refused(path, Damaged)


def test_a_flipped_bit_in_any_byte_is_found_or_changes_nothing(path):
    data = path.read_bytes()
    bits = np.random.default_rng(0).integers(8, size=len(data))
    n_found = 0
    for i, bit in enumerate(bits):
        damaged = bytearray(data)
        damaged[i] ^= 1 << int(bit)
        path.write_bytes(damaged)
        try:
            content, arrays = read(path)
        except ValueError as error:
            assert isinstance(error, Damaged | Foreign) or "Upgrade" in str(error)
            assert str(path) in str(error)
            n_found += 1
        else:
            assert content == CONTENT and same(arrays, ARRAYS)
    # What does not matter is how JSON is laid out.
    assert n_found > 0.98 * len(data)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(start=st.integers(0, 800), stop=st.integers(0, 800), between=st.binary(max_size=200))
def test_random_bytes_are_refused_or_change_nothing(path, start, stop, between):
    whole = path.read_bytes()
    other = path.with_name("other")
    other.write_bytes(whole[:start] + between + whole[stop:])
    try:
        content, arrays = read(other)
    except ValueError as error:
        assert isinstance(error, Damaged | Foreign) or "Upgrade" in str(error)
    else:
        assert content == CONTENT and same(arrays, ARRAYS)


def test_reading_needs_no_default_device(path):
    with torch.device("meta"):
        assert same(read(path)[1], ARRAYS)
