"""Policies and observations for the tests of the policy server."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import torch
from tensordict import NonTensorStack, TensorDict
from tensordict.nn import TensorDictModuleBase
from tiny_options import make_tiny

from torchrl_vla.policies import TinyFlowVLA, TinyVLA, VLAWrapperBase
from torchrl_vla.schema import RobotDatasetMetadata

H, A, S, SIDE = 4, 2, 3, 16
TEXTS = ("pick up the cube", "open the drawer")
ARM = RobotDatasetMetadata(
    "arm",
    embodiment_id="two_joints",
    action_names=("x", "y"),
    action_units="m",
    action_reference="absolute",
    state_names=("x", "y", "grip"),
    state_units=("m", "m", "rad"),
    control_frequency_hz=10.0,
    cameras=("front", "wrist"),
)


class Echo(TensorDictModuleBase):
    """Return the state's first two numbers, ``H`` times, raised by the step.

    A row's answer tells whose it is. ``gate`` holds a call back until it is set.
    """

    in_keys = [("observation", "state")]
    out_keys = ["action_chunk"]
    optional_in_keys: list = []
    chunk_size, action_dim = H, A

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Event()
        self.gate.set()

    def forward(self, tensordict):
        self.rows.append(tensordict.batch_size.numel())
        self.entered.release()
        assert self.gate.wait(60)
        state = tensordict["observation", "state"][..., :A].unsqueeze(-2)
        chunk = state + torch.arange(float(H)).unsqueeze(-1)
        return tensordict.set("action_chunk", chunk)


class Counting(Echo):
    """Add the number of the call, so a call depends on those before it."""

    keeps_state = True

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def reset(self) -> None:
        self.calls = 0

    def forward(self, tensordict):
        self.calls += 1
        written = super().forward(tensordict)
        return written.set("action_chunk", written["action_chunk"] + self.calls)


def states(values, rows: int = 1) -> TensorDict:
    """Return ``[rows]`` observations whose states are all one number."""
    state = torch.full((rows, S), float(values))
    return TensorDict({"observation": {"state": state}}, [rows])


def tiny(cls: type = TinyVLA, **options) -> VLAWrapperBase:
    torch.manual_seed(0)
    sizes = {"action_dim": A, "chunk_size": H, "state_dim": S, "hidden": 16}
    policy = make_tiny(cls, **sizes, cameras=("front", "wrist"), **options)
    policy.training_metadata = ARM
    return policy.eval()


def tiny_flow() -> VLAWrapperBase:
    return tiny(TinyFlowVLA)


def observation(seed: int, rows: int = 1) -> TensorDict:
    """Return images, state, a text and a noise seed, ``[rows]``, from a number."""
    generator = torch.Generator().manual_seed(seed)
    image = {
        name: torch.randint(
            256, (rows, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8
        )
        for name in ARM.cameras
    }
    state = torch.randn(rows, S, generator=generator)
    return TensorDict(
        {
            "observation": {"image": image, "state": state},
            "language_instruction": NonTensorStack(
                *[TEXTS[(seed + row) % 2] for row in range(rows)]
            ),
            "noise_seed": torch.arange(rows) + seed,
        },
        [rows],
    )


def http_get(address: str, path: str, token: str | None = None) -> tuple[int, str]:
    """Return status and text of a plain HTTP request to a server."""
    url = address.replace("ws", "http", 1) + path
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    request = urllib.request.Request(url, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def wait_until(happened: Callable[[], bool]) -> None:
    """Wait for what another thread or process does; a minute is for ever."""
    for _ in range(6000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen within a minute")


def health(address: str) -> dict:
    return json.loads(http_get(address, "/health")[1])
