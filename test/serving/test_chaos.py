"""Servers that are killed, networks that stop and clocks that disagree."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import torch
from served_policies import ARM, A, Echo, H, states, wait_until
from serving_process import end, start_process
from slow_network import SlowNetwork

from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.serving import (
    ClientOptions,
    ConnectionState,
    ConnectionTimes,
    HoldPosition,
    Link,
    PolicyServer,
    RemotePolicy,
)

#: Positions of an arm, so that holding is to repeat the state.
HELD = replace(ARM, cameras=())
QUICK = ConnectionTimes(first_retry_s=0.01, longest_retry_s=0.05)


class HoldState(HoldPosition):
    """Hold by the declaration of the client, because the echo declares nothing."""

    def check(self, manifest):
        super().check(replace(manifest, metadata=HELD))

    def chunk(self, manifest, inputs, last):
        return super().chunk(replace(manifest, metadata=HELD), inputs, last)


def client(address: str, request_timeout_s: float, **link) -> RemotePolicy:
    options = ClientOptions(
        request_timeout_s=request_timeout_s,
        max_age_s=60.0,
        fallback=HoldState(),
        times=QUICK,
    )
    return RemotePolicy(Link(address, **link), options=options)


def answer_of(value: float) -> torch.Tensor:
    """What the echo answers to a state: it rises, and so differs from holding."""
    return value + torch.arange(float(H)).unsqueeze(-1).expand(1, H, A)


def held(value: float) -> torch.Tensor:
    return torch.full((1, H, A), value)


def act(policy: RemotePolicy, value: float) -> bool:
    """Return whether the server answered; whatever acts is of this observation."""
    answers = policy.counts["answers"]
    chunk = policy(states(value))["action_chunk"]
    answered = policy.counts["answers"] > answers
    expected = answer_of(value) if answered else held(value)
    assert torch.equal(chunk, expected), (value, chunk)
    return answered


def test_a_server_killed_in_mid_episode_is_held_through_and_reconnected_to():
    process, address = start_process()
    policy = client(address, 60.0)
    try:
        assert act(policy, 1.0)
        process.kill()
        process.wait()
        assert not act(policy, 2.0)
        assert policy.state is ConnectionState.RECONNECTING
        assert not act(policy, 3.0)
        end(process)
        process, _ = start_process(int(address.rsplit(":", 1)[1]))
        values = iter(range(4, 10_000))
        wait_until(lambda: act(policy, float(next(values))))
        assert policy.state is ConnectionState.STREAMING
        assert policy.counts["reconnections"] == 1
    finally:
        policy.close()
        end(process)


def test_a_clock_that_is_an_hour_ahead_on_one_side_changes_nothing():
    process, address = start_process(shift_s=3600.0)
    policy = client(address, 60.0)
    try:
        assert all(act(policy, float(value)) for value in range(10))
        assert policy.counts == {"answers": 10}
        assert policy.state is ConnectionState.STREAMING
    finally:
        policy.close()
        end(process)


def test_an_answer_that_a_slow_network_holds_back_is_never_acted_on():
    with PolicyServer(Echo()) as server, SlowNetwork(server.address) as network:
        policy = client(network.address, 0.5)
        wait_until(lambda: act(policy, 1.0))
        before = policy.counts["fallbacks"]
        network.downstream.clear()
        assert not act(policy, 2.0)  # its answer waits in the network
        assert not act(policy, 3.0)  # no second request is under way
        assert policy.counts["fallbacks"] == before + 2
        asked = server.metrics["requests"]
        network.downstream.set()
        values = iter(range(4, 10_000))
        wait_until(lambda: act(policy, float(next(values))))
        assert policy.counts["late"] >= 1
        assert server.metrics["requests"] > asked
        policy.close()


def test_a_network_that_takes_nothing_does_not_hold_up_the_client_for_ever():
    with PolicyServer(Echo()) as server, SlowNetwork(server.address) as network:
        policy = client(network.address, 0.5, send_timeout_s=0.2)
        wait_until(lambda: act(policy, 1.0))
        network.upstream.clear()
        seen = states(2.0)
        wide = torch.full((1, 5_000_000), 2.0)  # more than the sockets' buffers
        seen["observation", "state"] = wide
        chunk = policy(seen)["action_chunk"]
        assert torch.equal(chunk, held(2.0))
        assert policy.state is ConnectionState.RECONNECTING
        network.upstream.set()
        values = iter(range(3, 10_000))
        wait_until(lambda: act(policy, float(next(values))))
        policy.close()


def test_a_robot_goes_on_through_a_killed_server():
    """An episode of an executor: every action is the answer's or holds."""
    process, address = start_process()
    policy = client(address, 60.0)
    executor = MultiStepActorWrapper(policy, replan_interval=2)
    try:
        for step in range(8):
            if step == 3:
                process.kill()
                process.wait()
            seen = states(10.0 * step)
            seen["is_init"] = torch.full((1, 1), step == 0)
            action = float(executor(seen)["action"][0, 0])
            planned, position = 10.0 * (step - step % 2), step % 2
            expected = planned + position if step < 4 else planned
            assert action == expected
    finally:
        policy.close()
        end(process)


PROGRAM = """
import sys

for name in ("lerobot", "transformers", "peft", "tokenizers", "safetensors"):
    sys.modules[name] = None  # as if it were not installed
import torch
from tensordict import TensorDict
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.serving import RemotePolicy

policy = RemotePolicy(sys.argv[1])
executor = MultiStepActorWrapper(policy)
for step in range(5):
    seen = TensorDict({"observation": {"state": torch.full((1, 3), 2.0)}}, [1])
    seen["is_init"] = torch.full((1, 1), step == 0)
    print(executor(seen)["action"][0, 0].item())
policy.close()
assert not list(policy.parameters())
assert sys.modules["transformers"] is sys.modules["lerobot"] is None
"""


def test_a_client_needs_neither_lerobot_nor_transformers():
    with PolicyServer(Echo()) as server:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, server.address],
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2.0", "3.0", "4.0", "5.0", "2.0"]
