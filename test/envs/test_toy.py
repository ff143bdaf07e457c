from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import InitTracker, SerialEnv, TransformedEnv
from torchrl.envs.utils import check_env_specs

from torchrl_vla.envs.toy import ToyVLAEnv
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.schema import InstructionTable

TRACKING = {"action_dim": 2, "state_dim": 4, "success_steps": 2}


@pytest.mark.parametrize("batch_size", [[], [2], [2, 3]])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        TRACKING,
        {"instructions": InstructionTable()},
        {"max_steps": 2},
    ],
    ids=["echo", "tracking", "ids", "pixels"],
)
def test_specs_match_what_the_environment_does(batch_size, arguments):
    check_env_specs(ToyVLAEnv(batch_size=batch_size, **arguments))


def test_state_echoes_the_executed_action():
    env = ToyVLAEnv(batch_size=[2])
    td = env.reset()
    assert td["observation", "image"].shape == (2, 3, 16, 16)
    assert td["observation", "image"].dtype == torch.uint8
    assert td["language_instruction"][0] == "push the T-shaped block onto the target"
    td["action"] = 0.5 * torch.ones(2, 4)
    after = env.step(td)["next"]
    assert after["observation", "state"][:, :4].unique().tolist() == [0.5]
    assert after["observation", "state"][:, 4:].unique().tolist() == [0.0]
    assert after["reward"].tolist() == [[-1.0], [-1.0]]  # |(.5, .5, .5, .5)| = 1


def test_seed_example_of_a_chunk_policy_runs_unchanged():
    chunk_actor = TensorDictModule(
        lambda state: state[..., :4].unsqueeze(-2).expand(2, 3, 4) + 0.1,
        in_keys=[("observation", "state")],
        out_keys=["action"],
    )
    policy = MultiStepActorWrapper(chunk_actor, n_steps=3)
    env = TransformedEnv(ToyVLAEnv(batch_size=[2]), InitTracker())
    assert env.rollout(4, policy)["action"].shape == (2, 4, 4)


def test_oracle_succeeds_in_tracking_mode():
    env = ToyVLAEnv(**TRACKING, seed=0)
    td = env.reset()
    flags = []
    for _ in range(2):
        td["action"] = td["observation", "state"][..., 2:4]
        td = env.step(td)["next"]
        flags.append((bool(td["success"]), bool(td["terminated"]), bool(td["done"])))
    assert flags == [(False, False, False), (True, True, True)]


def test_a_miss_restarts_the_streak():
    env = ToyVLAEnv(**TRACKING, seed=0)
    td = env.reset()
    target = td["observation", "state"][2:4]
    success = []
    for action in (target, target + 0.3, target, target):
        td["action"] = action
        td = env.step(td)["next"]
        success.append(bool(td["success"]))
    assert success == [False, False, False, True]


def test_time_limit_truncates_without_terminating():
    rollout = ToyVLAEnv(max_steps=3).rollout(10)
    assert rollout["next", "truncated"].flatten().tolist() == [False, False, True]
    assert not rollout["next", "terminated"].any()


def test_a_table_turns_the_instruction_into_its_id():
    table = InstructionTable(["open the door"])
    env = ToyVLAEnv(instructions=table, batch_size=[3])
    ids = env.reset()["language_instruction"]
    assert ids.dtype == torch.int64
    assert table.decode(ids) == ["open the door"] * 3
    assert env.instructions is table


def test_text_environment_still_knows_its_texts():
    assert ToyVLAEnv().instructions.texts == (ToyVLAEnv.instruction,)


def test_an_empty_table_gets_the_default_instruction():
    table = InstructionTable()
    ToyVLAEnv(instructions=table)
    assert table.texts == (ToyVLAEnv.instruction,)


@pytest.mark.parametrize("batch_size", [[], [3]])
def test_same_seed_gives_the_same_rollout(batch_size):
    def roll(seed):
        env = ToyVLAEnv(**TRACKING, batch_size=batch_size, seed=seed)
        return env.rollout(
            4, lambda td: td.set("action", env.full_action_spec["action"].zero())
        )

    first, again, other = roll(5), roll(5), roll(6)
    for key in (("observation", "state"), ("observation", "image"), "episode_seed"):
        assert torch.equal(first[key], again[key])
    assert not torch.equal(first["episode_seed"], other["episode_seed"])


def test_an_episode_depends_on_its_own_seed_only():
    env = ToyVLAEnv(**TRACKING, batch_size=[3])
    td = env.reset(episode_seeds=torch.tensor([4, 9, 4]))
    state = td["observation", "state"]
    assert torch.equal(state[0], state[2])
    assert not torch.equal(state[0], state[1])
    assert td["episode_seed"].tolist() == [4, 9, 4]
    single = ToyVLAEnv(**TRACKING).reset(episode_seeds=torch.tensor(9))
    assert torch.equal(single["observation", "state"], state[1])
    assert torch.equal(single["observation", "image"], td["observation", "image"][1])


def test_partial_reset_leaves_the_other_episodes_alone():
    env = ToyVLAEnv(**TRACKING, batch_size=[2], seed=0)
    td = env.reset()
    td["action"] = td["observation", "state"][:, 2:4].clone()
    after = env.step(td)["next"]
    after["_reset"] = torch.tensor([[True], [False]])
    again = env.reset(after.clone())
    assert again["observation", "state"][0, :2].tolist() == [0.0, 0.0]
    assert torch.equal(
        again["observation", "state"][1], after["observation", "state"][1]
    )
    again["action"] = again["observation", "state"][:, 2:4].clone()
    assert env.step(again)["next", "success"].tolist() == [[False], [True]]


def test_masked_rows_keep_their_episode_and_earn_nothing():
    env = ToyVLAEnv(batch_size=[2], max_steps=5)
    td = env.reset()
    td["action"] = torch.ones(2, 4)
    td = env.step(td)["next"].exclude("reward")
    before = td.clone()
    td["action"] = -torch.ones(2, 4)
    td["_step"] = torch.tensor([True, False])
    after = env.step(td)["next"]
    assert after["observation", "state"][:, 0].tolist() == [-1.0, 1.0]
    assert after["reward"].tolist() == [[-2.0], [0.0]]
    image = "observation", "image"
    assert torch.equal(after[image][1], before[image][1])
    assert not torch.equal(after[image][0], before[image][0])


def test_works_in_a_serial_environment():
    env = SerialEnv(2, lambda: ToyVLAEnv(**TRACKING, instructions=InstructionTable()))
    check_env_specs(env)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state_dim": 3}, r"expected state_dim >= 4, got 3\. The state echoes"),
        ({"success_steps": 1}, r"expected state_dim >= 8, got 6.*holds the target"),
        ({"max_steps": 0}, r"positive int at argument 'max_steps', got 0"),
        ({"success_tol": 0.6}, r"success_tol in \(0, 0\.5\], got 0\.6"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ToyVLAEnv(**arguments)
