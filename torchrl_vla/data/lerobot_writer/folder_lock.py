"""Lock of a folder against a second writer."""

from __future__ import annotations

import os
from pathlib import Path

from torchrl_vla.data.lerobot_writer.frame_schema import OWNER
from torchrl_vla.schema import ExecutionError


class FolderLock:
    """Lock of a folder until :meth:`release` or the end of the process.

    Args:
        folder: an existing folder.

    Raises:
        ExecutionError: another writer holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # POSIX only; imported here so that readers work elsewhere

        self._handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise ExecutionError(
                f"{OWNER}: expected a recording without a writer at "
                f"{str(folder.parent)!r}, got one that another writer holds. Close "
                "that writer first."
            ) from error

    def release(self) -> None:
        """Release the lock."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
