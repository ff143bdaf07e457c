from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from torchrl_vla.data.lerobot.lerobot_feature import Feature
from torchrl_vla.data.lerobot_writer.parquet_tables import (
    RollingTables,
    column,
    data_schema,
    field,
    numbers_of,
    write_tasks,
)

FEATURES = [
    Feature("a", "float32", (3,)),
    Feature("b", "bool", (1,)),
    Feature("c", "int64", (2, 3)),
    Feature("d", "float64", (2, 1, 2)),
]


@pytest.mark.parametrize("feature", FEATURES, ids=lambda f: str(f.shape))
def test_numbers_survive_a_table(tmp_path, feature):
    values = np.random.default_rng(0).normal(size=(4, *feature.shape))
    values = (10 * values).astype(feature.dtype)
    schema = data_schema([feature])
    table = pa.table([column(feature, values)], schema=schema)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    back = pq.read_table(tmp_path / "a.parquet")
    np.testing.assert_array_equal(numbers_of(feature, back.column(0)), values)


def test_the_types_are_those_of_lerobots_tables():
    assert [str(field(feature).type) for feature in FEATURES[:2]] == [
        "fixed_size_list<item: float>[3]",
        "bool",
    ]
    matrix = field(FEATURES[2])
    assert matrix.metadata == {
        b"ARROW:extension:name": b"datasets.features.features.Array2DExtensionType",
        b"ARROW:extension:metadata": b'[[2, 3], "int64"]',
    }


def test_images_are_png_with_a_name(tmp_path):
    feature = Feature("observation.image", "image", (2, 2, 3))
    rows = column(feature, [b"one", b"two"]).to_pylist()
    assert rows == [
        {"bytes": b"one", "path": "frame-000000.png"},
        {"bytes": b"two", "path": "frame-000001.png"},
    ]


def test_the_text_of_a_task_is_the_index_that_pandas_reads(tmp_path):
    write_tasks(tmp_path / "tasks.parquet", ["push", "pull"])
    table = pq.read_table(tmp_path / "tasks.parquet")
    assert table.to_pydict() == {"task_index": [0, 1], "task": ["push", "pull"]}
    assert b'"index_columns": ["task"]' in table.schema.metadata[b"pandas"]


def test_a_part_that_would_exceed_the_size_starts_a_new_file(tmp_path):
    tables = RollingTables(tmp_path, file_size_mb=1)
    places = []
    for size in (400_000, 400_000, 400_000, 2_000_000, 10):
        table = pa.table({"a": [np.random.default_rng(0).bytes(size)]})
        place = tables.place(size)
        tables.write(table, place)
        places.append(place["file_index"])
    tables.close()
    assert places == [0, 0, 1, 2, 3]
    rows = [
        pq.read_metadata(path).num_rows for path in sorted(tmp_path.rglob("*.par*"))
    ]
    assert rows == [2, 1, 1, 1]
