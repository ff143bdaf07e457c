"""Log of a training: a line of numbers per iteration, as CSV and in TensorBoard."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from torchrl_vla._internal.durable_files import write_text
from torchrl_vla._internal.extras import import_extra
from torchrl_vla._internal.file_origin import Origin, read_text
from torchrl_vla.errors import ResumeError

_FILE = "log.csv"
_REMEDY = "Begin the training again in another folder."


class RunLog:
    """Append the numbers of an iteration to ``log.csv``, and to TensorBoard if asked.

    Lines of iterations that a resumed training runs again are removed first, and so is
    a line that a killed process cut off. A number that an iteration does not have
    (evaluations happen now and then) is an empty cell.

    Args:
        folder: where the files are.
        columns: names of the numbers; the first is the iteration.

    Keyword Args:
        tensorboard: True = also write event files to ``folder/tensorboard`` (extra
            ``tensorboard``).

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> log = RunLog(folder, ("iteration", "success"))
        >>> log.append({"iteration": 1, "success": 0.5})
        >>> log.append({"iteration": 2})
        >>> RunLog(folder, ("iteration", "success")).keep_until(1)
        [{'iteration': 1.0, 'success': 0.5}]
    """

    def __init__(
        self, folder: Path, columns: tuple[str, ...], *, tensorboard: bool = False
    ) -> None:
        self.path = folder / _FILE
        self.columns = columns
        self._writer = None
        if tensorboard:
            import_extra("tensorboard", "tensorboard", "RunLog")
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder / "tensorboard")

    def append(self, numbers: Mapping[str, float]) -> None:
        """Write a line; names that are no column are an error."""
        unknown = sorted(set(numbers) - set(self.columns))
        if unknown:
            raise ValueError(
                f"RunLog: expected numbers of {list(self.columns)}, got {unknown}."
            )
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if is_new:
                writer.writeheader()
            writer.writerow(numbers)
        if self._writer is not None:
            step = int(numbers[self.columns[0]])
            for name in self.columns[1:]:
                if name in numbers:
                    self._writer.add_scalar(name, numbers[name], step)
            self._writer.flush()

    def keep_until(self, iteration: int) -> list[dict[str, float]]:
        """Remove the lines after an iteration; return those that stay."""
        if not self.path.exists():
            return []
        origin = Origin("RunLog", repr(str(self.path)), _REMEDY, ResumeError)
        lines = read_text(origin, self.path).splitlines(keepends=True)
        # The last line of a killed process may be cut off: no state was written after
        # it, so it is removed.
        whole = [line for line in lines if line.endswith("\n")]
        if not whole:
            self.path.unlink()
            return []
        header, *lines = whole
        with origin.reading("an iteration in each line"):
            kept = [line for line in lines if int(line.split(",")[0]) <= iteration]
        write_text(self.path, "".join([header, *kept]))
        return self.read(self.path)

    @staticmethod
    def read(path: Path) -> list[dict[str, float]]:
        """Return the lines of a log file, without its empty cells.

        Raises:
            FileNotFoundError: there is none.
            SchemaError: it is damaged.
        """
        origin = Origin.of_file("RunLog", path, _REMEDY)
        lines = csv.DictReader(read_text(origin, path).splitlines())
        with origin.reading("a number in each cell"):
            return [
                {name: float(cell) for name, cell in line.items() if cell}
                for line in lines
            ]

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
