from __future__ import annotations

import json
import os
import pickle

import pytest
import torch
from tensordict import MemoryMappedTensor, TensorDict

from torchrl_vla.data.mapped_frames import map_frames
from torchrl_vla.schema import SchemaError


def map_it(folder):
    return map_frames("Reader", folder, "Fetch it again.")


@pytest.fixture
def frames():
    return TensorDict(
        {
            "action": torch.arange(8.0).view(4, 2),
            "observation": {
                "image": {"front left/%": torch.ones(4, 3, dtype=torch.uint8)}
            },
            "next": {"done": torch.tensor([[False], [True], [False], [True]])},
        },
        [4],
    )


@pytest.fixture
def folder(frames, tmp_path):
    frames.memmap(tmp_path / "frames", copy_existing=True)
    return tmp_path / "frames"


def test_what_was_written_is_mapped(frames, folder):
    mapped = map_it(folder)
    assert set(mapped.keys(True, True)) == set(frames.keys(True, True))
    assert (mapped == frames).all()
    assert isinstance(mapped["action"], MemoryMappedTensor)
    assert (pickle.loads(pickle.dumps(mapped["action"])) == frames["action"]).all()


def test_what_is_written_into_the_frames_stays_in_memory(frames, folder):
    before = (folder / "action.memmap").read_bytes()
    mapped = map_it(folder)
    mapped["action"].zero_()
    assert mapped["action"].sum() == 0
    assert (folder / "action.memmap").read_bytes() == before
    assert (map_it(folder) == frames).all()


def test_a_folder_that_may_not_be_written_to_is_opened(frames, folder):
    for path in folder.rglob("*.memmap"):
        path.chmod(0o444)
    assert (map_it(folder) == frames).all()


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_a_file_that_was_cut_off_or_grew_is_refused_and_left_as_it_is(folder, size):
    path = folder / "action.memmap"
    os.truncate(path, size)
    message = rf"32 bytes \(torch.float32 \[4, 2\]\) in '.*action\.memmap', got {size}"
    with pytest.raises(SchemaError, match=message):
        map_it(folder)
    assert path.stat().st_size == size


def test_a_missing_file_is_named(folder):
    (folder / "next" / "done.memmap").unlink()
    with pytest.raises(FileNotFoundError, match=r"done\.memmap', got nothing\. Fetch"):
        map_it(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "four"}, "expected a list at 'action.shape'"),
        (
            {"shape": [-4, -2]},
            r"a dtype and sizes .*got torch.float32 and \[-4",
        ),
        ({"shape": [10**13, 2]}, "expected 80000000000000 bytes"),
        ({"dtype": "torch.nn"}, "expected a dtype and sizes in 'meta.json'"),
        ({"dtype": None}, "expected a dtype and sizes in 'meta.json'"),
        ({"shape": [2, 4]}, r"expected sizes that begin with \[4\] at 'action'"),
    ],
)
def test_damaged_declarations_are_refused(folder, change, message):
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    meta["action"] |= change
    path.write_text(json.dumps(meta))
    with pytest.raises(SchemaError, match=message):
        map_it(folder)


@pytest.mark.parametrize("name", ["../secret", "/secret", ".."])
def test_a_name_leads_to_no_file_outside(folder, name):
    (folder.parent / "secret.memmap").write_bytes(bytes(32))
    path = folder / "meta.json"
    meta = json.loads(path.read_text())
    meta[name] = meta.pop("action")
    path.write_text(json.dumps(meta))
    with pytest.raises(FileNotFoundError, match=r"%2.*\.memmap', got nothing"):
        map_it(folder)
