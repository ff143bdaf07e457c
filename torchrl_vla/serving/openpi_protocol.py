"""The protocol of openpi's clients, on the server's side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrl_vla.errors import SessionRefusedError, WireError
from torchrl_vla.serving.openpi_keys import OpenPIKeys
from torchrl_vla.serving.openpi_wire import OpenPICodec
from torchrl_vla.serving.server_core import ServerCore
from torchrl_vla.serving.session_table import Session

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

#: Path at which openpi's clients connect.
OPENPI_PATH = "/"
_TRY_AGAIN = 1013


async def serve_openpi(
    core: ServerCore, socket: ServerConnection, keys: OpenPIKeys
) -> None:
    """Serve one client of openpi until it is gone.

    The server speaks first: what it serves. Then each observation is answered by
    ``actions`` and ``server_timing``, or by a text that says what is wrong.

    Args:
        core: answers.
        socket: of the client.
        keys: its names.
    """
    codec = OpenPICodec()
    try:
        session = core.sessions.open("openpi", None)
    except SessionRefusedError as error:
        await socket.close(_TRY_AGAIN, error.reason)
        return
    manifest = core.policy.manifest
    metadata = {
        "policy": manifest.policy,
        "revision": manifest.revision,
        "action_horizon": manifest.chunk_size,
        "action_dim": manifest.action_dim,
        "image_keys": list(keys.images),
        "vector_keys": list(keys.vectors),
        "prompt_key": keys.prompt,
    }
    try:
        core.policy.reset()
        await socket.send(codec.encode(metadata))
        sequence = 0
        while True:
            data, sequence = await socket.recv(decode=False), sequence + 1
            await socket.send(await _answer(core, session, data, keys, sequence))
    finally:
        core.queue.discard(session.number)
        core.sessions.close(session)


async def _answer(
    core: ServerCore, session: Session, data: bytes, keys: OpenPIKeys, sequence: int
) -> bytes | str:
    codec = OpenPICodec()
    try:
        leaves = keys.to_leaves(codec.decode(data))
        outcome = await core.ask(session, leaves, sequence)
    except WireError as error:
        core.metrics.add("damaged_messages")
        return str(error)
    if outcome.failure is not None or outcome.leaves is None:
        return str(outcome.failure and outcome.failure.message)
    chunk = outcome.leaves.tensors["action_chunk",][0]
    timing = {
        "infer_ms": 1e3 * outcome.inference_s,
        "wait_ms": 1e3 * outcome.waited_s,
    }
    return codec.encode({keys.actions: chunk.numpy(), "server_timing": timing})
