from __future__ import annotations

import pytest
import torch

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.envs.tabletop.scene import CONTACT
from torchrl_vla.envs.tabletop.tabletop_rendering import render_camera
from torchrl_vla.testing import check_env


def rows_drawn(monkeypatch):
    """Return a list that grows by how many tables each drawing shows."""
    counts = []

    def count(scene, size):
        counts.append(len(scene.gripper))
        return render_camera(scene, size)

    monkeypatch.setattr("torchrl_vla.envs.tabletop.tabletop_env.render_camera", count)
    return counts


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_sees_on_demand_what_it_would_see_if_all_were_drawn(seed):
    always, on_demand = (
        TabletopEnv(6, tasks=("push",), image_size=16, render_on_demand=on)
        for on in (False, True)
    )
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.arange(6) + 100 * seed
    td = always.reset(episode_seeds=seeds)
    rollout = always.rollout(
        100,
        always.make_expert(),
        auto_reset=False,
        tensordict=td,
        break_when_all_done=True,
    )
    shown = on_demand.reset(episode_seeds=seeds)
    last, stale_rows = shown["observation", "image"].clone(), 0
    for step in rollout.unbind(1):
        looks = torch.rand(6, 1, generator=generator) < 0.2
        inputs = {"action": step["action"], "observation_needed": looks}
        inputs["_step"] = ~shown["done"][:, 0]  # as the rollout does
        shown = on_demand.step(shown.exclude("reward").update(inputs))["next"]
        is_stale = shown["image_is_stale"][:, 0]
        expected = step["next", "observation", "image"]
        assert not (is_stale & (looks | shown["done"])[:, 0]).any()
        last[~is_stale] = expected[~is_stale]
        assert torch.equal(shown["observation", "image"], last)
        differs = (last != expected).flatten(1).any(1)
        assert not (differs & ~is_stale).any()
        stale_rows += int(differs.sum())
        for key in ("reward", "done", "success", ("observation", "state")):
            assert torch.equal(shown[key], step["next", key])
    assert stale_rows > 20


def test_a_block_that_moved_unseen_is_drawn_when_somebody_looks(monkeypatch):
    counts = rows_drawn(monkeypatch)
    env = TabletopEnv(3, tasks=("push",), image_size=8, render_on_demand=True)
    td = env.reset(episode_seeds=torch.arange(3))
    env.scene.gripper = env.scene.target_block - torch.tensor([CONTACT, 0.0])
    push, rest = torch.tensor([[1.0, 0.0]] * 3), torch.zeros(3, 2)
    unseen, seen = torch.zeros(3, 1).bool(), torch.ones(3, 1).bool()
    for action, looks, stale in (
        (push, unseen, True),
        (rest, unseen, True),
        (rest, seen, False),
        (rest, seen, False),
    ):
        td = env.step(td.update({"action": action, "observation_needed": looks}))[
            "next"
        ]
        assert td["image_is_stale"].flatten().tolist() == [stale] * 3
    assert counts == [3, 3]  # at the reset, and once for the push


def test_a_reset_forgets_what_moved_before(monkeypatch):
    env = TabletopEnv(2, tasks=("push",), image_size=8, render_on_demand=True)
    td = env.reset(episode_seeds=torch.arange(2))
    env.scene.gripper = env.scene.target_block - torch.tensor([CONTACT, 0.0])
    td.update({"action": torch.tensor([[1.0, 0.0]] * 2)})
    td = env.step(td.set("observation_needed", torch.zeros(2, 1).bool()))["next"]
    mask = torch.tensor([[True], [False]])
    td = env.reset(td.set("_reset", mask), episode_seeds=torch.tensor([5, 6]))
    assert td["image_is_stale"].flatten().tolist() == [False, True]
    td = env.reset()
    assert not td["image_is_stale"].any()


def test_the_contract_holds_when_drawing_on_demand():
    env = TabletopEnv(
        3, tasks=("reach", "push"), image_size=8, max_steps=5, render_on_demand=True
    )
    check_env(env, max_steps=5)
