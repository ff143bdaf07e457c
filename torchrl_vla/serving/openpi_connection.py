"""Connection of a client to a server of openpi."""

from __future__ import annotations

from collections import deque

import torch

from torchrl_vla.errors import ServingError, WireError
from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.serving.client_connection import Link, Reply, SocketConnection
from torchrl_vla.serving.message_fields import Failure
from torchrl_vla.serving.observation_leaves import Leaves
from torchrl_vla.serving.openpi_keys import OpenPIKeys
from torchrl_vla.serving.openpi_protocol import OPENPI_PATH
from torchrl_vla.serving.openpi_wire import OpenPICodec
from torchrl_vla.serving.server_manifest import ServerManifest


class OpenPIConnection(SocketConnection):
    """Speak openpi's protocol, so that :class:`RemotePolicy` has one of its policies.

    openpi does not say what its server reads and writes, so that is declared here.
    Its protocol has no numbers of requests: replies come in the order of the requests.
    One request is one row, so ``B`` rows take ``B`` requests.

    Args:
        link: to the server.
        manifest: keys, sizes and robot of its policy.
        keys: its names; None = :meth:`OpenPIKeys.of` the manifest.
    """

    def __init__(
        self, link: Link, manifest: ServerManifest, keys: OpenPIKeys | None = None
    ) -> None:
        super().__init__(link)
        self.manifest = manifest
        self.keys = keys or OpenPIKeys.of(manifest)
        self.server_metadata: dict[str, object] = {}
        self._codec = OpenPICodec()
        self._waiting: deque[tuple[int, tuple[int, ...]]] = deque()
        self._rows: list[torch.Tensor] = []

    def open(
        self, robot: RobotDatasetMetadata | None, timeout_s: float
    ) -> ServerManifest:
        """Connect, and read what the server says of itself; openpi checks no robot."""
        self.connect(OPENPI_PATH, timeout_s)
        self._waiting.clear()
        self._rows = []
        self.server_metadata = self._codec.decode(self._read(timeout_s))
        return self.manifest

    def send(self, sequence: int, leaves: Leaves) -> None:
        """Send one request for each row."""
        flat = leaves.flattened()
        messages = [
            self._codec.encode(self.keys.to_values(flat, row))
            for row in range(flat.rows)
        ]
        self._waiting.append((sequence, leaves.batch_size))
        for message in messages:
            self.send_data(message)

    def receive(self, timeout_s: float) -> Reply:
        """Return the next reply, once all of its rows are there."""
        if not self._waiting:
            raise TimeoutError
        sequence, batch_size = self._waiting[0]
        rows = torch.Size(batch_size).numel()
        shape = (self.manifest.chunk_size, self.manifest.action_dim)
        while len(self._rows) < rows:
            try:
                values = self._codec.decode(self._read(timeout_s))
            except ServingError as error:
                if self._socket is None:
                    raise
                # openpi's server closes the connection after an error.
                self.close()
                return Reply(sequence, failure=Failure("policy", str(error)))
            self._rows.append(self.keys.to_chunk(values, shape))
        chunk = torch.stack(self._rows).reshape(*batch_size, *shape)
        self._rows = []
        self._waiting.popleft()
        return Reply(sequence, Leaves(batch_size, {("action_chunk",): chunk}))

    def _read(self, timeout_s: float) -> bytes:
        match self.receive_data(timeout_s):
            case str(text):
                raise WireError(
                    f"RemotePolicy: expected an answer of openpi, got an error: {text}"
                )
            case data:
                return data
