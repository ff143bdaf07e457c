"""Origin of untrusted data: who reads it, from where, and the refusal of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torchrl_vla.errors import SchemaError, VLAError

_LONGEST_GOT = 300


@dataclass(frozen=True)
class Origin:
    """Where untrusted data come from, which every refusal of them names.

    Args:
        caller: whose errors these are.
        place: the file, e.g. ``"'meta/info.json'"``, and the row where there is one.
        remedy: what helps; the last sentence of every refusal.
        error: class of the refusals.

    Examples:
        >>> origin = Origin("Reader", "'info.json'", "Fetch it again.")
        >>> raise origin.refuse("a number", "'ten'", "fps")
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SchemaError: Reader: expected a number at 'fps' in \
'info.json', got 'ten'. Fetch it again.
    """

    caller: str
    place: str
    remedy: str
    error: type[VLAError] = SchemaError

    @classmethod
    def of_file(
        cls, caller: str, path: Path, remedy: str, error: type[VLAError] = SchemaError
    ) -> Origin:
        """Return the origin of a file that must exist.

        Raises:
            FileNotFoundError: it does not.
            VLAError: it is a folder, or its name is no name of a file.
        """
        origin = cls(caller, repr(str(path)), remedy, error)
        with origin.reading("a file"):
            is_file, exists = path.is_file(), path.exists()
        if is_file:
            return origin
        if exists:
            raise origin.refuse("a file", "a folder or a device")
        raise FileNotFoundError(
            f"{caller}: expected a file at {str(path)!r}, got nothing. {remedy}"
        )

    def row(self, row: str) -> Origin:
        """Return the origin of one row, e.g. ``"line 3"``."""
        return replace(self, place=f"{row} of {self.place}")

    def refuse(self, expected: str, got: object, at: str = "") -> VLAError:
        """Return the error to raise.

        Args:
            expected: what should be there.
            got: what is there.
            at: the key, e.g. ``"features.action.shape"``.
        """
        key = f" at {at!r}" if at else ""
        text = str(got)
        if len(text) > _LONGEST_GOT:
            text = text[:_LONGEST_GOT] + "..."
        return self.error(
            f"{self.caller}: expected {expected}{key} in {self.place}, got "
            f"{text.rstrip('. ')}. {self.remedy}"
        )

    @contextmanager
    def reading(self, expected: str, at: str = "") -> Iterator[None]:
        """Refuse what a library, called in this block, cannot read.

        Libraries raise all kinds of errors at damaged bytes; here they become one.

        Args:
            expected: what the library should find.
            at: the key.
        """
        try:
            yield
        except (VLAError, FileNotFoundError):
            raise
        except Exception as error:
            got = f"{type(error).__name__}: {error}"
            raise self.refuse(expected, got, at) from error


def read_bytes(origin: Origin, path: Path) -> bytes:
    """Return the bytes of the file at an origin."""
    with origin.reading("a readable file"):
        return path.read_bytes()


def read_text(origin: Origin, path: Path) -> str:
    """Return the UTF-8 text of the file at an origin, whatever the locale is."""
    content = read_bytes(origin, path)
    with origin.reading("UTF-8 text"):
        return content.decode("utf-8")
