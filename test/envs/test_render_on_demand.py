"""Environments that draw only where the policy looks, one like the other."""

from __future__ import annotations

import functools
import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import TransformedEnv
from torchrl.envs.utils import step_mdp

from torchrl_vla.envs import AlohaEnv, GymnasiumEnv, MetaWorldEnv, PushTEnv, RenderSpec
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper
from torchrl_vla.schema import ExecutionError, SchemaError
from torchrl_vla.testing import check_env
from torchrl_vla.transforms import ObservationHistory

IMAGE = ("observation", "image")


class Clock(gymnasium.Env):
    """A clock that shows its time: it is done after ``goal`` steps."""

    observation_space = gymnasium.spaces.Dict(time=Box(-np.inf, np.inf, (2,)))
    action_space = Box(-1.0, 1.0, (2,))

    def __init__(self, goal=10**6):
        self.goal, self.images = goal, []

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = seed, 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        rings = self.time >= self.goal
        return self.observe(), 1.0, rings, False, {"rings": rings}

    def observe(self):
        return {"time": np.array([self.seed, self.time], np.float64)}

    def draw(self):
        self.images.append(self.time)
        return np.full((2, 4, 3), self.time, np.uint8)


# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make_clocks(*goals, **options):
    interface = SimulatorInterface(
        options.pop("observe", lambda observation: {"state": observation["time"]}),
        "rings",
        options.pop("rendering", RenderSpec(Clock.draw, (2, 4, 3))),
    )
    simulation = options.pop(
        "options",
        SimulatorOptions(
            options.pop("num_workers", 0), options.pop("render_on_demand", True)
        ),
    )
    makers = [functools.partial(Clock, goal) for goal in goals]
    return GymnasiumEnv(
        makers, interface, instructions="wait", options=simulation, **options
    )


def step(env, td, observation_needed=None, mask=None):
    td = td.exclude("observation_needed", "_step").update(env.full_action_spec.zero())
    if observation_needed is not None:
        td["observation_needed"] = torch.tensor(observation_needed).unsqueeze(-1)
    if mask is not None:
        td["_step"] = torch.tensor(mask)
    return env.step(td)["next"]


def times_shown(td):
    return td[IMAGE][:, 0, 0, 0].tolist()


def is_stale(td):
    return td["image_is_stale"].flatten().tolist()


def images(env):
    return [clock.images for clock in env._simulators._envs]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_rows_that_nobody_looks_at_keep_their_last_image(num_workers):
    env = make_clocks(9, 9, 9, num_workers=num_workers)
    td = env.reset()
    assert times_shown(td) == [0, 0, 0]
    td = step(env, td, [True, False, False])
    assert times_shown(td) == [1, 0, 0]
    assert is_stale(td) == [False, True, True]
    assert td["observation", "state"][:, 1].tolist() == [1, 1, 1]
    td = step(env, td, [False, False, True])
    assert times_shown(td) == [1, 0, 2]
    assert is_stale(td) == [True, True, False]
    assert env.render()[:, 0, 0, 0].tolist() == [2, 2, 2]  # for people, of now
    assert times_shown(step(env, td, [False] * 3)) == [1, 0, 2]
    env.close()


def test_whoever_says_nothing_sees_every_step():
    env = make_clocks(9)
    td = step(env, env.reset(), [False])
    td = step(env, td)
    assert times_shown(td) == [2]
    assert is_stale(td) == [False]
    assert images(env) == [[0, 2]]


def test_a_history_of_images_that_were_not_drawn_is_refused():
    env = TransformedEnv(make_clocks(9, 9), ObservationHistory(2))
    td = env.reset()
    td = step(env, td, [True, True])
    assert td["observation_history", "image"][0, :, 0, 0, 0].tolist() == [0, 1]
    with pytest.raises(SchemaError, match=r"ObservationHistory: .* True in 1 of 2"):
        step(env, td, [True, False])


