from __future__ import annotations

import functools
import sys

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.envs.utils import check_env_specs

from torchrl_vla.envs.gymnasium import GymnasiumEnv
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.envs.simulator_keys import SimulatorKeys
from torchrl_vla.envs.simulators import SimulationError
from torchrl_vla.errors import SettingsError
from torchrl_vla.schema import (
    ExecutionError,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    UnknownInstructionError,
    VLAError,
    validate_vla_tensordict,
)

OBSERVE = SimulatorKeys(state=("counters",), images="image")


class Counter(gymnasium.Env):
    """State: the episode's seed, its steps, the sum of its actions."""

    observation_space = gymnasium.spaces.Dict(
        counters=Box(-np.inf, np.inf, (3,)), image=Box(0, 255, (2, 4, 3), np.uint8)
    )

    def __init__(self, goal: int = 10**6, action_space=None, breaks_at=None):
        self.action_space = action_space or Box(-1.0, 1.0, (2,))
        self.goal, self.breaks_at = goal, breaks_at

    def reset(self, *, seed=None, options=None):
        self.counters = np.array([seed, 0.0, 0.0])
        return self.observe(), {}

    def step(self, action):
        self.counters += (0.0, 1.0, action.sum())
        steps = self.counters[1]
        if self.breaks_at == steps:
            raise OverflowError("the robot fell off the table")
        reached = bool(steps >= self.goal)
        return self.observe(), steps, reached, False, {"is_success": reached}

    def observe(self):
        image = np.zeros((2, 4, 3), np.uint8)
        image[1, 3, 2] = self.counters[1]
        return {"counters": self.counters.copy(), "image": image}


# Workers cannot import a test module by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


def make(num_envs=3, make_env=Counter, **kwargs):
    interface = SimulatorInterface(
        kwargs.pop("observe", OBSERVE), kwargs.pop("success_key", "is_success")
    )
    defaults = {
        "instructions": "count",
        "num_envs": num_envs,
        "options": SimulatorOptions(num_workers=kwargs.pop("num_workers", 0)),
        "seed": 0,
    }
    return GymnasiumEnv(make_env, interface, **{**defaults, **kwargs})


def act(env, td, value=0.5, mask=None):
    td = td.clone().set("action", torch.full((*env.batch_size, 2), value))
    if mask is not None:
        td["_step"] = torch.tensor(mask)
    return env.step(td)["next"]


def state(td):
    return td["observation", "state"].tolist()


def test_specs_agree_with_data():
    check_env_specs(make())
    check_env_specs(make(1, max_steps=2), break_when_any_done="both")


def test_output_is_valid_schema():
    env = make(2)
    assert validate_vla_tensordict(env.rollout(3)) == []


def test_images_become_channels_first_and_keep_every_pixel():
    env = make(1)
    image = act(env, env.reset())["observation", "image"]
    assert image.dtype == torch.uint8
    assert image.shape == (1, 3, 2, 4)
    assert image[0, 2, 1, 3] == 1
    assert image.sum() == 1


def test_cameras_have_an_entry_each():
    cameras = SimulatorKeys(images={"top": "image", "wrist": "image"})
    env = make(1, observe=cameras)
    assert set(env.reset()["observation", "image"].keys()) == {"top", "wrist"}
    check_env_specs(env)


def test_the_environment_s_state_has_an_entry_of_its_own():
    keys = SimulatorKeys(state=("counters",), environment_state=("counters", "image"))
    env = make(2, observe=keys)
    check_env_specs(env)
    td = act(env, env.reset(episode_seeds=torch.tensor([7, 9])))
    value = td["observation", "environment_state"]
    assert value.dtype == torch.float32
    assert value.shape == (2, 3 + 2 * 4 * 3)
    assert value[:, :3].tolist() == [[7, 1, 1], [9, 1, 1]]
    assert env.metadata.state_dim == 3


def test_the_environment_s_state_is_enough_of_an_observation():
    env = make(1, observe=SimulatorKeys(environment_state=("counters",)))
    assert set(env.reset()["observation"].keys()) == {"environment_state"}


