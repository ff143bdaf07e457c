from __future__ import annotations

import ast
import random
import struct
import sys
import zlib
from pathlib import Path

import msgpack
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import damaged_bytes, damaged_value
from torch import Tensor

from torchrl_vla.errors import WireError
from torchrl_vla.serving import Leaves, Message, TensorDictCodec
from torchrl_vla.serving.message_fields import KINDS, read_fields

PACKAGE = Path(__file__).parent.parent.parent / "torchrl_vla"
DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)
CODEC = TensorDictCodec()

#: Of red_then_blue().
GOLDEN = (
    "54564c410100a1000000aabf36d386a46b696e64a772657175657374a873657175656e636507a666"
    "69656c647380a562617463689101a774656e736f7273929593ab6f62736572766174696f6ea5696d"
    "616765a3746f70a575696e74389401030102a3726177069592ab6f62736572766174696f6ea57374"
    "617465a7666c6f61743332920102a372617708a57465787473919291b46c616e67756167655f696e"
    "737472756374696f6e91a47069636b00ff00000000ff000000000000000000000000003f000000c0"
)


def red_then_blue() -> Message:
    """Two pixels beside each other, the left one red and the right one blue."""
    image = torch.tensor([[[[255, 0]], [[0, 0]], [[0, 255]]]], dtype=torch.uint8)
    state = torch.tensor([[0.5, -2.0]])
    leaves = Leaves(
        (1,),
        {("observation", "image", "top"): image, ("observation", "state"): state},
        {("language_instruction",): ["pick"]},
    )
    return Message("request", 7, {}, leaves)


def bits(tensor: Tensor) -> bytes:
    flat = tensor.contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes() if len(flat) else b""


def test_the_bytes_of_a_message_are_those_of_the_table():
    data = CODEC.encode(red_then_blue())
    header = msgpack.packb(
        {
            "kind": "request",
            "sequence": 7,
            "fields": {},
            "batch": [1],
            "tensors": [
                [["observation", "image", "top"], "uint8", [1, 3, 1, 2], "raw", 6],
                [["observation", "state"], "float32", [1, 2], "raw", 8],
            ],
            "texts": [[["language_instruction"], ["pick"]]],
        }
    )
    prefix = b"TVLA" + struct.pack("<HII", 1, len(header), zlib.crc32(header))
    first = prefix + header
    first += bytes(-len(first) % 16) + bytes([255, 0, 0, 0, 0, 255])  # RGB, by plane
    assert data == first + bytes(-len(first) % 16) + struct.pack("<ff", 0.5, -2.0)


def test_the_bytes_of_a_message_never_change_within_a_schema_version():
    assert CODEC.encode(red_then_blue()).hex() == GOLDEN
    assert CODEC.decode(bytes.fromhex(GOLDEN)).leaves.texts == {
        ("language_instruction",): ["pick"]
    }


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_every_tensor_keeps_its_bits_and_every_text_its_characters(data):
    batch = tuple(data.draw(st.lists(st.integers(0, 3), max_size=2)))
    rows = torch.Size(batch).numel()
    names = st.text(min_size=1, max_size=6)
    roots = data.draw(st.lists(names, min_size=1, max_size=4, unique=True))
    leaves = Leaves(batch, {})
    for root in roots:
        path = (root, *data.draw(st.lists(names, max_size=2)))
        if data.draw(st.booleans()):
            texts = st.lists(st.text(), min_size=rows, max_size=rows)
            leaves.texts[path] = data.draw(texts)
            continue
        shape = (*batch, *data.draw(st.lists(st.integers(0, 3), max_size=2)))
        dtype = data.draw(st.sampled_from(DTYPES))
        size = torch.Size(shape).numel() * dtype.itemsize
        raw = bytearray(data.draw(st.binary(min_size=size, max_size=size)))
        if dtype == torch.bool:
            raw = bytearray(byte & 1 for byte in raw)
        flat = (
            torch.frombuffer(raw, dtype=torch.uint8) if raw else torch.empty(0).byte()
        )
        leaves.tensors[path] = flat.view(dtype).reshape(shape)
    sequence = data.draw(st.integers(0, 2**63 - 1))
    back = CODEC.decode(CODEC.encode(Message("answer", sequence, {}, leaves)))
    assert (back.kind, back.sequence) == ("answer", sequence)
    assert back.leaves is not None
    assert back.leaves.batch_size == batch
    assert back.leaves.texts == leaves.texts
    assert list(back.leaves.tensors) == list(leaves.tensors)
    for path, tensor in leaves.tensors.items():
        found = back.leaves.tensors[path]
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert bits(found) == bits(tensor)


