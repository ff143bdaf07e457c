"""Reader of untrusted parquet tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrl_vla._internal.extras import import_extra
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.typed_values import typed

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# No real table is packed this much, but one that repeats a number is.
_MOST_PACKED = 1000
_ALWAYS_READ_BYTES = 1 << 30


@dataclass(frozen=True)
class TableFile:
    """An open parquet file; whatever pyarrow raises at it becomes our error.

    Args:
        origin: of the file.
        file: pyarrow's.
    """

    origin: Origin
    file: pq.ParquetFile

    @classmethod
    def from_path(cls, caller: str, path: Path, remedy: str) -> TableFile:
        """Open a file, and check the sizes that its footer declares.

        Args:
            caller: whose errors these are.
            path: of the file.
            remedy: what helps if the file is damaged.

        Raises:
            FileNotFoundError: the file does not exist.
            SchemaError: it is unfinished or damaged, or declares a size that no memory
                holds.
        """
        parquet = import_extra("pyarrow.parquet", "datasets", caller)
        origin = Origin.of_file(caller, path, remedy)
        with origin.reading("a finished parquet file"):
            file = parquet.ParquetFile(path)
            groups = range(file.metadata.num_row_groups)
            sizes = [file.metadata.row_group(i).total_byte_size for i in groups]
            most = _MOST_PACKED * path.stat().st_size + _ALWAYS_READ_BYTES
        if sum(sizes) > most or min(sizes, default=0) < 0:
            got = f"{sum(sizes)} declared bytes in a file of {path.stat().st_size}"
            raise origin.refuse("a table that fits its file", got)
        return cls(origin, file)

    @property
    def num_rows(self) -> int:
        """The number of rows that the footer declares."""
        return self.file.metadata.num_rows

    def check_columns(self, names: Sequence[str], expected: str) -> None:
        """Refuse a file without some columns.

        Args:
            names: of the columns.
            expected: what they are, for the error.
        """
        with self.origin.reading("the schema of a table"):
            missing = sorted(set(names) - set(self.file.schema_arrow.names))
        if missing:
            raise self.origin.refuse(expected, f"no {missing}")

    def batches(
        self, num_rows: int, columns: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows, at most ``num_rows`` at a time."""
        with self.origin.reading("rows of a table"):
            batches = self.file.iter_batches(num_rows, columns=list(columns))
        while True:
            with self.origin.reading("rows of a table"):
                batch = next(batches, None)
                if batch is not None:
                    batch.validate(full=True)
            if batch is None:
                return
            yield batch

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the whole table."""
        with self.origin.reading("rows of a table"):
            table = self.file.read(None if columns is None else list(columns))
            table.validate(full=True)
            return table

    def rows(self, columns: dict[str, type]) -> list[dict[str, Any]]:
        """Return the rows with their entries as the declared types.

        Args:
            columns: the type of each column to read.
        """
        names = sorted(columns)
        self.check_columns(names, f"columns {names}")
        with self.origin.reading("rows of a table"):
            rows = self.read(names).to_pylist()
        return [
            {
                name: typed(row[name], kind, self.origin.row(f"row {number}"), name)
                for name, kind in columns.items()
            }
            for number, row in enumerate(rows)
        ]