def test_non_finite_state_of_the_environment_raises():
    class Diverging(Counter):
        def observe(self):
            counters = np.where(self.counters[1] > 0, np.inf, self.counters)
            return {**super().observe(), "counters": counters}

    keys = SimulatorKeys(images="image", environment_state=("counters",))
    env = make(1, Diverging, observe=keys)
    with pytest.raises(SchemaError, match=r"environment_state.*environment 0, got inf"):
        act(env, env.reset())


def test_each_row_has_its_instruction():
    env = make(2, instructions=["count up", "count down"])
    ids = act(env, env.reset())["language_instruction"]
    assert env.instructions.decode(ids) == ["count up", "count down"]


class Spoken(Counter):
    """Say whether the episode's seed is odd or even."""

    observation_space = gymnasium.spaces.Dict(
        **Counter.observation_space.spaces, mission=gymnasium.spaces.Text(9)
    )

    def observe(self):
        text = "count odd" if self.counters[0] % 2 else "count even"
        return {**super().observe(), "mission": text}


SPOKEN = SimulatorKeys(state=("counters",), instruction="mission")


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_simulator_may_say_each_episode_s_instruction(num_workers):
    texts = ["count even", "count odd", "count in tens"]
    env = make(2, Spoken, observe=SPOKEN, instructions=texts, num_workers=num_workers)
    td = act(env, env.reset(episode_seeds=torch.tensor([2, 3])))
    assert env.instructions.texts == tuple(texts)
    assert env.instructions.decode(td["language_instruction"]) == texts[:2]
    td["_reset"] = torch.tensor([[False], [True]])
    td = env.reset(td, episode_seeds=torch.tensor([5, 6]))
    assert env.instructions.decode(td["language_instruction"]) == [texts[0]] * 2
    env.close()


def test_an_undeclared_instruction_is_refused():
    env = make(1, Spoken, observe=SPOKEN, instructions="count even")
    with pytest.raises(
        UnknownInstructionError, match=r"\['count even'\], got 'count odd'"
    ):
        env.reset(episode_seeds=torch.tensor([1]))


def test_given_seeds_reach_the_simulator_and_the_tensordict():
    env = make(2)
    td = env.reset(episode_seeds=torch.tensor([7, 9]))
    assert state(td) == [[7, 0, 0], [9, 0, 0]]
    assert act(env, td)["episode_seed"].tolist() == [7, 9]


def test_drawn_seeds_repeat_with_set_seed_and_go_on_otherwise():
    env = make(2)
    env.set_seed(3)
    first, second = (env.reset()["episode_seed"].tolist() for _ in range(2))
    env.set_seed(3)
    assert env.reset()["episode_seed"].tolist() == first
    assert first != second


def test_partial_reset_leaves_the_other_rows_alone():
    env = make(2)
    td = act(env, env.reset(episode_seeds=torch.tensor([1, 2])))
    td["_reset"] = torch.tensor([[False], [True]])
    td = env.reset(td, episode_seeds=torch.tensor([5, 6]))
    assert state(td) == [[1, 1, 1], [6, 0, 0]]
    assert td["episode_seed"].tolist() == [1, 6]
    assert state(act(env, td)) == [[1, 2, 2], [6, 1, 1]]


def test_masked_rows_keep_their_outputs_and_earn_nothing():
    env = make(2)
    td = act(env, env.reset(episode_seeds=torch.tensor([1, 2])))
    td = act(env, td, mask=[False, True])
    assert state(td) == [[1, 1, 1], [2, 2, 2]]
    assert td["reward"].tolist() == [[0.0], [2.0]]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), max_size=8))
def test_steps_of_a_row_are_the_times_it_was_not_masked(masks):
    env = make(3, max_steps=4)
    td = env.reset(episode_seeds=torch.tensor([0, 0, 0]))
    for mask in masks:
        td = act(env, td, mask=mask)
    steps = [sum(mask[row] for mask in masks) for row in range(3)]
    assert [row[1] for row in state(td)] == steps
    assert td["truncated"].flatten().tolist() == [count >= 4 for count in steps]


