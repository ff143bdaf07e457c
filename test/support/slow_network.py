"""A network between a client and a server that a test can stop in either direction."""

from __future__ import annotations

import socket
import threading


class SlowNetwork:
    """Pass bytes on to a server; ``upstream`` and ``downstream`` are set while it does.

    Args:
        address: of the server, ``ws://host:port``.
    """

    def __init__(self, address: str) -> None:
        host, port = address.removeprefix("ws://").rsplit(":", 1)
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"ws://127.0.0.1:{self._listener.getsockname()[1]}"
        self.upstream, self.downstream = threading.Event(), threading.Event()
        self.upstream.set()
        self.downstream.set()
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._sockets += [client, server]
            for source, target, flows in (
                (client, server, self.upstream),
                (server, client, self.downstream),
            ):
                threading.Thread(
                    target=self._pump, args=(source, target, flows), daemon=True
                ).start()

    def _pump(self, source, target, flows: threading.Event) -> None:
        try:
            while data := source.recv(65536):
                flows.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def __enter__(self) -> SlowNetwork:
        return self

    def __exit__(self, *error: object) -> None:
        self.upstream.set()
        self.downstream.set()
        self._listener.close()
        for end in self._sockets:
            end.close()
