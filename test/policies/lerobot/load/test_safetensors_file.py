from __future__ import annotations

import json

import pytest
import torch

from torchrl_vla.policies.lerobot.load.safetensors_file import TensorFile
from torchrl_vla.schema import SchemaError

#: Dtype, bytes in hexadecimal, and the numbers that they are, worked out by hand.
KINDS = [
    ("F64", "000000000000f83f", [1.5]),
    ("F32", "0000c03f000000c0", [1.5, -2.0]),
    ("F16", "003e", [1.5]),
    ("BF16", "c03f", [1.5]),
    ("I64", "feffffffffffffff", [-2]),
    ("I32", "02000000", [2]),
    ("U8", "ff07", [255, 7]),
    ("BOOL", "0100", [True, False]),
]


def written(folder, entries, data):
    header = json.dumps(entries).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes.fromhex(data))
    return path


@pytest.mark.parametrize(("dtype", "data", "values"), KINDS)
def test_the_bytes_of_each_dtype_are_its_numbers(tmp_path, dtype, data, values):
    size = len(data) // 2
    entry = {"dtype": dtype, "shape": [len(values)], "data_offsets": [0, size]}
    file = TensorFile("Demo", written(tmp_path, {"weight": entry}, data))
    assert file.shapes == {"weight": (len(values),)}
    assert file.read("weight").tolist() == values


def test_tensors_are_found_by_their_offsets_and_shapes(tmp_path):
    entries = {
        "__metadata__": {"format": "pt"},
        "b": {"dtype": "U8", "shape": [2, 2], "data_offsets": [1, 5]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [5, 5]},
        "a": {"dtype": "U8", "shape": [], "data_offsets": [0, 1]},
    }
    file = TensorFile("Demo", written(tmp_path, entries, "0901020304"))
    assert file.read("a").item() == 9
    assert file.read("b").tolist() == [[1, 2], [3, 4]]
    assert file.read("none").shape == torch.Size([0, 3])


@pytest.mark.parametrize(
    ("entry", "got"),
    [
        ({"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}, "4 bytes of"),
        ({"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}, "4 bytes of"),
        ({"dtype": "F32", "shape": [1], "data_offsets": [4, 4]}, "0 bytes of"),
        ({"dtype": "C64", "shape": [1], "data_offsets": [0, 4]}, "C64"),
    ],
)
def test_a_tensor_of_another_size_or_dtype_is_refused(tmp_path, entry, got):
    file = TensorFile("Demo", written(tmp_path, {"weight": entry}, "00000000"))
    with pytest.raises(SchemaError, match=rf"expected a tensor of .* got .*{got}"):
        file.read("weight")