def test_time_limit_truncates_and_success_terminates():
    env = make(None, [Counter, functools.partial(Counter, 2)], max_steps=2)
    td = act(env, act(env, env.reset()))
    assert td["truncated"].tolist() == [[True], [False]]
    assert td["terminated"].tolist() == [[False], [True]]
    assert td["success"].tolist() == [[False], [True]]
    assert td["done"].all()


def test_actions_are_clipped_for_the_simulator_and_kept_in_the_tensordict():
    env = make(1)
    td = env.reset(episode_seeds=torch.tensor([0])).set("action", torch.full((1, 2), 9))
    td = env.step(td)
    assert state(td["next"]) == [[0, 1, 2]]
    assert td["action"].tolist() == [[9, 9]]


def test_outputs_do_not_change_when_the_environment_moves_on():
    env = make(1)
    first = env.reset(episode_seeds=torch.tensor([0]))
    kept = first.clone()
    act(env, first)
    assert (first == kept).all()


def test_workers_return_what_one_process_returns():
    makers = [functools.partial(Counter, goal) for goal in (2, 9, 9)]
    # defined here: workers must take what cannot be imported
    observe = lambda raw: {"state": raw["counters"]}  # noqa: E731
    here = make(None, makers, observe=observe)
    there = make(None, makers, observe=observe, num_workers=2)
    seeds = torch.tensor([4, 5, 6])
    outputs = []
    for env in (here, there):
        steps = [env.reset(episode_seeds=seeds)]
        for mask in ([True] * 3, [False, False, True], [True, True, False]):
            steps.append(act(env, steps[-1], mask=mask))
        steps.append(env.reset(steps[-1].clone().set("_reset", torch.ones(3, 1) > 0)))
        outputs.append(steps)
    for one, other in zip(*outputs):
        assert (one == other).all()
    there.close()


def test_error_in_a_worker_arrives_with_its_traceback():
    makers = [Counter, functools.partial(Counter, breaks_at=1)]
    env = make(None, makers, num_workers=2)
    td = env.reset()
    with pytest.raises(SimulationError, match="the robot fell off the table"):
        act(env, td)
    assert state(act(env, env.reset(episode_seeds=torch.tensor([1, 2])), mask=[1, 0]))
    env.close()


def test_worker_that_cannot_build_its_simulator_says_why():
    def fail():
        raise FileNotFoundError("no robot.xml")

    with pytest.raises(SimulationError, match=r"no robot\.xml"):
        make(1, fail, num_workers=1)


def test_worker_that_died_is_named():
    env = make(2, num_workers=2)
    td = env.reset()
    env._simulators._processes[1].terminate()
    env._simulators._processes[1].join()
    with pytest.raises(SimulationError, match="worker process 1"):
        act(env, td)
    env.close()


def test_non_finite_observation_raises():
    class Diverging(Counter):
        def observe(self):
            counters = np.where([0, self.counters[1] > 0, 0], np.nan, self.counters)
            return {**super().observe(), "counters": counters}

    env = make(None, [Counter, Diverging])
    td = env.reset()
    with pytest.raises(
        SchemaError, match=r"state.*environment 1, got nan in dimension 1"
    ):
        act(env, td)


def test_non_finite_action_moves_no_row():
    env = make(2)
    td = env.reset(episode_seeds=torch.tensor([1, 2]))
    td["action"] = torch.tensor([[0.0, 0.0], [0.0, torch.nan]])
    with pytest.raises(SchemaError, match=r"nan at env index 1, dimension 1\."):
        env.step(td)
    assert state(act(env, td)) == [[1, 1, 1], [2, 1, 1]]


def test_non_finite_action_of_a_masked_row_is_not_looked_at():
    env = make(2)
    td = env.reset(episode_seeds=torch.tensor([1, 2]))
    td["action"] = torch.tensor([[0.0, 0.0], [0.0, torch.nan]])
    td["_step"] = torch.tensor([True, False])
    assert state(env.step(td)["next"]) == [[1, 1, 0], [2, 0, 0]]


def test_missing_observation_entry_lists_what_there_is():
    with pytest.raises(
        MissingKeyError, match=r"'joints' in the observation.*\['counters', 'image'\]"
    ):
        make(observe=SimulatorKeys(state=("joints",)))


