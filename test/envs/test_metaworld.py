from __future__ import annotations

import sys

import metaworld.policies
import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from torchrl.envs.utils import check_env_specs

from torchrl_vla.envs.metaworld import MetaWorldEnv, MetaWorldExpert
from torchrl_vla.envs.simulator_interface import SimulatorOptions
from torchrl_vla.schema import (
    InstructionTable,
    MissingExtraError,
    SchemaError,
    UnknownInstructionError,
    validate_vla_tensordict,
)

TASKS = ("reach", "push", "door-open")
EASY = ("reach", "drawer-close", "button-press")


def test_specs_agree_with_data():
    check_env_specs(MetaWorldEnv(["reach", "push"], num_envs=2))


def test_output_is_valid_schema():
    env = MetaWorldEnv("reach-v3")
    rollout = env.rollout(3)
    assert rollout["observation", "state"].shape == (1, 3, 39)
    assert validate_vla_tensordict(rollout) == []


def test_the_seed_says_task_instruction_and_initial_state():
    env = MetaWorldEnv(["reach", "push-v3"], num_envs=3)
    assert env.tasks == ("reach", "push")
    td = env.reset(episode_seeds=torch.tensor([4, 5, 4]))
    assert env.instructions.decode(td["language_instruction"]) == [
        "reach the goal",
        "push the puck to the goal",
        "reach the goal",
    ]
    state = td["observation", "state"]
    assert (state[0] == state[2]).all()
    assert (state[0] != state[1]).any()


def test_experts_succeed_from_nine_seeds_in_ten():
    env = MetaWorldEnv(EASY, num_envs=12, max_steps=100)
    td = env.reset(episode_seeds=torch.arange(12))
    rollout = env.rollout(
        100,
        env.make_expert(),
        break_when_all_done=True,
        auto_reset=False,
        tensordict=td,
    )
    solved = rollout["next", "success"].any(1).flatten()
    for task in range(3):
        assert solved[task::3].float().mean() >= 0.9


def test_success_terminates_unless_told_to_go_on():
    for stop, expected in ((True, 1), (False, 100)):
        env = MetaWorldEnv("reach", stop_on_success=stop, max_steps=100)
        td = env.reset(episode_seeds=torch.tensor([0]))
        rollout = env.rollout(
            100,
            env.make_expert(),
            auto_reset=False,
            tensordict=td,
            break_when_any_done=True,
        )
        ends = rollout["next", "success"].flatten().nonzero()[0].item() + 1
        assert len(rollout[0]) == (ends if stop else expected)
        assert rollout["next", "terminated"].any() == stop
        assert rollout["next", "truncated"].any() != stop


def test_workers_return_what_one_process_returns():
    rollouts = []
    for workers in (0, 2):
        env = MetaWorldEnv(
            TASKS, num_envs=4, options=SimulatorOptions(num_workers=workers), seed=4
        )
        rollouts.append(env.rollout(12, env.make_expert()))
        env.close()
    assert (rollouts[0] == rollouts[1]).all()


@pytest.mark.usefixtures("opengl")
def test_images_arrive_in_the_schema():
    env = MetaWorldEnv("drawer-close", cameras="corner2")
    check_env_specs(env)
    image = env.reset()["observation", "image"]
    assert image.shape == (1, 3, 64, 64)
    assert image.dtype == torch.uint8
    assert validate_vla_tensordict(env.rollout(2)) == []
    env.close()


def test_metadata_names_every_dimension():
    metadata = MetaWorldEnv("reach").metadata
    assert len(metadata.state_names) == 39
    assert metadata.state_names[-3:] == ("goal_x", "goal_y", "goal_z")
    assert metadata.gripper_dims == (3,)
    assert metadata.control_frequency_hz == 80.0


def test_noise_moves_the_executed_action_and_not_the_intended_one():
    state = torch.rand(2, 39, generator=torch.Generator().manual_seed(0))
    ids = InstructionTable().encode(["reach the goal", "open the door"])

    def act(**kwargs):
        td = TensorDict({"observation": {"state": state}}, [2])
        return MetaWorldExpert(**kwargs)(td.set("language_instruction", ids))

    clean, noisy = act(), act(noise=0.1, seed=1)
    assert (clean["action"] == clean["expert_action"]).all()
    assert (noisy["expert_action"] == clean["action"]).all()
    assert (noisy["action"] != clean["action"]).any()
    assert noisy["action"].abs().max() <= 1
    assert (noisy["action"] == act(noise=0.1, seed=1)["action"]).all()
    assert (noisy["action"] != act(noise=0.1, seed=2)["action"]).any()


@pytest.mark.filterwarnings("ignore:Constant:UserWarning")
def test_the_expert_does_what_it_is_told_in_text_and_in_ids():
    state = torch.rand(3, 39, generator=torch.Generator().manual_seed(0))
    texts = ["reach the goal", "open the door", "close the drawer"]
    td = TensorDict({"observation": {"state": state}}, [3])
    policies = metaworld.policies.ENV_POLICY_MAP
    names = ("reach-v3", "door-open-v3", "drawer-close-v3")
    expected = [
        torch.as_tensor(policies[name]().get_action(row.double().numpy())).clamp(-1, 1)
        for name, row in zip(names, state)
    ]
    for spoken in (NonTensorStack(*texts), InstructionTable().encode(texts)):
        action = MetaWorldExpert()(td.set("language_instruction", spoken))["action"]
        assert torch.equal(action, torch.stack(expected).float())


def test_the_expert_refuses_a_state_of_another_size():
    td = TensorDict({"observation": {"state": torch.zeros(2, 4)}}, [2])
    with pytest.raises(SchemaError, match=r"expected \[2, 39\].*got \[2, 4\]"):
        MetaWorldExpert()(td)


def test_the_expert_refuses_what_no_task_says():
    td = TensorDict({"observation": {"state": torch.zeros(39)}})
    td["language_instruction"] = "make coffee"
    with pytest.raises(UnknownInstructionError, match="got 'make coffee'"):
        MetaWorldExpert()(td)


def test_negative_noise_is_refused():
    with pytest.raises(ValueError, match=r"noise >= 0, got -0\.1"):
        MetaWorldExpert(noise=-0.1)


def test_no_task_is_refused():
    with pytest.raises(ValueError, match="at least one task, got none"):
        MetaWorldEnv([])


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[metaworld\]"):
        MetaWorldEnv("reach")
