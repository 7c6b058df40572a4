"""Files that are there whole or not at all, and disk errors that name the file."""

import errno
import json

import pytest

from infra.files import existing_folder, named_disk_errors, write_atomically, write_json, write_text


def test_file_is_written_and_no_temporary_one_stays(tmp_path):
    write_text(tmp_path / "a.txt", "好\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "好\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_json_is_readable_text(tmp_path):
    write_json(tmp_path / "a.json", {"b": ["好"]})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"b": ["好"]} and "好" in text and text.endswith("}\n")


@pytest.mark.parametrize("error", [ValueError("bug"), KeyboardInterrupt(), OSError(errno.ENOSPC, "full")])
def test_write_that_fails_midway_leaves_the_file_of_before_alone(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("before")

    def write(temporary):
        temporary.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path, seen = tmp_path / "a.txt", []
    path.write_text("before")

    def write(temporary):
        temporary.write_text("after")
        seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["before"] and path.read_text() == "after"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_full_disk_is_told_with_the_room_that_is_left(code, tmp_path):
    with pytest.raises(OSError, match=r"a.txt could not be written \(no\); \d+ MB are free: make room"):
        with named_disk_errors(tmp_path / "a.txt"):
            raise OSError(code, "no")


def test_other_disk_error_is_told_with_its_reason(tmp_path):
    with pytest.raises(
        OSError, match=r"a.txt could not be written \(Input/output error\); fix this, then rerun"
    ):
        with named_disk_errors(tmp_path / "a.txt"):
            raise OSError(errno.EIO, "Input/output error")


def test_disk_error_that_torch_hides_behind_a_runtime_error_is_found(tmp_path):
    with pytest.raises(OSError, match=r"a.txt could not be written \(full\); .*make room"):
        with named_disk_errors(tmp_path / "a.txt"):
            try:
                raise OSError(errno.ENOSPC, "full")
            except OSError:
                raise RuntimeError("unexpected pos") from None


def test_runtime_error_that_is_no_disk_error_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="^a bug$"):
        with named_disk_errors(tmp_path / "a.txt"):
            raise RuntimeError("a bug")


def test_existing_folder_is_the_nearest_one_above(tmp_path):
    assert existing_folder(tmp_path) == tmp_path
    assert existing_folder(tmp_path / "no" / "where") == tmp_path