def read_everything(data: bytes) -> None:
    message = CODEC.decode(data)
    if message.kind not in KINDS:
        raise WireError("another kind")
    read_fields(message, KINDS[message.kind])


def test_ten_thousand_damaged_messages_raise_one_error_class_each():
    whole = CODEC.encode(red_then_blue())
    header_end = 14 + struct.unpack_from("<I", whole, 6)[0]
    refused = 0
    for seed in range(10_000):
        data = damaged_bytes(whole, random.Random(seed))
        try:
            read_everything(data)
        except WireError:
            refused += 1
        else:  # only numbers and the zeros between them may change unnoticed
            assert data[:header_end] == whole[:header_end], seed
            assert len(data) == len(whole), seed
    assert refused > 8_000


def test_ten_thousand_forged_headers_raise_one_error_class_each():
    """The sender knows the checksum."""
    whole = CODEC.encode(red_then_blue())
    end = 14 + struct.unpack_from("<I", whole, 6)[0]
    header = msgpack.unpackb(whole[14:end])
    refused = 0
    for seed in range(10_000):
        rng = random.Random(seed)
        try:
            forged = msgpack.packb(damaged_value(header, rng))
        except (OverflowError, ValueError, UnicodeEncodeError):  # not of msgpack
            continue
        if rng.random() < 0.3:
            forged = damaged_bytes(forged, rng)
        prefix = b"TVLA" + struct.pack("<HII", 1, len(forged), zlib.crc32(forged))
        body = prefix + forged
        payload = whole[end + -end % 16 :]
        try:
            read_everything(body + bytes(-len(body) % 16) + payload)
        except WireError:
            refused += 1
    assert refused > 7_000


def test_extension_types_and_foreign_objects_are_refused():
    for value in (msgpack.ExtType(1, b"x"), msgpack.Timestamp(1), b"bytes", 2**64 - 1):
        header = {"kind": "request", "sequence": 1, "fields": value, "batch": None}
        header = msgpack.packb({**header, "tensors": [], "texts": []})
        prefix = b"TVLA" + struct.pack("<HII", 1, len(header), zlib.crc32(header))
        with pytest.raises(WireError, match="expected a header with six entries"):
            CODEC.decode(prefix + header)


def test_a_header_cannot_claim_more_memory_than_the_message_has():
    entry = [["x"], "float32", [1 << 30, 1 << 30], "raw", 8]
    header = {"kind": "request", "sequence": 1, "fields": {}, "batch": []}
    header = msgpack.packb({**header, "tensors": [entry], "texts": []})
    prefix = b"TVLA" + struct.pack("<HII", 1, len(header), zlib.crc32(header))
    body = prefix + header
    with pytest.raises(WireError, match=r"expected 4611686018427387904 bytes at .*'x'"):
        CODEC.decode(body + bytes(-len(body) % 16) + bytes(8))


def test_another_schema_version_is_refused_by_name():
    data = bytearray(CODEC.encode(Message("open")))
    data[4] = 2
    with pytest.raises(WireError, match="expected schema version 1, got 2"):
        CODEC.decode(bytes(data))


def test_a_boolean_is_zero_or_one():
    leaves = Leaves((), {("flag",): torch.tensor([True])})
    data = bytearray(CODEC.encode(Message("request", 1, {}, leaves)))
    data[-1] = 2
    with pytest.raises(WireError, match=r"expected 0 or 1 at \('flag',\), got 2"):
        CODEC.decode(bytes(data))


