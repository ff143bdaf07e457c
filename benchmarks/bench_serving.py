"""Round trip of an observation to a policy server, without the policy.

Two 224-pixel images and a state go to a server of this machine whose policy returns
constants. The clients: RemotePolicy; openpi's own client at the same server; openpi's
own client at a server written with openpi's codec alone; and, as the floor, the same
number of bytes copied once and sent through a socket. Each server is a process. They
take turns within one run, and first prove that they get the same chunk.

    python benchmarks/bench_serving.py [--rounds 400] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
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
    print(server.start().address.rsplit(":", 1)[1], flush=True)
    threading.Event().wait()


SERVERS = {"floor": serve_floor, "openpi": serve_openpi, "ours": serve_ours}


def start(name: str) -> tuple[subprocess.Popen, int]:
    """Return a server's process and port."""
    command = [sys.executable, __file__, "--serve", name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", choices=tuple(SERVERS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.serve is not None:
        SERVERS[options.serve]()
        return
    seen = observation()
    sent = as_openpi(seen)
    started = {name: start(name) for name in SERVERS}
    ports = {name: port for name, (_, port) in started.items()}
    remote = RemotePolicy(f"ws://127.0.0.1:{ports['ours']}", robot=ARM)
    openpi_here = WebsocketClientPolicy("127.0.0.1", ports["ours"])
    openpi_there = WebsocketClientPolicy("127.0.0.1", ports["openpi"])
    floor = Floor(seen, ports["floor"])
    contestants = {
        "memcpy + socket": floor,
        "RemotePolicy": lambda: remote(seen.copy())["action_chunk"][0].numpy(),
        "openpi's client, our server": lambda: openpi_here.infer(sent)["actions"],
        "openpi's client, openpi's codec": lambda: openpi_there.infer(sent)["actions"],
    }
    for name, ask in contestants.items():
        assert np.array_equal(ask(), CHUNK[0].numpy()), name
        for _ in range(20):
            ask()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(options.rounds):
        for name, ask in contestants.items():
            begin = time.perf_counter()
            ask()
            times[name].append(1e3 * (time.perf_counter() - begin))
    size = sum(map(len, floor.parts)) / 1e3
    print(f"{options.rounds} round trips of {size:.0f} kB, milliseconds")
    print(f"{'':34}{'median':>8}{'p90':>8}{'p99':>8}{'ratio of medians':>20}")
    base = statistics.median(times["memcpy + socket"])
    rows = {}
    for name, values in times.items():
        median = statistics.median(values)
        rows[name] = {
            "median_ms": median,
            "p90_ms": percentile(values, 0.9),
            "p99_ms": percentile(values, 0.99),
            "ratio": median / base,
        }
        cells = "".join(f"{rows[name][key]:8.3f}" for key in list(rows[name])[:3])
        print(f"{name:34}{cells}{median / base:20.2f}")
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2))
    remote.close()
    for process, _ in started.values():
        process.kill()


if __name__ == "__main__":
    main()
