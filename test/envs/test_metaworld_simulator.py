from __future__ import annotations

import numpy as np
import pytest

from torchrl_vla.envs.metaworld_simulator import SawyerTasks, SimulatorPool

SIZE = 64


def make(*tasks, cameras=(), image_size=SIZE, **kwargs):
    return SawyerTasks(tasks, SimulatorPool(cameras, image_size), **kwargs)


@pytest.fixture
def images(opengl):
    """Return a function that draws a task."""
    envs = []

    def draw(*args, seed=0, **kwargs):
        envs.append(make(*args, **kwargs))
        envs[-1].reset(seed=seed)
        return envs[-1].render_images()

    yield draw
    for env in envs:
        env.close()


def trajectory(task, seed, actions):
    states = [task.reset(seed=seed)[0]["state"]]
    states += [task.step(action)[0]["state"] for action in actions]
    return np.stack(states)


@pytest.mark.parametrize("name", ["reach", "pick-place", "door-open", "drawer-close"])
def test_an_episode_is_a_function_of_its_seed_whatever_came_before(name):
    actions = np.random.default_rng(0).uniform(-1, 1, (15, 4)).astype(np.float32)
    fresh, used = make(name), make(name)
    for seed in (1, 2):
        trajectory(used, seed, actions)
        np.random.seed(seed)  # the package's default source of goals
    expected = trajectory(fresh, 5, actions)
    assert np.array_equal(trajectory(used, 5, actions), expected)
    assert not np.array_equal(trajectory(used, 6, actions)[0], expected[0])


def test_the_goal_is_visible_at_reset_and_after_every_step():
    states = trajectory(make("reach"), 3, np.zeros((2, 4), np.float32))
    goal = states[0, -3:]
    assert (goal >= (-0.1, 0.8, 0.05)).all()  # the box that goals are drawn from
    assert (goal <= (0.1, 0.9, 0.3)).all()
    assert (states[:, -3:] == goal).all()


def test_the_previous_frame_follows_the_current_one():
    states = trajectory(make("push"), 3, np.ones((2, 4), np.float32))
    assert np.array_equal(states[1:, 18:36], states[:-1, :18])


def test_an_action_of_one_moves_the_commanded_position_by_a_centimetre():
    task = make("reach")  # the unit of the actions in the metadata
    task.reset(seed=0)
    command = task._lent.env.data.mocap_pos[0]
    before = command.copy()
    for _ in range(10):
        task.step(np.float32([0.0, 1.0, -0.5, 0.0]))
    command = task._lent.env.data.mocap_pos[0]
    assert command - before == pytest.approx([0.0, 0.10, -0.05], abs=1e-6)


def test_the_control_rate_is_the_one_that_the_metadata_says():
    assert 1 / make("reach")._lent.env.dt == pytest.approx(80.0)


def test_the_package_limit_of_500_steps_is_not_ours():
    task = make("reach", stop_on_success=False)
    task.reset(seed=0)
    flags = [task.step(np.zeros(4, np.float32))[2:4] for _ in range(502)]
    assert not np.any(flags)


def test_consecutive_seeds_take_turns_through_the_tasks():
    env = make("reach", "push", "door-open")
    texts = [env.reset(seed=seed)[0]["instruction"] for seed in (3, 4, 5, 6)]
    assert texts == [
        "reach the goal",
        "push the puck to the goal",
        "open the door",
        "reach the goal",
    ]


def test_an_episode_does_not_depend_on_which_simulator_is_lent():
    actions = np.full((10, 4), 0.3, np.float32)
    pool = SimulatorPool()
    envs = [SawyerTasks(("reach", "push"), pool) for _ in range(2)]
    expected = trajectory(make("reach", "push"), 7, actions)
    for env, other in ((0, 1), (1, 0), (0, 1)):
        trajectory(envs[other], 7 + other, actions)
        assert np.array_equal(trajectory(envs[env], 7, actions), expected)


def test_a_pool_makes_no_simulator_while_one_of_the_task_is_free():
    pool = SimulatorPool()
    first = pool.take("reach")
    assert pool.take("reach") is not first
    pool.give_back(first)
    assert pool.take("reach") is first


def test_a_reset_without_seed_goes_on_from_the_last():
    def draw():
        env = make("reach")
        env.reset(seed=1)
        return [env.reset()[0]["state"] for _ in range(2)]

    first, second = draw(), draw()
    assert np.array_equal(first, second)
    assert not np.array_equal(first[0], first[1])


def test_images_have_the_size_and_the_cameras_asked_for(images):
    image = images("reach", cameras=("corner2",), one_image=True)
    assert image.shape == (SIZE, SIZE, 3)
    assert image.dtype == np.uint8
    assert image.std() > 20  # a scene, not a blank
    views = images("reach", cameras=("topview", "gripperPOV"), image_size=32)
    assert {name: view.shape for name, view in views.items()} == {
        "topview": (32, 32, 3),
        "gripperPOV": (32, 32, 3),
    }


def test_the_goal_moves_in_the_image_with_the_seed(images):
    first, second = (
        images("reach", cameras=("topview",), one_image=True, seed=seed)
        for seed in (0, 1)
    )
    assert (first != second).any()


@pytest.mark.parametrize("cameras", [(), ("corner2",)])
def test_observations_have_no_images(cameras):
    observed = make("reach", cameras=cameras).reset(seed=0)[0]
    assert set(observed) == {"state", "instruction"}


def test_unknown_cameras_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"'topview', 'corner'.*got \['wrist'\]"):
        make("reach", cameras=("topview", "wrist"))
