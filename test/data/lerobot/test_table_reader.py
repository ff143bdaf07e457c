from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrl_vla.data.lerobot import table_reader
from torchrl_vla.data.lerobot.table_reader import TableFile
from torchrl_vla.schema import SchemaError


@pytest.fixture
def path(tmp_path):
    table = pa.table({"a": [1, 2, None], "b": ["x", "y", "z"]})
    pq.write_table(table, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def open_it(path):
    return TableFile.from_path("Reader", path, "Fetch it again.")


def test_rows_are_read_with_their_types(path):
    file = open_it(path)
    assert file.num_rows == 3
    assert file.rows({"b": str}) == [{"b": "x"}, {"b": "y"}, {"b": "z"}]
    assert [len(batch) for batch in file.batches(2, ["a"])] == [2, 1]


def test_a_wrong_entry_is_named_by_its_row(path):
    message = r"a whole number at 'a' in row 2 of '.*t\.parquet', got None\. Fetch"
    with pytest.raises(SchemaError, match=message):
        open_it(path).rows({"a": int})
    with pytest.raises(SchemaError, match=r"a number at 'b' in row 0 of"):
        open_it(path).rows({"b": float})


def test_a_missing_column_is_named(path):
    with pytest.raises(SchemaError, match=r"expected columns \['a', 'c'\].*no \['c'\]"):
        open_it(path).rows({"a": int, "c": int})


@pytest.mark.parametrize("part", [0.0, 0.3, 0.98])
def test_a_file_that_was_cut_off_is_refused(path, part):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(SchemaError, match=r"a finished parquet file in '.*t\.parquet'"):
        open_it(path)


def test_a_byte_too_few_in_the_rows_is_refused(path):
    data = path.read_bytes()
    path.write_bytes(data[:20] + data[21:])
    with pytest.raises(SchemaError, match=r"in '.*t\.parquet', got \w+: "):
        open_it(path).read()


def test_a_table_that_unpacks_to_more_than_its_file_can_hold_is_refused(
    path, monkeypatch
):
    pq.write_table(pa.table({"a": [0.0] * 1_000_000}), path, use_dictionary=False)
    size = path.stat().st_size
    monkeypatch.setattr(table_reader, "_ALWAYS_READ_BYTES", 0)
    monkeypatch.setattr(table_reader, "_MOST_PACKED", 8_000_000 // size - 1)
    with pytest.raises(SchemaError, match=rf"declared bytes in a file of {size}\."):
        open_it(path)
    monkeypatch.setattr(table_reader, "_MOST_PACKED", 8_100_000 // size + 1)
    assert open_it(path).num_rows == 1_000_000
