from __future__ import annotations

import pickle
import zipfile

import pytest
import torch
from torch import Tensor

from torchrl_vla._internal.tensor_file import read_tensors
from torchrl_vla.schema import SchemaError

KIND = dict[str, object]


def read(path):
    return read_tensors("Reader", path, KIND, remedy="Fetch it again.")


@pytest.fixture
def path(tmp_path):
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.pt")
    return tmp_path / "a.pt"


def test_what_was_saved_is_read(path):
    found = read(path)["a"]
    assert isinstance(found, Tensor)
    assert torch.equal(found, torch.arange(3.0))


@pytest.mark.parametrize("size", [0, 10, 300])
def test_a_file_that_was_cut_off_is_refused(path, size):
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(SchemaError, match=r"a complete file of torch.save in .*a\.pt'"):
        read(path)


def test_a_pickle_of_another_kind_is_not_run(path):
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(SchemaError, match=r"torch.save in .*got BadZipFile"):
        read(path)
    torch.save({"a": zipfile.ZipFile}, path)
    with pytest.raises(SchemaError, match="Weights only load failed"):
        read(path)


def test_other_contents_are_refused_by_their_key(path):
    torch.save([1], path)
    with pytest.raises(SchemaError, match=r"expected an object in .* got a list of 1"):
        read(path)


def test_a_file_that_unpacks_to_more_than_it_has_is_refused(path, tmp_path):
    bomb = tmp_path / "bomb.pt"
    torch.save({"a": torch.zeros(1 << 20)}, path)
    with (
        zipfile.ZipFile(path) as source,
        zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(
        SchemaError, match=r"got 4\d+ declared bytes in a file of \d{4,5}"
    ):
        read(bomb)