def test_declared_keys_refuse_an_observation_without_entries():
    with pytest.raises(MissingKeyError, match="got ndarray with None"):
        SimulatorKeys(state=("joints",))(np.zeros(3))


def test_missing_success_lists_what_info_has():
    env = make(1, success_key="solved")
    with pytest.raises(
        MissingKeyError, match=r"info\['solved'\] in environment 0.*\['is_success'\]"
    ):
        act(env, env.reset())


@pytest.mark.parametrize(
    ("observe", "message"),
    [
        (lambda raw: {"image": raw["image"] / 255.0}, "uint8 image .* got float64"),
        (
            lambda raw: {"state": raw["counters"][None]},
            r"a vector at 'state'.*\(1, 3\)",
        ),
        (
            lambda raw: {"environment_state": raw["counters"][None]},
            r"a vector at 'environment_state'.*\(1, 3\)",
        ),
        (lambda raw: {"pixels": raw["image"]}, r"'state' and/or 'image'.*'pixels'"),
        (lambda raw: {}, r"'state' and/or 'image'.*\[\]"),
    ],
)
def test_observation_outside_the_schema_raises(observe, message):
    with pytest.raises(SchemaError, match=message):
        make(1, observe=observe)


class ChannelsFirst(Counter):
    observation_space = gymnasium.spaces.Dict(
        counters=Box(-np.inf, np.inf, (3,)), image=Box(0, 255, (3, 32, 32), np.uint8)
    )

    def observe(self):
        image = np.zeros((3, 32, 32), np.uint8)
        image[2, 5, 7] = 9
        return {**super().observe(), "image": image}


def test_a_picture_whose_channels_come_first_is_declared_or_refused():
    with pytest.raises(SchemaError, match=r"got shape \(3, 32, 32\).*moveaxis.*chann"):
        make(1, ChannelsFirst)
    declared = SimulatorKeys(
        state=("counters",), images={"top": "image"}, channels_first=True
    )
    top = make(1, ChannelsFirst, observe=declared).reset()[
        "observation", "image", "top"
    ]
    assert top.shape == (1, 3, 32, 32)
    assert top.nonzero().tolist() == [[0, 2, 5, 7]]
    with pytest.raises(SchemaError, match=r"C of \(1, 3, 4\) at 'image'"):
        make(1, observe=SimulatorKeys(images="image", channels_first=True))


def test_observation_unlike_its_space_raises():
    class Liar(Counter):
        def observe(self):
            return {**super().observe(), "counters": np.zeros(5)}

    env = make(1, Liar)
    with pytest.raises(SchemaError, match=r"\(3,\).*observation_space.*\(5,\)"):
        env.reset()


def test_rows_that_differ_are_refused():
    other = functools.partial(Counter, action_space=Box(-1.0, 1.0, (4,)))
    with pytest.raises(SchemaError, match=r"same actions and observations.*in 1. Make"):
        make(None, [Counter, other])


def test_discrete_actions_are_refused():
    with pytest.raises(SchemaError, match=r"Box of one dimension.*Discrete"):
        make(1, functools.partial(Counter, action_space=Discrete(3)))


def test_metadata_must_fit_the_simulator():
    metadata = RobotDatasetMetadata("mine", action_dim=7, state_dim=3)
    with pytest.raises(SchemaError, match=r"action_dim=2 and state_dim=3.*7 and 3"):
        make(metadata=metadata)


def test_metadata_declares_sizes_and_bounds():
    metadata = make().metadata
    assert (metadata.action_dim, metadata.state_dim) == (2, 3)
    assert metadata.action_high == (1.0, 1.0)


def test_unbounded_actions_stay_unbounded():
    space = Box(np.float32([-np.inf, -1]), np.float32([np.inf, 1]))
    env = make(1, functools.partial(Counter, action_space=space))
    assert env.metadata.action_low is None
    check_env_specs(env)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 4}, r"num_workers in 0 \.\. 3.*got 4"),
        ({"max_steps": 0}, "max_steps >= 1, got 0"),
        ({"instructions": ["count"]}, "3 at argument 'instructions', got 1"),
        ({"make_env": [Counter]}, "3 at argument 'make_envs', got 1"),
        ({"make_env": [], "num_envs": None}, "at least one at argument 'make_envs'"),
    ],
)
def test_numbers_that_disagree_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"num_envs": 3, **arguments})


