"""Fields of each kind of message, and their check."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TypeVar

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.typed_values import typed
from torchrl_vla.errors import WireError
from torchrl_vla.serving.wire_format import Message

_ORIGIN = Origin(
    "Message",
    "the message",
    "It is damaged or of another program.",
    WireError,
)


@dataclass(frozen=True)
class Open:
    """Ask for a session: the client's robot, as JSON; None = undeclared."""

    robot: str | None = None


@dataclass(frozen=True)
class Welcome:
    """Grant a session: its number, the manifest as JSON, and warnings."""

    session: int
    manifest: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """Refuse a session: the rule's name and what to do."""

    reason: str
    message: str


@dataclass(frozen=True)
class Request:
    """Ask for a chunk. The observation is in the leaves."""


@dataclass(frozen=True)
class Answer:
    """Answer a request, with the chunk in the leaves.

    The times are durations on the server, in seconds: waiting and in the policy; and
    the rows of the policy's call.
    """

    waited_s: float
    inference_s: float
    rows: int


@dataclass(frozen=True)
class Failure:
    """Answer a request without a chunk: ``reason`` and what to do.

    ``"superseded"``: a newer request of the client came first; ``"rate"``: there are
    too many; ``"policy"``: it refused the observation; ``"internal"``: it failed;
    ``"draining"``: the server shuts down.
    """

    reason: str
    message: str


@dataclass(frozen=True)
class Closing:
    """Say that the server shuts down, after all requests are answered."""


KINDS: dict[str, type] = {
    "open": Open,
    "welcome": Welcome,
    "refused": Refused,
    "request": Request,
    "answer": Answer,
    "failure": Failure,
    "closing": Closing,
}
_NAMES = {kind: name for name, kind in KINDS.items()}
T = TypeVar("T")


def make_message(fields: object, sequence: int = 0) -> Message:
    """Return the message of some fields, without leaves.

    Args:
        fields: one of :data:`KINDS`.
        sequence: of the request that it is or answers.
    """
    return Message(_NAMES[type(fields)], sequence, asdict(fields))  # type: ignore[call-overload]


def read_fields(message: Message, kind: type[T]) -> T:
    """Return a message's fields, which must be of a kind.

    Raises:
        WireError: it is another message, or its fields are not those of the kind.

    Examples:
        >>> read_fields(make_message(Refused("capacity", "full")), Refused).reason
        'capacity'
        >>> read_fields(Message("request", 1, {"x": 1}), Request)
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.WireError: Message: expected the fields [] in the message, \
got also ['x'], as another version of torchrl_vla may write. It is damaged or of \
another program.
    """
    if KINDS.get(message.kind) is not kind:
        raise _ORIGIN.refuse(f"a message {_NAMES[kind]!r}", repr(message.kind))
    return typed(message.fields, kind, _ORIGIN)
