"""Our actions against LeRobot's own preprocess, select_action, postprocess loop."""

from __future__ import annotations

import pytest
import torch
from lerobot_checkpoints import RECIPES, observe
from lerobot_streams import Stream, lerobot_actions

from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.testing import check_policy

pytestmark = pytest.mark.lerobot

STEPS, ROWS = 17, 3
DETERMINISTIC = ("act", "act-cameras")


def load(made, **options) -> LeRobotPolicyWrapper:
    return LeRobotPolicyWrapper.from_pretrained(made.folder, **options)


@pytest.mark.parametrize("name", RECIPES)
def test_actions_are_those_of_lerobots_own_loop_bit_for_bit(name, checkpoint):
    made = checkpoint(name)
    observations = observe(made, STEPS, ROWS)
    expected = lerobot_actions(made.folder, observations, seed=11)
    stream = Stream(load(made))
    torch.manual_seed(11)
    for step, (td, action) in enumerate(zip(observations, expected)):
        assert torch.equal(stream.act(td), action), step
    assert len({a.sum().item() for a in expected}) > STEPS // 2  # it does move


@pytest.mark.parametrize("name", RECIPES)
def test_two_streams_through_one_policy_are_what_each_is_alone(name, checkpoint):
    made = checkpoint(name)
    streams = [observe(made, STEPS, rows, seed=rows) for rows in (2, 3)]
    alone = []
    for observations in streams:
        stream, actions = Stream(load(made)), []
        for step, td in enumerate(observations):
            torch.manual_seed(step)
            actions.append(stream.act(td))
        alone.append(actions)
    policy = load(made)
    together = [Stream(policy), Stream(policy)]
    for step in range(STEPS):
        for stream, observations, actions in zip(together, streams, alone):
            torch.manual_seed(step)
            assert torch.equal(stream.act(observations[step]), actions[step]), step


@pytest.mark.parametrize("name", RECIPES)
def test_an_environment_that_is_reset_alone_starts_anew_and_the_others_go_on(
    name, checkpoint
):
    """The reset row acts like a first step; the others as if nothing had happened.

    Noise is drawn per called element, so policies that draw it are compared
    at the steps before their next draw.
    """
    made, reset_at = checkpoint(name), 7
    observations = observe(made, STEPS, ROWS)
    undisturbed, stream = Stream(load(made)), Stream(load(made))
    expected, actions = [], []
    for step, td in enumerate(observations):
        torch.manual_seed(step)
        expected.append(undisturbed.act(td))
        td = td.copy()
        if step == reset_at:
            td["is_init"] = torch.tensor([[False], [True], [False]])
        torch.manual_seed(step)
        actions.append(stream.act(td))
    interval = stream.actor.replan_interval
    undrawn = STEPS if name in DETERMINISTIC else interval * -(-reset_at // interval)
    for step in range(undrawn):
        for row in (0, 2):
            torch.testing.assert_close(
                actions[step][row], expected[step][row], rtol=0, atol=1e-6
            )  # a batch of other rows is summed in another order
    # The row alone, from its reset on: LeRobot's own loop of one environment.
    alone = [td[1:2].copy() for td in observations[reset_at:]]
    alone[0]["is_init"] = torch.ones(1, 1, dtype=torch.bool)
    fresh = Stream(load(made))
    torch.manual_seed(reset_at)
    for step, td in enumerate(alone[:interval]):
        assert torch.equal(fresh.act(td)[0], actions[reset_at + step][1]), step


def test_the_policys_own_queues_and_mode_are_left_as_they_were(checkpoint):
    for name in ("act", "diffusion", "vqbet", "tdmpc"):
        policy = load(checkpoint(name))
        policy.train()
        stream = Stream(policy)
        for td in observe(checkpoint(name), 3, 2):
            stream.act(td)
        assert policy.policy.training
        queues = getattr(policy.policy, "_queues", {})
        assert all(len(queue) == 0 for queue in queues.values())


@pytest.mark.parametrize("name", ["act-cameras", "diffusion", "smolvla", "tdmpc"])
def test_a_saved_policy_is_a_checkpoint_that_lerobot_loads(name, checkpoint, tmp_path):
    made = checkpoint(name)
    load(made).to_folder(tmp_path / "again")
    observations = observe(made, 6, 2)
    expected = lerobot_actions(made.folder, observations, seed=3)
    again = lerobot_actions(tmp_path / "again", observations, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(expected, again))


def test_any_number_of_batch_dimensions_is_flattened_and_restored(checkpoint):
    made = checkpoint("act-cameras")
    policy = load(made)
    (td,) = observe(made, 1, 6)
    flat = policy(td.copy())["action_chunk"]
    assert flat.shape == (6, 10, 7)
    assert torch.equal(policy(td.reshape(2, 3))["action_chunk"], flat.view(2, 3, 10, 7))


def test_everything_is_read_from_the_checkpoint(checkpoint):
    facts = {}
    for name in ("act-cameras", "diffusion", "vqbet", "tdmpc", "tdmpc-steps"):
        policy = load(checkpoint(name))
        facts[name] = (
            policy.action_dim,
            policy.chunk_size,
            policy.n_action_steps,
            policy.history_size,
            policy.metadata.state_dim,
            policy.metadata.cameras,
        )
    assert facts == {
        "act-cameras": (7, 10, 4, 1, 5, ("front", "wrist")),
        "diffusion": (7, 3, 3, 2, 5, ()),
        "vqbet": (7, 3, 3, 3, 5, ()),
        "tdmpc": (7, 2, 2, 1, 5, ()),
        "tdmpc-steps": (7, 3, 3, 1, 5, ()),
    }


def test_overrides_reach_the_configuration(checkpoint):
    policy = load(checkpoint("act"), overrides={"n_action_steps": 9})
    assert policy.n_action_steps == 9
    assert policy.chunk_size == 10


def test_a_dtype_is_computed_in_and_the_chunk_stays_float32(checkpoint):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    exact = load(made)(td.copy())["action_chunk"]
    policy = load(made, dtype=torch.bfloat16)
    chunk = policy(td.copy())["action_chunk"]
    assert chunk.dtype == torch.float32
    torch.testing.assert_close(chunk, exact, rtol=0, atol=0.05)
    assert not torch.equal(chunk, exact)


def test_the_state_dict_is_the_policys(checkpoint):
    made = checkpoint("act")
    policy, (td,) = load(made), observe(made, 1, 2)
    weights = {name: value.clone() for name, value in policy.state_dict().items()}
    assert set(weights) == {f"policy.{name}" for name in policy.policy.state_dict()}
    expected = policy(td.copy())["action_chunk"]
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert not torch.equal(policy(td.copy())["action_chunk"], expected)
    policy.load_state_dict(weights)
    assert torch.equal(policy(td.copy())["action_chunk"], expected)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_policy_keeps_the_contract_of_every_policy_here(name, checkpoint):
    made = checkpoint(name)
    (td,) = observe(made, 1, 3)
    check_policy(load(made), td.select("observation"))
