"""LeRobot policies in TorchRL's collectors, with episodes that end one by one."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
import torch
from lerobot_checkpoints import ACT, DIFFUSION, RECIPES
from lerobot_streams import Stream
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, StepCounter, Transform, TransformedEnv

from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.policies import LeRobotPolicyWrapper, make_lerobot_policy
from torchrl_vla.schema import FeatureStatistics

pytestmark = pytest.mark.lerobot

SIDE, ROWS, STEPS = 48, 4, 24
LIMITS = (5, 9, 7, 12)
IMAGES = {
    "pretrained_backbone_weights": None,
    "crop_shape": None,
    "spatial_softmax_num_keypoints": 4,
}
CONFIGS = {
    "act": ACT,
    "diffusion": {**DIFFUSION, **IMAGES, "use_group_norm": True},
    "tdmpc": RECIPES["tdmpc"][3],
}
PLAN = (5, 2)  # TD-MPC's horizon, and the tabletop's actions


def make_env(**options) -> TabletopEnv:
    options = {"image_size": SIDE, "max_steps": 25, "num_blocks": 6, **options}
    return TabletopEnv(options.pop("num_envs", ROWS), seed=0, **options)


@pytest.fixture(scope="module")
def policies() -> dict[str, LeRobotPolicyWrapper]:
    """Untrained policies whose actions are short enough to bring the gripper down."""
    env, out = make_env(num_envs=1), {}
    samples = torch.linspace(-1, 1, 101)[:, None].expand(-1, 2)
    metadata = dataclasses.replace(
        env.metadata,
        action_statistics=FeatureStatistics.from_samples(0.6 * samples),
        state_statistics=FeatureStatistics.from_samples(samples),
    )
    for kind, config in CONFIGS.items():
        torch.manual_seed(0)
        out[kind] = make_lerobot_policy(
            kind,
            metadata,
            image_sizes={None: (3, SIDE, SIDE)},
            instructions=env.instructions,
            config=config,
        ).eval()
    with torch.no_grad():  # its critics begin with zeros in the last layer
        for weight in out["tdmpc"].parameters():
            weight += 0.1 * torch.randn_like(weight)
    return out


class _EndRows(Transform):
    """Ends the episodes of each row after its own number of steps."""

    def _step(self, tensordict, next_tensordict):
        over = next_tensordict["step_count"] >= torch.tensor(LIMITS)[:, None]
        for key in ("truncated", "done"):
            next_tensordict[key] = next_tensordict[key] | over
        return next_tensordict

    def _reset(self, tensordict, tensordict_reset):
        return tensordict_reset


def make_collected(policy: LeRobotPolicyWrapper):
    """Return what a collector stores, ``[ROWS, STEPS]``."""
    carried = policy.make_environment_transform()
    steps = Compose(InitTracker(), StepCounter(), _EndRows(), *carried)
    actor = MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps)
    frames = ROWS * STEPS
    collector = Collector(
        TransformedEnv(make_env(max_steps=40), steps),
        actor,
        frames_per_batch=frames,
        total_frames=frames,
    )
    (data,) = list(collector)
    collector.shutdown()
    return data


@contextmanager
def same_noise_for_every_row() -> Iterator[None]:
    """Make what a policy draws depend neither on the batch nor on what was drawn."""
    randn, randint = torch.randn, torch.randint

    def draw(shape, rows_dim):
        one = list(shape)
        one[rows_dim] = 1
        generator = torch.Generator().manual_seed(5)
        return 0.1 * randn(one, generator=generator).expand(shape)

    def fixed_randn(*shape, size=None, **kwargs):
        shape = tuple(
            size or (shape[0] if isinstance(shape[0], tuple | list) else shape)
        )
        return draw(shape, 2 if len(shape) == 4 else 0)

    def fixed_randint(*args, **kwargs):
        if kwargs.get("size") == (2,):  # TD-MPC's choice of two critics
            return torch.tensor([0, 1])
        return randint(*args, **kwargs)

    with mock.patch.multiple(
        torch,
        randn=fixed_randn,
        randn_like=lambda value: draw(value.shape, value.ndim - 2),
        randint=fixed_randint,
        multinomial=lambda scores, number: scores.argmax(-1, keepdim=True),
    ):
        yield


@pytest.mark.parametrize("kind", CONFIGS)
def test_collected_actions_are_those_of_each_episode_alone(kind, policies):
    with same_noise_for_every_row():
        data = make_collected(policies[kind])
        episodes = 0
        for row in data:
            for td in row:
                if td["is_init"].item():
                    stream = Stream(copy.deepcopy(policies[kind]))
                    episodes += 1
                alone = td.select("observation", "language_instruction", "is_init")
                action = stream.act(alone[None])[0]
                torch.testing.assert_close(action, td["action"], rtol=0, atol=1e-5)
    assert episodes == sum(-(-STEPS // limit) for limit in LIMITS)
    ends = data["next", "done"].squeeze(-1)
    assert [row.nonzero()[0].item() + 1 for row in ends] == list(LIMITS)
    # It would be no test if all observations led to the same actions.
    assert data["action"][data["is_decision"].squeeze(-1)].std(0).max() > 1e-3


def test_acts_collected_actions_are_bit_for_bit_its_chunks_for_those_rows(policies):
    policy = policies["act"]
    data = make_collected(policy)
    chunk = torch.zeros(ROWS, policy.chunk_size, policy.action_dim)
    age = torch.zeros(ROWS, dtype=torch.int64)
    for step in range(STEPS):
        now = data[:, step]
        decides = now["is_decision"].squeeze(-1)
        if decides.any():
            seen = now[decides].select("observation", "language_instruction")
            chunk[decides] = policy(seen)["action_chunk"]
            age[decides] = 0
        assert torch.equal(chunk[torch.arange(ROWS), age], now["action"]), step
        age += 1
    assert age.max() <= policy.n_action_steps


def test_the_plan_travels_with_its_row_and_begins_at_zero(policies):
    data = make_collected(policies["tdmpc"])
    plan, after = data["policy_plan"], data["next", "policy_plan"]
    assert plan.shape == (ROWS, STEPS, *PLAN)
    started = data["is_init"].squeeze(-1)
    decides = data["is_decision"].squeeze(-1)
    assert not plan[started].any()
    for step in range(1, STEPS):
        goes_on = ~started[:, step]
        assert torch.equal(plan[goes_on, step], after[goes_on, step - 1])
        kept = ~decides[:, step]
        assert torch.equal(after[kept, step], plan[kept, step])
        replanned = decides[:, step]
        changed = (after[:, step] != plan[:, step]).flatten(1).any(1)
        assert changed[replanned].all()


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_the_carried_plan_takes_the_shape_of_any_environment(batch, policies):
    transform = policies["tdmpc"].make_environment_transform()
    env = TransformedEnv(ToyVLAEnv(batch_size=batch), transform)
    assert env.observation_spec["policy_plan"].shape == (*batch, *PLAN)
    assert env.rollout(3)["policy_plan"].shape == (*batch, 3, *PLAN)


def test_evaluate_counts_what_lerobots_own_loop_achieves(policies, tmp_path):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    policy, episodes = policies["act"], 14
    transform = Compose(InitTracker(), *policy.make_environment_transform())
    result = evaluate(
        TransformedEnv(make_env(), transform),
        MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps),
        episodes,
        progress=False,
    )
    policy.to_folder(tmp_path)
    theirs = ACTPolicy.from_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    env = make_env(num_envs=1)
    for episode in result.episodes:
        td = env.reset(episode_seeds=torch.tensor([episode.seed]))
        theirs.reset()
        reward, length, done = 0.0, 0, False
        while not done:
            batch = {
                "observation.image": td["observation", "image"].float() / 255,
                "observation.state": td["observation", "state"],
            }
            with torch.no_grad():
                td["action"] = after(theirs.select_action(before(batch)))
            td = env.step(td)["next"]
            reward, length = reward + td["reward"].item(), length + 1
            done = td["done"].item()
        assert (episode.length, episode.episode_return) == (length, reward)
        assert episode.success == td["success"].item()
    assert len(result.episodes) == episodes
    assert len({episode.length for episode in result.episodes}) > 1


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_copy_a_pickle_and_a_move_act_the_same(kind, policies):
    policy = policies[kind]
    env = TransformedEnv(
        make_env(), Compose(InitTracker(), *policy.make_environment_transform())
    )
    td = env.reset()
    with same_noise_for_every_row(), torch.no_grad():
        expected = policy(td.copy())["action_chunk"]
        copied = copy.deepcopy(policy)
        pickled = pickle.loads(pickle.dumps(policy))
        moved = copy.deepcopy(policy).to("cpu").to(torch.float64).to(torch.float32)
        for other in (copied, pickled, moved):
            assert torch.equal(other(td.copy())["action_chunk"], expected)
        # They share nothing with the original.
        for weight in copied.parameters():
            weight.zero_()
        assert torch.equal(policy(td.copy())["action_chunk"], expected)
        assert not torch.equal(copied(td.copy())["action_chunk"], expected)
