"""Every writer of the package writes whole files or none."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from torchrl_vla._internal.durable_files import (
    write_bytes,
    write_json,
    writing_file,
    writing_folder,
)

PACKAGE = Path(__file__).parent.parent.parent / "torchrl_vla"


def fail(file):
    file.write(b"half")
    raise OSError("the disk is full")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": "ü"})
    before = path.read_bytes()
    with pytest.raises(OSError, match="the disk is full"):
        write_bytes(path, fail)
    assert path.read_bytes() == before == '{\n    "a": "ü"\n}'.encode()
    assert list(tmp_path.iterdir()) == [path]


def test_a_library_writes_under_a_name_with_the_same_ending(tmp_path):
    path = tmp_path / "film.mp4"
    with writing_file(path) as partial:
        assert partial.suffix == ".mp4"
        assert not path.exists()
        partial.write_bytes(b"x")
    assert path.read_bytes() == b"x"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_holds_its_old_files_until_the_new_ones_are_complete(tmp_path):
    for name in ("a.txt", "mark.txt", "notes.txt"):
        (tmp_path / name).write_text("old")

    def write():
        with writing_folder(tmp_path, "mark.txt") as new:
            (new / "a.txt").write_text("new")
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        write()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        "a.txt": "old",
        "mark.txt": "old",
        "notes.txt": "old",
    }
    with writing_folder(tmp_path, "mark.txt") as new:
        (new / "mark.txt").write_text("new")
        (new / "a.txt").mkdir()
        assert (tmp_path / "mark.txt").read_text() == "old"
    assert (tmp_path / "a.txt").is_dir()
    assert (tmp_path / "mark.txt").read_text() == "new"
    assert (tmp_path / "notes.txt").read_text() == "old"


def test_the_file_that_marks_a_folder_as_complete_is_gone_while_others_are_replaced(
    tmp_path, monkeypatch
):
    (tmp_path / "mark.txt").write_text("old")
    there = []
    rename = Path.rename

    def spy(self, target):
        there.append((self.name, (tmp_path / "mark.txt").exists()))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", spy)
    with writing_folder(tmp_path, "mark.txt") as new:
        for name in ("mark.txt", "z.txt", "a.txt"):
            (new / name).write_text("new")
    assert there[-1] == ("mark.txt", False)
    assert sorted(there[:-1]) == [("a.txt", False), ("z.txt", False)]


#: Calls that write a file in place, and the files that may make them: those of the
#: durable writers themselves, and of folders that are renamed when they are complete.
WRITES = {"write_text", "write_bytes", "savefig", "save", "savez", "dump"}
MAY = {
    "dataset_cache.py": {"save", "savez"},
    "frame_table.py": {"save"},
    "live_view.py": {"save"},  # a log that grows while a viewer reads it
    "parquet_tables.py": {"save"},  # a PNG in memory
    "shard_files.py": {"save"},
}


def test_no_file_is_written_in_place():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not (
                isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            ):
                continue
            name = node.func.attr
            to_memory = name == "save" and "file" in {
                argument.id for argument in node.args if isinstance(argument, ast.Name)
            }
            opens = name == "open" and any(
                isinstance(argument, ast.Constant) and argument.value in ("w", "x")
                for argument in node.args
            )
            opens = opens and path.name not in ("video_encoder.py", "video_export.py")
            writes = name in WRITES - MAY.get(path.name, set()) and not to_memory
            if writes or opens:
                found[f"{path.name}:{node.lineno}"] = name
    assert found == {}