def test_negative_seeds_are_refused():
    with pytest.raises(ValueError, match=r"episode_seeds >= 0, got \[-1, 2\]"):
        make(2).reset(episode_seeds=torch.tensor([-1, 2]))


def test_reset_of_no_row_changes_nothing():
    env = make(2)
    td = act(env, env.reset(episode_seeds=torch.tensor([1, 2])))
    again = env.reset(td.clone().set("_reset", torch.zeros(2, 1) > 0))
    assert state(again) == state(td)


def test_a_plain_gymnasium_environment_runs():
    env = make(
        2,
        lambda: Upright(gymnasium.make("Pendulum-v1")),
        observe=lambda observation: {"state": observation},
        success_key="upright",
        max_steps=5,
    )
    rollout = env.rollout(20, break_when_any_done=False)
    assert rollout.shape == (2, 20)
    assert rollout["next", "truncated"].sum() == 8


class Upright(gymnasium.Wrapper):
    def step(self, action):
        observation, *rest, info = self.env.step(action)
        return observation, *rest, {**info, "upright": observation[0] > 0.95}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_action_of_another_float_is_executed(dtype):
    env = make(2)
    td = env.reset(episode_seeds=torch.tensor([1, 2]))
    td["action"] = torch.full((2, 2), 0.5, dtype=dtype)
    assert state(env.step(td)["next"]) == [[1, 1, 1], [2, 1, 1]]


@pytest.mark.parametrize("width", [1, 3])
def test_an_action_of_another_width_moves_nothing(width):
    env = make(2)
    td = env.reset(episode_seeds=torch.tensor([1, 2]))
    td["action"] = torch.zeros(2, width)
    with pytest.raises(SchemaError, match=rf"A = 2 at 'action', got \[2, {width}\]"):
        env.step(td)
    assert state(act(env, td)) == [[1, 1, 1], [2, 1, 1]]


def make_counting_whole_numbers(num_envs=2):
    space = Box(0, 3, (2,), np.int64)
    return make(num_envs, functools.partial(Counter, action_space=space))


def test_an_integer_action_is_rounded_not_cut_off():
    env = make_counting_whole_numbers()
    td = env.reset(episode_seeds=torch.tensor([1, 2]))
    td["action"] = torch.tensor([[1.9, 0.2], [3.4, -0.4]])
    assert state(env.step(td)["next"]) == [[1, 1, 2], [2, 1, 3]]


def test_an_integer_action_out_of_range_is_refused():
    env = make_counting_whole_numbers()
    td = env.reset(episode_seeds=torch.tensor([1, 2]))
    td["action"] = torch.tensor([[0.0, 0.0], [0.0, 3.6]])
    with pytest.raises(SchemaError, match=r"whole numbers .* env index 1, dimension 1"):
        env.step(td)


def test_a_step_before_the_first_reset_is_refused():
    env = make(2)
    td = env.fake_tensordict().set("action", torch.zeros(2, 2))
    with pytest.raises(
        ExecutionError, match=r"a step before the first reset\. Call td"
    ):
        env.step(td)


class Says(Counter):
    """Says a value as success, and maybe other flags or rewards."""

    def __init__(self, answer, name="is_success", at_reset=None):
        super().__init__()
        self.answer, self.name, self.at_reset = answer, name, at_reset

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed)
        return observation, info if self.at_reset is None else self.at_reset

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        answers = {"reward": reward, "terminated": terminated, "truncated": truncated}
        answers |= {self.name: self.answer}
        info |= {"is_success": answers.get("is_success", False)}
        return (
            observation,
            *(answers[key] for key in ("reward", "terminated", "truncated")),
            info,
        )