class Planner(TensorDictModuleBase):
    """Plans three actions from what it sees, or from what it feels."""

    out_keys = ["action_chunk"]

    def __init__(self, *in_keys):
        super().__init__()
        self.in_keys = list(in_keys)

    def forward(self, tensordict):
        chunk = torch.zeros(*tensordict.batch_size, 3, 2)
        return tensordict.set("action_chunk", chunk)


def test_a_policy_that_looks_where_nothing_was_drawn_is_refused():
    env = make_clocks(9, 9)
    executor = MultiStepActorWrapper(Planner(IMAGE))
    td = env.reset().set("is_init", torch.ones(2, 1, dtype=torch.bool))
    td = step_mdp(env.step(executor(td)))
    assert is_stale(td) == [True, True]  # as announced: the chunk goes on
    td["is_init"] = torch.tensor([[False], [True]])  # the executor alone begins anew
    message = r"'image_is_stale' True in 1 environments\. The"
    with pytest.raises(ExecutionError, match=message):
        executor(td.clone())
    blind = MultiStepActorWrapper(Planner(("observation", "state")))
    td["is_init"].fill_(True)
    assert blind(td)["is_decision"].all()


def test_the_end_of_an_episode_is_drawn_whoever_looks():
    env = make_clocks(1, 9, 9, max_steps=2)  # success, time limit
    td = step(env, env.reset(), [False] * 3)
    assert times_shown(td) == [1, 0, 0]
    assert is_stale(td) == [False, True, True]
    td = step(env, td, [False] * 3, mask=[False, True, True])
    assert times_shown(td) == [1, 2, 2]
    assert is_stale(td) == [False, False, False]
    assert images(env) == [[0, 1], [0, 2], [0, 2]]


def test_a_reset_draws_its_rows_and_no_others():
    env = make_clocks(9, 9)
    td = step(env, env.reset(), [False, False])
    td["_reset"] = torch.tensor([[False], [True]])
    td = env.reset(td)
    assert is_stale(td) == [True, False]
    assert images(env) == [[0], [0, 0]]


def test_a_row_that_sits_out_is_as_stale_as_before():
    env = make_clocks(9, 9)
    td = step(env, env.reset(), [False, True])
    td = step(env, td, [True, True], mask=[False, True])
    assert times_shown(td) == [0, 2]
    assert is_stale(td) == [True, False]
    assert images(env) == [[0], [0, 1, 2]]


def test_without_the_option_the_flag_changes_nothing():
    env = make_clocks(9, render_on_demand=False)
    td = step(env, env.reset(), [False])
    assert times_shown(td) == [1]
    assert "image_is_stale" not in td


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_images_are_drawn_at_resets_decisions_and_ends_and_are_of_their_time(data):
    goals = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    rows = range(len(goals))
    env = make_clocks(*goals, max_steps=4)
    td = env.reset()
    expected, shown = [[0] for _ in rows], [0 for _ in rows]
    time = [0 for _ in rows]
    for _ in range(data.draw(st.integers(1, 6))):
        flags = st.lists(st.booleans(), min_size=len(goals), max_size=len(goals))
        looks, runs = data.draw(flags), data.draw(flags)
        if not any(runs):
            continue
        td = step(env, td, looks, mask=runs)
        for row in rows:
            time[row] += runs[row]
            ends = time[row] >= min(goals[row], 4)
            if runs[row] and (looks[row] or ends):
                expected[row].append(time[row])
                shown[row] = time[row]
        assert times_shown(td) == shown
        assert is_stale(td) == [time[row] != shown[row] for row in rows]
    assert images(env) == expected


def test_the_contract_of_an_environment_holds():
    check_env(make_clocks(9, 9, 9, max_steps=5), max_steps=5)


