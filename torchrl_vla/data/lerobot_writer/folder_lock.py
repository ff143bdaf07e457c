"""One writer per folder."""

from __future__ import annotations

import os
from pathlib import Path

from torchrl_vla._internal.durable_files import OWNER
from torchrl_vla.schema import ExecutionError


class FolderLock:
    """Hold a folder until it is released, or until the process ends in any way.

    Args:
        folder: which must be there.

    Raises:
        ExecutionError: another writer holds it.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl  # POSIX only, and nobody but a writer needs it

        self._handle = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._handle)
            raise ExecutionError(
                f"{OWNER}: expected a recording that nobody is writing at "
                f"{str(folder.parent)!r}, got one that another writer holds. Close "
                "that writer first."
            ) from error

    def release(self) -> None:
        """Let others have the folder."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