def test_complex_numbers_are_refused_where_they_are_sent():
    leaves = Leaves((), {("z",): torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(WireError, match=r"at \('z',\), got torch.complex64"):
        CODEC.encode(Message("request", 1, {}, leaves))


def test_jpeg_images_keep_their_colours_within_a_bound_and_other_tensors_their_bits():
    pytest.importorskip("PIL")
    ramp = torch.arange(32, dtype=torch.uint8).mul(8)
    image = torch.stack(
        [ramp.expand(32, 32), torch.full((32, 32), 9), ramp.expand(32, 32).T]
    )
    image = image.to(torch.uint8).expand(2, 3, 32, 32)
    mask = torch.ones(2, 1, 4, 4, dtype=torch.uint8)
    leaves = Leaves((2,), {("image",): image, ("mask",): mask})
    data = TensorDictCodec(jpeg_quality=95).encode(Message("request", 1, {}, leaves))
    back = CODEC.decode(data).leaves
    assert back is not None
    assert torch.equal(back.tensors["mask",], mask)
    difference = (back.tensors["image",].int() - image.int()).abs()
    assert 0 < int(difference.max()) <= 24
    assert float(difference.float().mean()) < 4
    red, blue = back.tensors["image",][0, 0, 0, -1], back.tensors["image",][0, 2, 0, -1]
    assert red > 200 > 50 > blue


def test_damaged_jpegs_raise_the_same_error_class():
    pytest.importorskip("PIL")
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    codec = TensorDictCodec(jpeg_quality=90)
    leaves = Leaves((1,), {("image",): image})
    whole = codec.encode(Message("request", 1, {}, leaves))
    header_end = 14 + struct.unpack_from("<I", whole, 6)[0]
    refused = 0
    for seed in range(1000):
        tail = damaged_bytes(whole[header_end:], random.Random(seed))
        try:
            CODEC.decode(whole[:header_end] + tail)
        except WireError:
            refused += 1
    assert refused > 500


def test_a_small_jpeg_cannot_claim_to_be_huge():
    pytest.importorskip("PIL")
    leaves = Leaves((), {("image",): torch.zeros(3, 8, 8, dtype=torch.uint8)})
    whole = TensorDictCodec(jpeg_quality=90).encode(Message("request", 1, {}, leaves))
    end = 14 + struct.unpack_from("<I", whole, 6)[0]
    header = msgpack.unpackb(whole[14:end])
    header["tensors"][0][2] = [3, 65535, 65535]
    forged = msgpack.packb(header)
    body = b"TVLA" + struct.pack("<HII", 1, len(forged), zlib.crc32(forged)) + forged
    with pytest.raises(WireError, match=r"expected \[\.\.\., 3, h, w\]"):
        CODEC.decode(body + bytes(-len(body) % 16) + whole[end + -end % 16 :])


#: Modules that turn bytes into objects or run code that they name.
FORBIDDEN = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"),
    *("joblib", "yaml", "msgpack_numpy", "multiprocessing", "subprocess", "runpy"),
}
CALLS = {"eval", "exec", "compile", "__import__"}
ATTRIBUTES = {"torch.load", "np.load", "numpy.load"}


class WithoutTypeChecking(ast.NodeTransformer):
    def visit_If(self, node: ast.If) -> ast.AST | None:
        return None if ast.unparse(node.test) == "TYPE_CHECKING" else node


def imports_of(path: Path) -> set[str]:
    names = set()
    tree = WithoutTypeChecking().visit(ast.parse(path.read_text()))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in CALLS | ATTRIBUTES, f"{path}: {called}"
            if called.endswith("import_extra"):
                names.add(ast.literal_eval(node.args[0]))
    return names


def file_of(module: str) -> Path | None:
    base = PACKAGE.parent / Path(*module.split("."))
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def test_nothing_that_reads_the_wire_reaches_pickle():
    """All files of the package behind the codecs and the fields, import by import."""
    start = [f"torchrl_vla.serving.{name}" for name in READERS]
    files, seen, outside = list(start), set(), set()
    while files:
        module = files.pop()
        path = file_of(module)
        if path is None:
            outside.add(module)
        elif path not in seen:
            seen.add(path)
            files += imports_of(path)
    roots = {name.split(".")[0] for name in outside}
    assert {"msgpack", "torch", "numpy", "struct"} <= roots  # the walk does walk
    assert len(seen) > 20
    assert roots & FORBIDDEN == set()
    assert not [name for name in outside if name in ATTRIBUTES]


READERS = (
    *("wire_format", "message_fields", "observation_leaves", "jpeg_images"),
    *("openpi_wire", "openpi_keys", "server_manifest"),
)


def test_no_file_of_the_package_imports_pickle_or_reads_the_wall_clock():
    found = []
    for path in sorted((PACKAGE / "serving").glob("*.py")):
        names = imports_of(path)
        found += [(path.name, n) for n in names if n.split(".")[0] in FORBIDDEN]
        found += [(path.name, n) for n in names if n.split(".")[0] == "datetime"]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and ast.unparse(node) in WALL_CLOCKS:
                found.append((path.name, ast.unparse(node)))
    assert found == []


WALL_CLOCKS = {"time.time", "time.time_ns", "time.localtime", "time.gmtime"}


def test_decoding_calls_no_unpickler(monkeypatch):
    import pickle

    def called(*args, **kwargs):
        raise AssertionError("unpickled")

    for name in ("loads", "load", "Unpickler"):
        monkeypatch.setattr(pickle, name, called)
        monkeypatch.setattr(sys.modules["_pickle"], name, called)
    monkeypatch.setattr(torch, "load", called)
    whole = CODEC.encode(red_then_blue())
    bomb = b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."
    for data in (whole, bomb, whole + bomb, b"TVLA" + bomb):
        try:
            CODEC.decode(data)
        except WireError:
            continue