@pytest.mark.parametrize("replan_interval", [None, 2, 1])
def test_a_chunk_costs_a_image(replan_interval):
    base = make_clocks(2, 5, 99, max_steps=7)
    env = TransformedEnv(base, MultiAction(3, replan_interval=replan_interval))
    td = env.reset()
    while not td["done"].all():
        td["action_chunk"] = torch.zeros(3, 3, 2)
        td["_step"] = ~td["done"][:, 0]
        td = env.step(td)["next"].exclude("reward")
        assert not td["image_is_stale"].any()
    length = replan_interval or 3
    decisions = [
        [*range(0, end, length), end]  # where the policy looks, and the end
        for end in (2, 5, 7)
    ]
    assert images(base) == decisions


SIMULATORS = {
    "pusht": functools.partial(PushTEnv, environment_state=True, image_size=32),
    "metaworld": functools.partial(
        MetaWorldEnv, ["push", "drawer-close"], cameras="corner2", image_size=32
    ),
    "metaworld with two cameras": functools.partial(
        MetaWorldEnv, "push", cameras=("topview", "gripperPOV"), image_size=16
    ),
    "aloha": functools.partial(AlohaEnv, quick_rendering=True),
}


def play(env, seeds, chunks):
    """Return what a reset and every chunk showed; row 0 begins anew after the first."""
    td = env.reset(episode_seeds=seeds)
    shown = [td.clone()]
    for chunk in chunks:
        td = env.step(td.exclude("reward").set("action_chunk", chunk))["next"]
        shown.append(td.clone())
        begins = torch.tensor([[len(shown) == 2], [False]])
        td = env.reset(td.set("_reset", td["done"] | begins), episode_seeds=seeds + 1)
        shown.append(td.clone())
    return shown


@pytest.mark.usefixtures("opengl")
@pytest.mark.parametrize("name", SIMULATORS)
def test_the_policy_sees_the_pixels_that_it_would_see_if_all_were_drawn(name):
    played, seeds = [], torch.tensor([3, 4])
    for on_demand_too in (False, True):
        options = SimulatorOptions(render_on_demand=on_demand_too)
        base = SIMULATORS[name](num_envs=2, max_steps=7, options=options)
        env = TransformedEnv(base, MultiAction(4))
        high = base.full_action_spec["action"].space.high[0]
        share = torch.rand(2, 2, 1, 1, generator=torch.Generator().manual_seed(0))
        played.append(play(env, seeds, (share * high).expand(2, 2, 4, len(high))))
        env.close()
    always, on_demand = played
    assert [td["done"].flatten().tolist() for td in always[1::2]] == [
        [False, False],  # and row 0 is begun anew
        [False, True],  # after 3 of 4 steps
    ]
    for one, other in zip(always, on_demand, strict=True):
        assert not other["image_is_stale"].any()
        assert (one == other.exclude("image_is_stale")).all()
    assert not (on_demand[0][IMAGE] == on_demand[1][IMAGE]).all()  # images change


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (functools.partial(MetaWorldEnv, "reach"), "MetaWorldEnv"),
        (functools.partial(PushTEnv, environment_state=True, images=False), "PushTEnv"),
        (functools.partial(AlohaEnv, images=False), "AlohaEnv"),
        (functools.partial(make_clocks, 9, rendering=None), "GymnasiumEnv"),
    ],
)
def test_rendering_on_demand_without_images_is_refused(make, named):
    message = rf"^{named}: expected images that are rendered apart from the steps"
    with pytest.raises(ValueError, match=message):
        make(options=SimulatorOptions(render_on_demand=True))


def test_images_from_two_places_are_refused():
    def observe(observation):
        return {"image": np.zeros((2, 4, 3), np.uint8)}

    with pytest.raises(SchemaError, match=r"no 'image' from observe.*\['image'\]"):
        make_clocks(9, observe=observe)


def test_images_may_be_all_that_is_observed():
    env = make_clocks(9, observe=lambda observation: {})
    assert set(env.reset()["observation"].keys()) == {"image"}