@pytest.mark.parametrize("value", [0.02, 2, float("nan"), "False", {"a": False}, None])
@pytest.mark.parametrize("name", ["is_success", "terminated", "truncated"])
def test_a_flag_is_never_judged_by_its_truth_value(name, value):
    env = make(2, functools.partial(Says, value, name))
    advice = "success=lambda obs" if name == "is_success" else "Wrap the simulator"
    with pytest.raises(SchemaError, match=rf"a bool, 0 or 1 at .*{advice}") as e:
        act(env, env.reset())
    assert e.value.env_indices == (0,)


@pytest.mark.parametrize("value", [True, 1, 1.0, np.array([1]), np.bool_(True)])
def test_a_success_of_one_number_is_one(value):
    env = make(1, functools.partial(Says, value))
    assert act(env, env.reset())["success"].item()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "much"])
def test_a_reward_that_is_no_finite_number_is_refused(value):
    env = make(1, functools.partial(Says, value, "reward"))
    with pytest.raises(SchemaError, match="one finite number at the reward of env"):
        act(env, env.reset())


class Scores(Counter):
    def step(self, action):
        *rest, _ = super().step(action)
        return *rest, {"score": self.counters[1] / 4}


def make_scoring(success, num_workers=0):
    interface = SimulatorInterface(OBSERVE, success=success)
    return GymnasiumEnv(
        Scores,
        interface,
        instructions="count",
        options=SimulatorOptions(num_workers=num_workers),
    )


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_function_says_when_the_task_is_done(num_workers):
    env = make_scoring(
        lambda obs, reward, terminated, info: info["score"] >= 0.5 and not terminated,
        num_workers,
    )
    td = env.reset()
    assert not td["success"].item()  # the info of a reset has no score
    for expected in (False, True):
        td = act(env, td)
        assert td["success"].item() is expected
    env.close()


def test_what_the_function_returns_is_a_flag_too():
    env = make_scoring(lambda obs, reward, terminated, info: info["score"])
    with pytest.raises(SchemaError, match=r"function success= .* got .*0\.25"):
        act(env, env.reset())


def test_success_is_declared_exactly_once():
    for options in ({}, {"success_key": "a", "success": lambda *args: True}):
        with pytest.raises(SettingsError, match="expected success_key= or success=, g"):
            SimulatorInterface(OBSERVE, **options)


@pytest.mark.parametrize(
    ("info", "expected"),
    [({"is_success": True}, True), ({"is_success": None}, False), ({}, False)],
)
def test_a_task_may_be_done_at_the_reset(info, expected):
    env = make(1, functools.partial(Says, False, at_reset=info))
    assert env.reset()["success"].item() is expected


def test_the_answer_of_a_reset_is_a_flag_too():
    env = make(1, functools.partial(Says, False, at_reset={"is_success": 0.3}))
    with pytest.raises(SchemaError, match=r"success at the reset .* got 0\.3"):
        env.reset()


def test_an_error_of_the_simulator_names_its_environment():
    makers = [Counter, functools.partial(Counter, breaks_at=1)]
    env = make(None, makers)
    with pytest.raises(SimulationError, match="environment 1 to answer, got") as e:
        act(env, env.reset())
    assert "the robot fell off the table" in str(e.value)
    assert e.value.env_indices == (1,)


infos = st.dictionaries(
    st.sampled_from(["is_success", "other"]) | st.text(max_size=3),
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.booleans(), max_size=2)
    | st.just({"is_success": True}),
    max_size=3,
)


@settings(deadline=None)
@given(infos, st.booleans())
def test_any_info_is_read_as_it_is_or_refused(info, at_reset):
    class Random(Counter):
        def reset(self, *, seed=None, options=None):
            observation, _ = super().reset(seed=seed)
            return observation, info if at_reset else {}

        def step(self, action):
            *rest, own = super().step(action)
            return *rest, own if at_reset else info

    value = info.get("is_success")
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    legal = isinstance(value, bool | int | float) and value in (0, 1)
    env = make(1, Random)
    try:
        td = env.reset() if at_reset else act(env, env.reset())
    except VLAError:
        assert not legal
        assert not at_reset or value is not None
    else:
        assert td["success"].item() == (value if legal else False)
        assert legal or (at_reset and value is None)
