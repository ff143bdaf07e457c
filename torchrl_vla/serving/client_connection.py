"""Connections of a client to a server."""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.errors import ServingError, SessionRefusedError, SettingsError
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.serving.client_socket import ClientSocket
from torchrl_vla.serving.message_fields import (
    Answer,
    Closing,
    Failure,
    Open,
    Refused,
    Request,
    Welcome,
    make_message,
    read_fields,
)
from torchrl_vla.serving.native_protocol import NATIVE_PATH
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.server_manifest import ServerManifest
from torchrl_vla.serving.wire_format import TensorDictCodec

_UNAUTHORIZED = 401


class ConnectionLostError(ServingError):
    """A connection is closed, refused, or was never made."""


@dataclass
class Reply:
    """What a server replied to a request.

    Args:
        sequence: number of the request.
        leaves: of the answer; None = it failed.
        failure: why; None = it did not.
        inference_s: duration of the policy's call at the server, seconds.
    """

    sequence: int
    leaves: Leaves | None = None
    failure: Failure | None = None
    inference_s: float = 0.0


@dataclass(frozen=True)
class Link:
    """Say how a client reaches a server.

    Args:
        address: ``"ws://host:port"``, or ``"wss://host:port"`` for TLS.
        token: of the server; None = it has none.
        ca_file: certificates that a TLS server is trusted by, PEM; None = the system's.
        jpeg_quality: of images, 1..95; None = exact.
        max_message_bytes: of one message from the server.
        send_timeout_s: longest duration of sending to a network that takes nothing,
            seconds; the connection counts as lost then.

    Raises:
        SettingsError: the address has another form.

    Examples:
        >>> Link("http://robot:8000")
        Traceback (most recent call last):
        ...
        torchrl_vla.errors.SettingsError: Link: expected an address such as \
'ws://host:8000' or 'wss://host:8000', got 'http://robot:8000'. Write the server's.
    """

    address: str
    token: str | None = None
    ca_file: Path | None = None
    jpeg_quality: int | None = None
    max_message_bytes: int = 64 << 20
    send_timeout_s: float = 5.0

    def __post_init__(self) -> None:
        if not is_server_address(self.address):
            raise SettingsError(
                "Link: expected an address such as 'ws://host:8000' or "
                f"'wss://host:8000', got {self.address!r}. Write the server's."
            )

    def connect(self, path: str, timeout_s: float) -> ClientSocket:
        """Return a WebSocket.

        Raises:
            SessionRefusedError: the token is wrong.
            ConnectionLostError: there is no server.
        """
        faults = import_extra("websockets.exceptions", "serving", "RemotePolicy")
        tls = None
        if self.address.startswith("wss:"):
            tls = ssl.create_default_context(cafile=self.ca_file)
        headers = (
            {} if self.token is None else {"Authorization": f"Bearer {self.token}"}
        )
        try:
            return ClientSocket(
                self.address.rstrip("/") + path,
                timeout_s,
                headers=headers,
                tls=tls,
                max_message_bytes=self.max_message_bytes,
                send_timeout_s=self.send_timeout_s,
            )
        except faults.InvalidStatus as error:
            if error.response.status_code == _UNAUTHORIZED:
                raise SessionRefusedError(
                    f"RemotePolicy: expected the token of {self.address}, got "
                    f"{'none' if self.token is None else 'another'}. Pass token=...",
                    "token",
                ) from error
            raise self._lost(error) from error
        except (OSError, faults.WebSocketException) as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> ConnectionLostError:
        return ConnectionLostError(
            f"RemotePolicy: expected a policy server at {self.address}, got "
            f"{type(error).__name__}: {error}. Start one with `torchrl-vla serve`."
        )


def is_server_address(source: str) -> bool:
    """Return whether a text is the address of a policy server.

    Examples:
        >>> is_server_address("ws://robot:8000"), is_server_address("runs/policy")
        (True, False)
    """
    return source.startswith(("ws://", "wss://"))


