"""A client's WebSocket without a thread of its own."""

from __future__ import annotations

import socket
import ssl
import time

from torchrl_vla._internal.extras import import_extra

_CHUNK = 1 << 16
_NORMAL = 1000


class ClientSocket:
    """Send and receive messages in the caller's thread, each within a time.

    A background reader would wake a second thread for every answer; a client with one
    request under way needs none. Pings are answered when it reads.

    Args:
        address: with the path, ``"ws://host:port/path"``.
        timeout_s: of connecting, seconds.

    Keyword Args:
        headers: of the opening request.
        tls: for ``wss://``; None = no TLS.
        max_message_bytes: of a message that it reads.
        send_timeout_s: of sending a message, seconds.

    Raises:
        OSError: there is no server, or it takes too long.
        WebSocketException: of ``websockets``; it does not speak WebSocket, or refuses.
    """

    def __init__(
        self,
        address: str,
        timeout_s: float,
        *,
        headers: dict[str, str],
        tls: ssl.SSLContext | None,
        max_message_bytes: int,
        send_timeout_s: float,
    ) -> None:
        client = import_extra("websockets.client", "serving", "RemotePolicy")
        frames = import_extra("websockets.frames", "serving", "RemotePolicy")
        uris = import_extra("websockets.uri", "serving", "RemotePolicy")
        uri = uris.parse_uri(address)
        self._text, self._data = frames.Opcode.TEXT, frames.DATA_OPCODES
        self._send_timeout_s = send_timeout_s
        self._parts: list[bytes] = []
        self._protocol = client.ClientProtocol(uri, max_size=max_message_bytes)
        self._events: list = []
        self._socket = socket.create_connection((uri.host, uri.port), timeout_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
            if tls is not None:
                named = uri.host
                self._socket = tls.wrap_socket(self._socket, server_hostname=named)
            self._shake_hands(headers, time.monotonic() + timeout_s)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self, headers: dict[str, str], end: float) -> None:
        request = self._protocol.connect()
        request.headers.update(headers)
        self._protocol.send_request(request)
        self._flush()
        while not self._events and self._protocol.handshake_exc is None:
            self._read(end)
        if self._protocol.handshake_exc is not None:
            raise self._protocol.handshake_exc
        self._events.pop(0)  # the response

    def send(self, data: bytes) -> None:
        """Send a message.

        Raises:
            OSError: the connection is gone, or takes nothing for too long.
            WebSocketException: it is closed.
        """
        if not self._is("OPEN"):
            raise self._closed()
        self._protocol.send_binary(data)
        self._flush()

    def recv(self, timeout_s: float) -> bytes | str:
        """Return the next message.

        Raises:
            TimeoutError: none came.
            OSError: the connection is gone.
            WebSocketException: it is closed.
        """
        end = time.monotonic() + timeout_s
        while True:
            while self._events:
                frame = self._events.pop(0)
                if frame.opcode not in self._data:
                    continue
                if not self._parts:
                    self._is_text = frame.opcode is self._text
                self._parts.append(bytes(frame.data))
                if frame.fin:
                    message, self._parts = b"".join(self._parts), []
                    return message.decode() if self._is_text else message
            if not self._is("OPEN"):
                raise self._closed()
            self._read(end)

    def close(self) -> None:
        """Say good-bye, and close; does not wait for the server."""
        try:
            if self._is("OPEN"):
                self._protocol.send_close(_NORMAL)
                self._flush()
        except OSError:
            pass  # it is gone already
        finally:
            self._socket.close()

    def _read(self, end: float) -> None:
        """Read what is there; wait for it until an instant."""
        left = end - time.monotonic()
        if left <= 0:
            left = 1e-6  # what has arrived is read all the same
        self._socket.settimeout(left)
        data = self._socket.recv(_CHUNK)
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
        self._events += self._protocol.events_received()
        self._flush()
        if not data and not self._events and self._protocol.handshake_exc is None:
            raise self._closed()

    def _flush(self) -> None:
        self._socket.settimeout(self._send_timeout_s)
        for data in self._protocol.data_to_send():
            if data:
                self._socket.sendall(data)

    def _closed(self) -> Exception:
        """Return why nothing can be sent or read any more."""
        if self._is("CLOSED"):
            return self._protocol.close_exc
        why = self._protocol.close_rcvd
        return ConnectionResetError(f"closed by the server: {why or 'no reason'}")

    def _is(self, state: str) -> bool:
        return self._protocol.state.name == state
