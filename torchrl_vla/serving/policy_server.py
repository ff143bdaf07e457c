"""Server of one policy for many robots."""

from __future__ import annotations

import asyncio
import hmac
import json
import threading
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from typing_extensions import Self

from torchrl_vla._internal.extras import import_extra
from torchrl_vla.errors import ServingError
from torchrl_vla.serving.native_protocol import NATIVE_PATH, say_closing, serve_native
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.openpi_keys import OpenPIKeys
from torchrl_vla.serving.openpi_protocol import OPENPI_PATH, serve_openpi
from torchrl_vla.serving.served_policy import ServedPolicy
from torchrl_vla.serving.server_core import ServerCore
from torchrl_vla.serving.server_manifest import ServerManifest
from torchrl_vla.serving.server_options import ServerOptions
from torchrl_vla.serving.serving_metrics import ServingMetrics
from torchrl_vla.serving.serving_mode import describe_policy

if TYPE_CHECKING:
    from websockets.asyncio.server import Request, Response, ServerConnection

_GOING_AWAY = 1001
_DEFAULTS = ServerOptions()


class PolicyServer:
    """Serve a policy to robots over WebSocket, without pickle.

    Clients are :class:`RemotePolicy`, and those of openpi. Each has a session, which
    is validated when it opens. One thread calls the policy, for the sessions in turn
    and with the newest observation of each. ``/health`` and ``/metrics`` of the same
    port answer over HTTP; every request is one line of JSON of the logger
    ``torchrl_vla.serving.audit``.

    Args:
        policy: of robot space, with all its processing; stateless, or
            ``keeps_state = True``.
        manifest: what it is; None = :func:`describe_policy` of it.

    Keyword Args:
        options: of the server.
        openpi_keys: names of openpi's clients for what the policy reads; None =
            :meth:`OpenPIKeys.of` the manifest.

    Raises:
        MissingExtraError: the extra ``serving`` is not installed.
        ServingError: the policy writes no chunk.
        SpaceError: the policy is of model space.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.serving import RemotePolicy
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-2).repeat(1, 2, 1), ["state"], ["action_chunk"]
        ... )
        >>> policy.chunk_size, policy.action_dim = 2, 1
        >>> with PolicyServer(policy) as server:
        ...     remote = RemotePolicy(server.address)
        ...     seen = TensorDict({"state": torch.tensor([[3.0]])}, [1])
        ...     remote(seen)["action_chunk"].tolist()
        ...     remote.close()
        [[[3.0], [3.0]]]
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        manifest: ServerManifest | None = None,
        *,
        options: ServerOptions = _DEFAULTS,
        openpi_keys: OpenPIKeys | None = None,
    ) -> None:
        self._websockets = import_extra(
            "websockets.asyncio.server", "serving", "PolicyServer"
        )
        import_extra("msgpack", "serving", "PolicyServer")
        self.manifest = describe_policy(policy) if manifest is None else manifest
        self.options = options
        self.openpi_keys = openpi_keys or OpenPIKeys.of(self.manifest)
        self._core = ServerCore(ServedPolicy(policy, self.manifest), options)
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: asyncio.Event | None = None
        self._started = threading.Event()
        self._problem: BaseException | None = None
        self._port = 0

    @property
    def address(self) -> str:
        """Where it listens, e.g. ``"ws://127.0.0.1:8000"``."""
        scheme = "ws" if self.options.certificate is None else "wss"
        host = self.options.host
        host = f"[{host}]" if ":" in host else host
        return f"{scheme}://{host}:{self._port}"

    @property
    def metrics(self) -> ServingMetrics:
        """Counters of what it has done."""
        return self._core.metrics

    def warm_up(self, tensordict: TensorDictBase) -> None:
        """Call the policy once, before the first client waits for it.

        Args:
            tensordict: an observation, ``[*B]``.

        Raises:
            ServingError: the policy refuses it.
        """
        known = (*self.manifest.in_keys, *self.manifest.optional_in_keys)
        answer = self._core.policy.answer([Leaves.from_tensordict(tensordict, known)])
        match answer[0]:
            case Leaves():
                return
        raise ServingError(answer[0].message)

    def start(self) -> Self:
        """Listen, and return at once; :attr:`address` is known then.

        Raises:
            OSError: the port is taken.
            SettingsError: the certificate is damaged.
        """
        tls = self.options.tls_context()
        run = partial(asyncio.run, self._run(tls))
        self._thread = threading.Thread(target=run, name="server", daemon=True)
        self._thread.start()
        self._started.wait()
        if self._problem is not None:
            self._thread.join()
            raise self._problem
        return self

    def drain(self) -> None:
        """Refuse new sessions, answer what was asked, close every connection, end.

        It takes at most ``options.drain_s`` and the present call of the policy. May be
        called from a signal handler's thread, and twice.
        """
        if self._thread is None or self._loop is None or self._ended is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.drain()

    async def _run(self, tls) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await self._websockets.serve(
                self._serve,
                self.options.host,
                self.options.port,
                process_request=self._process_request,
                max_size=self.options.max_message_bytes,
                compression=None,  # images and floats do not shrink
                ping_timeout=None,  # a client answers when it reads
                ssl=tls,
            )
        except OSError as error:
            self._problem = error
            self._started.set()
            return
        self._port = server.sockets[0].getsockname()[1]
        self._core.start()
        self._started.set()
        await self._ended.wait()
        await self._core.drain()
        faults = import_extra("websockets.exceptions", "serving", "PolicyServer")
        for socket in list(server.connections):
            if _path(socket) == NATIVE_PATH:
                # A client that is gone, or reads nothing, holds up nobody.
                with suppress(faults.ConnectionClosed, asyncio.TimeoutError):
                    await asyncio.wait_for(say_closing(socket), 1.0)
        server.close(code=_GOING_AWAY, reason="the server shuts down")
        await server.wait_closed()
        self._core.stop()

    async def _serve(self, socket: ServerConnection) -> None:
        faults = import_extra("websockets.exceptions", "serving", "PolicyServer")
        try:
            if _path(socket) == NATIVE_PATH:
                await serve_native(self._core, socket)
            else:
                await serve_openpi(self._core, socket, self.openpi_keys)
        except faults.ConnectionClosed:  # the client is gone, or the server shuts down
            return

    def _process_request(
        self, socket: ServerConnection, request: Request
    ) -> Response | None:
        """Answer what is plain HTTP; None = go on with WebSocket."""
        if request.path == "/health":
            status = "draining" if self._core.sessions.is_draining else "ok"
            load = self._core.gauges()
            body = {"status": status, "policy": self.manifest.policy, **load}
            return socket.respond(HTTPStatus.OK, json.dumps(body) + "\n")
        if not self._has_token(request.headers.get("Authorization", "")):
            refusal = (
                "PolicyServer: expected the server's token, got another or none.\n"
            )
            return socket.respond(HTTPStatus.UNAUTHORIZED, refusal)
        if request.path == "/metrics":
            text = self._core.metrics.prometheus_text(self._core.gauges())
            return socket.respond(HTTPStatus.OK, text)
        if request.path not in (NATIVE_PATH, OPENPI_PATH):
            known = [NATIVE_PATH, OPENPI_PATH, "/health", "/metrics"]
            text = f"PolicyServer: expected one of {known}, got {request.path!r}.\n"
            return socket.respond(HTTPStatus.NOT_FOUND, text)
        return None

    def _has_token(self, header: str) -> bool:
        """Return whether a header holds the token, as Bearer or as openpi's Api-Key."""
        if self.options.token is None:
            return True
        _, _, given = header.partition(" ")
        return hmac.compare_digest(given.encode(), self.options.token.encode())


def _path(socket: ServerConnection) -> str:
    return "" if socket.request is None else socket.request.path
