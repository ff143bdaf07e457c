"""LeRobot's policies behind a server, against the same policies called here."""

from __future__ import annotations

import random

import pytest
import torch
from lerobot_checkpoints import RECIPES, observe

from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.recipes.served_policies import load_served_policy

pytest.importorskip("websockets", reason="the extra serving is not in this lane")
pytest.importorskip("msgpack", reason="the extra serving is not in this lane")

from torchrl_vla.serving import (
    ClientOptions,
    PolicyServer,
    RemotePolicy,
    ServerOptions,
    describe_policy,
)

pytestmark = pytest.mark.lerobot

STEPS, SESSIONS = 50, 8
PATIENT = ClientOptions(request_timeout_s=300.0, max_age_s=None)


def views_of(made, steps: int = STEPS) -> list:
    observations = observe(made, steps, 1)
    for step, td in enumerate(observations):
        td["noise_seed"] = torch.tensor([step])
    return observations


@pytest.mark.parametrize("name", ["act", "smolvla"])
def test_eight_interleaved_sessions_of_fifty_steps_have_the_bits_of_a_local_policy(
    name, checkpoint
):
    made = checkpoint(name)
    served, manifest = load_served_policy(str(made.folder))
    local = LeRobotPolicyWrapper.from_pretrained(made.folder)
    views, expected = views_of(made), []
    for td in views:
        with torch.no_grad():
            expected.append(local(td.copy())["action_chunk"])
    assert len({float(chunk.sum()) for chunk in expected}) == STEPS
    turns = [session for session in range(SESSIONS) for _ in range(STEPS)]
    random.Random(0).shuffle(turns)
    steps = [0] * SESSIONS
    with PolicyServer(served, manifest) as server:
        assert manifest.mode == "shared"
        clients = [
            RemotePolicy(server.address, robot=manifest.metadata, options=PATIENT)
            for _ in range(SESSIONS)
        ]
        for session in turns:
            # Each session sees them in an order of its own.
            at = (7 * steps[session] + 5 * session) % STEPS
            steps[session] += 1
            found = clients[session](views[at].copy())["action_chunk"]
            assert torch.equal(found, expected[at]), (session, steps[session])
        for client in clients:
            client.close()
    assert steps == [STEPS] * SESSIONS


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_policy_of_lerobots_is_served_to_any_number_of_clients(name, checkpoint):
    policy = LeRobotPolicyWrapper.from_pretrained(checkpoint(name).folder)
    manifest = describe_policy(policy)
    assert manifest.mode == "shared"
    assert manifest.replan_interval == policy.n_action_steps


def test_sessions_that_share_a_call_get_their_own_answers(checkpoint):
    """A batch may differ from single calls in the last bits."""
    made = checkpoint("act-cameras")
    policy, manifest = load_served_policy(str(made.folder))
    views = views_of(made, 3)
    with PolicyServer(policy, manifest, options=ServerOptions(max_rows=8)) as server:
        client = RemotePolicy(server.address, robot=manifest.metadata, options=PATIENT)
        together = client(torch.cat(views))["action_chunk"]
        for session, td in enumerate(views):
            alone = client(td.copy())["action_chunk"][0]
            torch.testing.assert_close(together[session], alone)
        client.close()
