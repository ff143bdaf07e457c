"""From an expert's interventions to a policy that no longer needs them."""

from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule, TensorDictModuleBase

from torchrl_vla.data import aggregate, collect
from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import InterventionPolicy, MultiStepActorWrapper
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.recipes import TrainingSettings, train_behavior_cloning
from torchrl_vla.schema import InstructionTable
from torchrl_vla.spaces import ModelSpace

H, MAX_STEPS, EPISODES = 2, 6, 12
STATE = ("observation", "state")  # the action that was executed, and the target


def buggy(target):
    """Goes to targets above 0, and to 0.5 instead of those below."""
    return torch.where(target > 0, target, 0.5)


class Helper(TensorDictModuleBase):
    """Takes over where the last action was off the target, and goes there."""

    in_keys = [STATE]
    out_keys = ["action", "is_intervention"]

    def forward(self, td):
        last, target = td[STATE].unbind(-1)
        td["is_intervention"] = ((last - target).abs() > 0.3).unsqueeze(-1)
        return td.set("action", target.unsqueeze(-1))


@pytest.fixture(scope="module")
def env():
    return ToyVLAEnv(
        action_dim=1,
        state_dim=2,
        success_steps=2,
        max_steps=MAX_STEPS,
        instructions=InstructionTable(),
        batch_size=[4],
        seed=0,
    )


def buggy_actor():
    planner = TensorDictModule(
        lambda s: buggy(s[..., 1])[..., None, None].expand(*s.shape[:-1], H, 1),
        [STATE],
        ["action_chunk"],
    )
    return MultiStepActorWrapper(planner)


def record(env, actor, folder, **options):
    options = {"successes_only": False, "progress": False, **options}
    return collect(env, actor, EPISODES, folder=folder, **options)


def walk(target):
    """One episode by hand: (state, action, is_intervention) of each frame."""
    frames, plan, last, before, streak = [], [], 0.0, False, 0
    while streak < 2 and len(frames) < MAX_STEPS:
        acts = abs(last - target) > 0.3
        if not plan or (before and not acts):
            plan = [target if target > 0 else 0.5] * H
        action = plan.pop(0)
        if acts:
            action = target
        frames.append(([last, target], action, acts))
        streak = streak + 1 if abs(action - target) <= 0.25 else 0
        last, before = action, acts
    return frames


def loss_on(policy, space, dataset, rows):
    transform = space.transforms(H, dataset.storage)
    batch = transform(dataset.frames[rows])
    with torch.no_grad():
        return BCLoss(policy, loss_function="l1")(batch)["loss_bc"].item()


def test_corrections_are_recorded_frame_by_frame_and_cure_the_bug(env, tmp_path):
    mistaken = record(env, buggy_actor(), tmp_path / "mistaken")
    helped = InterventionPolicy(buggy_actor(), Helper(), label_all=False)
    corrections = record(env, helped, tmp_path / "corrections", seed=1)

    frames, counted = corrections.frames, 0
    for number in range(EPISODES):
        episode = frames[frames["episode_index"] == number]
        expected = walk(episode[STATE][0, 1].item())
        assert len(episode) == len(expected)
        for frame, (state, action, acts) in zip(episode, expected):
            assert frame[STATE].tolist() == pytest.approx(state)
            assert frame["action"].item() == pytest.approx(action)
            assert frame["is_intervention"].item() == acts
            assert frame["is_labeled"].item() == acts
            counted += acts
    helped_rows = frames["is_intervention"].flatten()
    assert 0 < counted == int(helped_rows.sum()) < len(frames)

    good = mistaken.frames[STATE][:, 1] > 0
    numbers = mistaken.frames["episode_index"][good].unique()
    whole = aggregate(mistaken.select_episodes(numbers), corrections)
    assert len(whole) == int(good.sum()) + len(frames)
    assert int(whole.frames["is_labeled"].sum()) == int(good.sum()) + counted
    assert int(whole.frames["is_intervention"].sum()) == counted

    torch.manual_seed(0)
    policy = TinyVLA(
        action_dim=1,
        chunk_size=H,
        instructions=env.instructions,
        backbone=BackboneConfig(state_dim=2, cameras=(), hidden=32, depth=1),
    )
    space = ModelSpace(whole.metadata)
    settings = TrainingSettings(steps=120, batch_size=64, lr=3e-3)
    options = {"space": space, "progress": False}
    train_behavior_cloning(policy, mistaken, settings, **options)
    before = loss_on(policy, space, corrections, helped_rows)
    train_behavior_cloning(policy, whole, settings, **options)
    assert loss_on(policy, space, corrections, helped_rows) < 0.3 * before

    ended = [
        record(env, actor, tmp_path / name, seed=2).frames["next", "success"].sum()
        for name, actor in (
            ("buggy", buggy_actor()),
            ("cured", space.executor(policy, replan_interval=1)),
        )
    ]
    assert ended[1] > ended[0]


def test_the_policys_own_actions_are_never_a_target(env, tmp_path):
    helped = InterventionPolicy(buggy_actor(), Helper(), label_all=False)
    corrections = record(env, helped, tmp_path, seed=1)
    space = ModelSpace(corrections.metadata)
    buffer = corrections.replay_buffer(
        400, transform=space.transforms(H, corrections.storage), seed=0
    )
    sample = buffer.sample()
    chunk = space.action_scaling.denormalize(sample["action_chunk"])
    target = sample[STATE][:, 1]
    target = space.state_scaling.loc[1] + space.state_scaling.scale[1] * target
    valid = ~sample["action_is_pad"]
    assert valid[:, 0].all()
    off = (chunk[..., 0] - target.unsqueeze(-1)).abs()
    assert off[valid].max() < 1e-5
    plain = corrections.replay_buffer(400, seed=0).sample()
    assert plain["is_labeled"].all()
