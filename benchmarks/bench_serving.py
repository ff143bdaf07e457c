"""Round trip of an observation to a policy server, without the policy.

Two 224-pixel images and a state go to a server of this machine whose policy returns
constants. The clients: RemotePolicy; openpi's own client at the same server; openpi's
own client at a server written with openpi's codec alone; and, as the floor, the same
number of bytes copied once and sent through a socket. Each server is a process. They
take turns within one run, and first prove that they get the same chunk.

    OMP_NUM_THREADS=1 python benchmarks/bench_serving.py
"""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from contest import check_equal, print_head, print_rows, read_quick, time_in_turns
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from websockets.sync.server import serve

from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.serving import PolicyServer, RemotePolicy, ServerOptions

H, A, S, SIDE = 16, 7, 8, 224
ARM = RobotDatasetMetadata("arm", action_dim=A, state_dim=S, cameras=("front", "wrist"))
CHUNK = torch.arange(float(H * A)).view(1, H, A)


class Constant(TensorDictModuleBase):
    """Answer at once, so that what is measured is the way there and back."""

    in_keys = [("observation", "image"), ("observation", "state")]
    out_keys = ["action_chunk"]
    chunk_size, action_dim = H, A
    training_metadata = ARM

    def forward(self, tensordict: TensorDict) -> TensorDict:
        """Write the chunk."""
        return tensordict.set("action_chunk", CHUNK)


def observation() -> TensorDict:
    generator = torch.Generator().manual_seed(0)
    size = (1, 3, SIDE, SIDE)
    image = {
        name: torch.randint(256, size, generator=generator, dtype=torch.uint8)
        for name in ARM.cameras
    }
    state = torch.randn(1, S, generator=generator)
    return TensorDict({"observation": {"image": image, "state": state}}, [1])


def as_openpi(seen: TensorDict) -> dict[str, np.ndarray]:
    image = seen["observation", "image"]
    values = {
        f"observation/{name}": np.ascontiguousarray(
            image[name][0].permute(1, 2, 0).numpy()
        )
        for name in ARM.cameras
    }
    return {**values, "observation/state": seen["observation", "state"][0].numpy()}


def openpi_handler(websocket) -> None:
    """Serve as openpi's server does: unpack, answer, pack."""
    packer = msgpack_numpy.Packer()
    websocket.send(packer.pack({}))
    for data in websocket:
        msgpack_numpy.unpackb(data)
        websocket.send(packer.pack({"actions": CHUNK[0].numpy()}))


def serve_floor() -> None:
    """Answer every observation's worth of bytes."""
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    answer = CHUNK.numpy().tobytes()
    view = memoryview(bytearray(sum(map(len, parts_of(observation())))))
    while read_all(connection, view):
        connection.sendall(answer)


def serve_openpi() -> None:
    """Serve as openpi's server does, with its codec."""
    server = serve(openpi_handler, "127.0.0.1", 0, compression=None, max_size=None)
    print(server.socket.getsockname()[1], flush=True)
    server.serve_forever()


def serve_ours() -> None:
    """Serve as `torchrl-vla serve` does."""
    server = PolicyServer(Constant(), options=ServerOptions(max_requests_per_s=1e9))
    gc.freeze()
    print(server.start().address.rsplit(":", 1)[1], flush=True)
    threading.Event().wait()


SERVERS = {"floor": serve_floor, "openpi": serve_openpi, "ours": serve_ours}


@contextmanager
def started(name: str) -> Iterator[int]:
    """Run a server in a process of its own; give its port."""
    command = [sys.executable, __file__, "--serve", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def parts_of(seen: TensorDict) -> list[bytes]:
    return [leaf.numpy().tobytes() for leaf in seen.values(True, True)]


def read_all(connection: socket.socket, view: memoryview) -> bool:
    got = 0
    while got < len(view):
        count = connection.recv_into(view[got:])
        if count == 0:
            return False
        got += count
    return True


class Floor:
    """Copy the observation's bytes once, and send them through a socket."""

    def __init__(self, seen: TensorDict, port: int) -> None:
        self.parts = parts_of(seen)
        self.connection = socket.create_connection(("127.0.0.1", port))
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        self.answer = bytearray(H * A * 4)

    def __call__(self) -> np.ndarray:
        """Return the chunk."""
        self.connection.sendall(b"".join(self.parts))
        read_all(self.connection, memoryview(self.answer))
        return np.frombuffer(self.answer, np.float32).reshape(H, A)


def percentile(times: list[float], share: float) -> float:
    return sorted(times)[min(len(times) - 1, int(share * len(times)))]


def main() -> None:
    quick = read_quick(__doc__)
    torch.set_num_threads(1)
    seen = observation()
    sent = as_openpi(seen)
    with ExitStack() as ends:
        ports = {name: ends.enter_context(started(name)) for name in SERVERS}
        clients = make_clients(ports, ends)
        print_contest(clients, seen, sent, quick)


def make_clients(ports: dict[str, int], ends: ExitStack) -> dict[str, Any]:
    """Return the clients by name, which are closed at the end."""
    remote = RemotePolicy(f"ws://127.0.0.1:{ports['ours']}", robot=ARM)
    ends.callback(remote.close)
    clients = {"RemotePolicy": remote}
    for name in ("ours", "openpi"):
        client = WebsocketClientPolicy("127.0.0.1", ports[name])
        ends.callback(client._ws.close)
        clients[f"openpi, {name}"] = client
    floor = Floor(observation(), ports["floor"])
    ends.callback(floor.connection.close)
    return {"memcpy + socket": floor, **clients}


def print_contest(
    clients: dict[str, Any], seen: TensorDict, sent: dict, quick: bool
) -> None:
    floor, remote = clients["memcpy + socket"], clients["RemotePolicy"]
    ours, theirs = clients["openpi, ours"], clients["openpi, openpi"]
    contestants = {
        "memcpy + socket": floor,
        "RemotePolicy": lambda: remote(seen.copy())["action_chunk"][0].numpy(),
        "openpi, ours": lambda: ours.infer(sent)["actions"],
        "openpi, openpi": lambda: theirs.infer(sent)["actions"],
    }
    answers = {n: torch.from_numpy(np.array(ask())) for n, ask in contestants.items()}
    check_equal("chunk", answers)
    times = time_in_turns(contestants, 5 if quick else 2000)
    tails = {
        name: tuple(f"{percentile(spent, share):.3f}" for share in (0.9, 0.99))
        for name, spent in times.items()
    }
    print(f"Round trips of {sum(map(len, floor.parts)) / 1e3:.0f} kB, 1 thread.")
    print_head("memcpy + socket", "p90", "p99")
    print_rows("client, server", times, "memcpy + socket", tails)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        SERVERS[sys.argv[2]]()
    else:
        main()
