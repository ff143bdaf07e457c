"""The library's own protocol, on the server's side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from torchrl_vla.errors import MetadataError, SessionRefusedError, WireError
from torchrl_vla.schema import RobotDatasetMetadata
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
from torchrl_vla.serving.server_core import ServerCore
from torchrl_vla.serving.session_table import Session
from torchrl_vla.serving.wire_format import Message, TensorDictCodec

if TYPE_CHECKING:
    from websockets.asyncio.server import ServerConnection

#: Path of the protocol at a server.
NATIVE_PATH = "/torchrl_vla"
_VIOLATION, _TRY_AGAIN = 1002, 1013


async def serve_native(core: ServerCore, socket: ServerConnection) -> None:
    """Serve one client until it is gone.

    Args:
        core: answers.
        socket: of the client.
    """
    codec = TensorDictCodec()
    try:
        opening = read_fields(codec.decode(await socket.recv(decode=False)), Open)
        session = core.sessions.open("native", _robot(opening))
    except (WireError, SessionRefusedError) as error:
        await _refuse(core, socket, codec, error)
        return
    try:
        core.policy.reset()
        manifest = core.policy.manifest.to_json()
        welcome = Welcome(session.number, manifest, tuple(session.warnings))
        await socket.send(codec.encode(make_message(welcome)))
        await _answer_requests(core, socket, session, codec)
    except WireError as error:
        await _refuse(core, socket, codec, error)
    finally:
        core.queue.discard(session.number)
        core.sessions.close(session)


async def say_closing(socket: ServerConnection) -> None:
    """Tell a client that the server shuts down."""
    await socket.send(TensorDictCodec().encode(make_message(Closing())))


async def _answer_requests(
    core: ServerCore, socket: ServerConnection, session: Session, codec: TensorDictCodec
) -> None:
    pending: set[asyncio.Task[None]] = set()
    try:
        async for data in socket:
            message = codec.decode(_bytes(data))
            read_fields(message, Request)
            if message.leaves is None:
                raise WireError("PolicyServer: expected an observation, got none.")
            # Reading goes on: a newer request takes over the place of a waiting one.
            task = asyncio.create_task(_answer(core, socket, session, codec, message))
            pending.add(task)
            task.add_done_callback(pending.discard)
    finally:
        for task in pending:
            task.cancel()


async def _answer(
    core: ServerCore,
    socket: ServerConnection,
    session: Session,
    codec: TensorDictCodec,
    message: Message,
) -> None:
    assert message.leaves is not None
    try:
        outcome = await core.ask(session, message.leaves, message.sequence)
        reply = outcome.failure or Answer(
            outcome.waited_s, outcome.inference_s, outcome.rows
        )
        answer = make_message(reply, message.sequence)
        answer.leaves = outcome.leaves
    except WireError as error:
        answer = make_message(Failure("policy", str(error)), message.sequence)
    await socket.send(codec.encode(answer))


def _robot(opening: Open) -> RobotDatasetMetadata | None:
    if opening.robot is None:
        return None
    try:
        return RobotDatasetMetadata.from_json(opening.robot)
    except MetadataError as error:
        raise WireError(f"PolicyServer: expected metadata, got {error}") from error


def _bytes(data: str | bytes) -> bytes:
    match data:
        case bytes():
            return data
    raise WireError("PolicyServer: expected bytes, got text. Send binary messages.")


async def _refuse(
    core: ServerCore,
    socket: ServerConnection,
    codec: TensorDictCodec,
    error: WireError | SessionRefusedError,
) -> None:
    match error:
        case SessionRefusedError():
            refused, code = Refused(error.reason, str(error)), _TRY_AGAIN
        case _:
            core.metrics.add("damaged_messages")
            refused, code = Refused("schema", str(error)), _VIOLATION
    await socket.send(codec.encode(make_message(refused)))
    await socket.close(code, refused.reason)
