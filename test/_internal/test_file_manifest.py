from __future__ import annotations

import json

import pytest

from torchrl_vla._internal.file_manifest import MANIFEST, check_manifest, write_manifest
from torchrl_vla.schema import SchemaError

ADVICE = "Fetch it again."


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "small.bin").write_bytes(b"12345")
    (tmp_path / "large.bin").write_bytes(bytes(3 << 20))
    write_manifest(tmp_path)
    return tmp_path


def test_an_unchanged_folder_passes(folder):
    entries = json.loads((folder / MANIFEST).read_text())
    assert {name: entry["size"] for name, entry in entries.items()} == {
        "a/small.bin": 5,
        "large.bin": 3 << 20,
    }
    check_manifest("Reader", folder, ADVICE, verify=True)


@pytest.mark.parametrize("size", [0, 4, 6])
def test_a_file_of_another_size_is_refused(folder, size):
    (folder / "a/small.bin").write_bytes(b"123456"[:size])
    message = rf"Reader: expected 5 bytes.*small\.bin', got {size}: .* Fetch it again"
    with pytest.raises(SchemaError, match=message):
        check_manifest("Reader", folder, ADVICE)


def test_a_missing_file_is_named(folder):
    (folder / "large.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"large\.bin', got nothing\. Fetch it"):
        check_manifest("Reader", folder, ADVICE)


def test_a_changed_byte_of_a_small_file_is_found_at_once(folder):
    (folder / "a/small.bin").write_bytes(b"12x45")
    with pytest.raises(SchemaError, match=r"the checksum .*small\.bin', got another"):
        check_manifest("Reader", folder, ADVICE)


def test_a_changed_byte_of_a_large_file_is_found_on_request(folder):
    (folder / "large.bin").write_bytes(bytes((3 << 20) - 1) + b"x")
    check_manifest("Reader", folder, ADVICE)
    with pytest.raises(SchemaError, match=r"the checksum .*large\.bin', got another"):
        check_manifest("Reader", folder, ADVICE, verify=True)


def test_a_manifest_reads_no_file_outside_of_its_folder(folder):
    path = folder / MANIFEST
    entries = json.loads(path.read_text())
    path.write_text(json.dumps({"../secret": entries["large.bin"]}))
    with pytest.raises(SchemaError, match=r"a path below .* got '\.\./secret'"):
        check_manifest("Reader", folder, ADVICE)
