"""Files appear under their name when they are whole, or not at all."""

import pytest

from oneway.tensor_files import atomic_file


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_writing_that_fails_leaves_no_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write():
        with atomic_file(path) as temporary:
            temporary.write_text("half")
            assert path.read_text() == "old"
            raise KeyError("planned")

    with pytest.raises(KeyError, match="planned"):
        write()
    assert path.read_text() == "old"
    assert files_in(tmp_path) == ["file"]


def test_writing_that_succeeds_takes_the_place_at_once_and_is_readable_by_others(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_file(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent  # else the move would not be atomic
        assert not path.exists()
    assert path.read_text() == "whole"
    assert files_in(tmp_path) == ["file"]
    assert path.stat().st_mode & 0o777 == 0o644
