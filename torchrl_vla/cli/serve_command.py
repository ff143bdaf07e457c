"""``torchrl-vla serve``: a policy behind a WebSocket."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrl_vla.cli import library
from torchrl_vla.cli.options import read_json

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Serve:
    """Serve a policy to robots and simulations, until Ctrl-C or SIGTERM.

    A token for all clients is read from the environment variable TORCHRL_VLA_TOKEN.
    """

    policy: str
    """Policy: a folder that `train` or `finetune` wrote; a LeRobot checkpoint (needs
    the extra `lerobot`), a folder or a repo id `owner/name`; or a function of your own
    as module:function, which returns a policy in robot space."""
    host: str = "127.0.0.1"
    """Address to listen at; 0.0.0.0 for all of this machine's."""
    port: int = 8000
    """Port to listen at; 0 for any free one."""
    max_sessions: int = 16
    """Clients at once; more are refused."""
    max_rows: int = 1
    """Robots that one call of the policy may serve. With more than 1, answers may
    differ in the last bits from those of a policy on the robot."""
    max_requests_per_s: float = 200.0
    """Requests of one client per second; more are refused."""
    max_message_mib: int = 64
    """Longest message, in MiB."""
    drain_s: float = 10.0
    """Longest time for the last answers after Ctrl-C or SIGTERM, in seconds."""
    certificate: Path | None = None
    """TLS certificate chain, a PEM file; clients then use wss://."""
    private_key: Path | None = None
    """Key of the certificate, a PEM file. Left out, it is in the certificate's."""
    rename_map: str = "{}"
    """For a LeRobot checkpoint: the robot's cameras to the policy's, as JSON."""
    empty_cameras: tuple[str, ...] = ()
    """For a LeRobot checkpoint: its cameras that the robot does not have."""
    device: str | None = None
    """Device of the policy, e.g. `cuda`. Left out, the CPU, or where a LeRobot policy
    was trained."""
    audit: bool = False
    """Write one line of JSON per session and request to the standard error."""

    def run(self) -> None:
        """Load the policy, serve it, and drain at the end."""
        token = os.environ.get(library.TOKEN_VARIABLE)
        options = library.ServerOptions(
            host=self.host,
            port=self.port,
            max_sessions=self.max_sessions,
            max_rows=self.max_rows,
            max_message_bytes=self.max_message_mib << 20,
            max_requests_per_s=self.max_requests_per_s,
            token=token,
            certificate=self.certificate,
            private_key=self.private_key,
            drain_s=self.drain_s,
        )
        if self.audit:
            log = logging.getLogger("torchrl_vla.serving.audit")
            log.addHandler(logging.StreamHandler())
            log.setLevel(logging.INFO)
        policy, manifest = library.load_served_policy(
            self.policy, device=self.device, **self._policy_options()
        )
        server = library.PolicyServer(policy, manifest, options=options)
        example = library.example_observation(manifest)
        if example is not None:
            server.warm_up(example)
        ended = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set())
        gc.freeze()  # what is loaded stays: no collection has to walk through it
        server.start()
        print(f"Serving {manifest.policy} ({manifest.mode}) at {server.address}")
        if token is None and self.host not in _LOOPBACK:
            print(
                "Anyone who reaches this port may ask the policy: set "
                f"{library.TOKEN_VARIABLE} to ask for a token."
            )
        print("Ctrl-C or SIGTERM ends it.", flush=True)
        ended.wait()
        server.drain()
        answers = int(server.metrics["answers"])
        print(f"Ended after {answers} answers.", flush=True)

    def _policy_options(self) -> dict[str, Any]:
        options = {
            "rename_map": read_json("--rename-map", self.rename_map),
            "empty_cameras": self.empty_cameras,
        }
        return {name: value for name, value in options.items() if value}
