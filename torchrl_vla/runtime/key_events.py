"""Events of a person beside the robot: keyboard, pedal, script."""

from __future__ import annotations

import select
import sys
import warnings
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Literal, Protocol, get_args

from typing_extensions import Self

#: What a person can say during a run: end the episode (as a success or a failure),
#: record it again, save the past, end the run, stop the robot.
KeyEvent = Literal["success", "failure", "rerecord", "save", "quit", "stop"]

#: Characters of a terminal, and of pedals that type them.
KEYS: dict[str, KeyEvent] = {
    "n": "success",
    "f": "failure",
    "r": "rerecord",
    "s": "save",
    "q": "quit",
    "\x1b": "quit",  # Escape
    " ": "stop",
}


class KeyEvents(Protocol):
    """Tell what a person asked for since the last call."""

    def poll(self) -> list[KeyEvent]:
        """Return the events in their order, without waiting."""
        ...

    def close(self) -> None:
        """End what was begun."""
        ...


class NoKeys:
    """Tell nothing, as where nobody sits at a terminal.

    Examples:
        >>> NoKeys().poll()
        []
    """

    def poll(self) -> list[KeyEvent]:
        """Return no events."""
        return []

    def close(self) -> None:
        """End nothing."""


class ScriptedKeys:
    """Tell the events of a script, by the number of the call.

    Args:
        script: from the call's number, from 0, to its events.

    Raises:
        ValueError: there is no such event.

    Examples:
        >>> keys = ScriptedKeys({1: ["save"]})
        >>> [keys.poll() for _ in range(3)]
        [[], ['save'], []]
    """

    def __init__(self, script: Mapping[int, Sequence[KeyEvent]]) -> None:
        unknown = {e for events in script.values() for e in events} - set(
            get_args(KeyEvent)
        )
        if unknown:
            raise ValueError(
                f"ScriptedKeys: expected events of {list(get_args(KeyEvent))}, got "
                f"{sorted(unknown)}."
            )
        self._script, self._calls = script, 0

    def poll(self) -> list[KeyEvent]:
        """Return the events of this call."""
        call, self._calls = self._calls, self._calls + 1
        return list(self._script.get(call, ()))

    def close(self) -> None:
        """End nothing."""


class TerminalKeys:
    """Read keys from the terminal without Enter and without waiting.

    ``n`` ends the episode as a success, ``f`` as a failure, ``r`` records it again,
    ``s`` saves the past, ``q`` or Escape ends the run, the space bar stops the robot.

    As a context manager it gives the terminal its mode back.

    Raises:
        RuntimeError: the standard input is no terminal.
    """

    def __init__(self) -> None:
        if not sys.stdin.isatty():
            raise RuntimeError(
                "TerminalKeys: expected a terminal at the standard input, got none. "
                "Use make_keys(), which goes on without keys."
            )
        import termios
        import tty

        self._fd = sys.stdin.fileno()
        self._mode = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd)

    def poll(self) -> list[KeyEvent]:
        """Return the events of the keys that were pressed since the last call."""
        found: list[KeyEvent] = []
        while select.select([sys.stdin], [], [], 0)[0]:
            event = KEYS.get(sys.stdin.read(1))
            if event is not None:
                found.append(event)
        return found

    def close(self) -> None:
        """Give the terminal its mode back."""
        import termios

        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._mode)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the terminal its mode back."""
        self.close()


def make_keys() -> KeyEvents:
    """Return the terminal's keys, or none with a warning where there is no terminal."""
    if sys.stdin is not None and sys.stdin.isatty():
        return TerminalKeys()
    warnings.warn(
        "make_keys: expected a terminal at the standard input, got none: the run goes "
        "on without keys, and ends by its duration or a signal.",
        stacklevel=2,
    )
    return NoKeys()