class ClientConnection(ABC):
    """Carry requests to a server and its replies back (abstract)."""

    @abstractmethod
    def open(
        self, robot: RobotDatasetMetadata | None, timeout_s: float
    ) -> ServerManifest:
        """Open a session, after closing an older one.

        Args:
            robot: of the client; None = undeclared.
            timeout_s: longest duration, seconds.

        Raises:
            SessionRefusedError: names the rule.
            ConnectionLostError: there is no server.
            TimeoutError: it did not answer.
        """

    @abstractmethod
    def send(self, sequence: int, leaves: Leaves) -> None:
        """Send a request.

        Raises:
            ConnectionLostError: the connection is gone.
        """

    @abstractmethod
    def receive(self, timeout_s: float) -> Reply:
        """Return the next reply.

        Raises:
            ConnectionLostError: the connection is gone.
            TimeoutError: none came.
            WireError: something else came.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the session, if there is one."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server warned of when the session opened."""
        return ()


class SocketConnection(ClientConnection):
    """Share what connections over a WebSocket do (abstract).

    Args:
        link: to the server.
    """

    def __init__(self, link: Link) -> None:
        self.link = link
        self._faults = import_extra("websockets.exceptions", "serving", "RemotePolicy")
        self._socket: ClientSocket | None = None

    def connect(self, path: str, timeout_s: float) -> None:
        """Connect to a path of the server."""
        self.close()
        self._socket = self.link.connect(path, timeout_s)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send_data(self, data: bytes) -> None:
        """Send a message.

        Raises:
            ConnectionLostError: the connection is gone.
        """
        try:
            self._open_socket().send(data)
        except (OSError, self._faults.WebSocketException) as error:
            raise self._lost(error) from error

    def receive_data(self, timeout_s: float) -> bytes | str:
        """Return the next message.

        Raises:
            ConnectionLostError: the connection is gone.
            TimeoutError: none came.
        """
        try:
            return self._open_socket().recv(max(0.0, timeout_s))
        except TimeoutError:
            raise
        except (OSError, self._faults.WebSocketException) as error:
            raise self._lost(error) from error

    def _open_socket(self) -> ClientSocket:
        if self._socket is None:
            raise ConnectionLostError(
                "RemotePolicy: expected an open connection, got a closed one."
            )
        return self._socket

    def _lost(self, error: Exception) -> ConnectionLostError:
        self.close()
        return ConnectionLostError(
            f"RemotePolicy: expected an answer of {self.link.address}, got "
            f"{type(error).__name__}: {error}."
        )


class NativeConnection(SocketConnection):
    """Speak the library's own protocol.

    Args:
        link: to the server.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._codec = TensorDictCodec(link.jpeg_quality)
        self._warnings: tuple[str, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server warned of when the session opened."""
        return self._warnings

    def open(
        self, robot: RobotDatasetMetadata | None, timeout_s: float
    ) -> ServerManifest:
        """Open a session, after closing an older one."""
        self.connect(NATIVE_PATH, timeout_s)
        opening = Open(None if robot is None else robot.to_json())
        self.send_data(self._codec.encode(make_message(opening)))
        message = self._codec.decode(_bytes(self.receive_data(timeout_s)))
        if message.kind == "refused":
            refused = read_fields(message, Refused)
            self.close()
            raise SessionRefusedError(refused.message, refused.reason)
        welcome = read_fields(message, Welcome)
        self._warnings = welcome.warnings
        return ServerManifest.from_json(welcome.manifest)

    def send(self, sequence: int, leaves: Leaves) -> None:
        """Send a request."""
        message = make_message(Request(), sequence)
        message.leaves = leaves
        self.send_data(self._codec.encode(message))

    def receive(self, timeout_s: float) -> Reply:
        """Return the next reply."""
        message = self._codec.decode(_bytes(self.receive_data(timeout_s)))
        if message.kind == "failure":
            failure = read_fields(message, Failure)
            return Reply(message.sequence, failure=failure)
        if message.kind == "refused":
            refused = read_fields(message, Refused)
            raise SessionRefusedError(refused.message, refused.reason)
        if message.kind == "closing":
            read_fields(message, Closing)
            self.close()
            raise ConnectionLostError("RemotePolicy: the server shuts down.")
        answer = read_fields(message, Answer)
        return Reply(message.sequence, message.leaves, inference_s=answer.inference_s)


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data
