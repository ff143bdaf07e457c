"""From a dataset to a robot
=========================

``robot --record--> dataset --train--> policy --gate--> robot``, and around again.

An SO-101 arm stands before a red cube. A person shows how to reach it, a policy learns
it, the doctor checks that acting is what training was, the policy moves the arm behind
a safety gate, the person corrects it where it fails, and the corrected policy is
compared with the first one on the same episodes. The arm is simulated, with the delays,
limits and noise of hardware; on a desk, ``LeRobotRobot`` takes its place.

It needs the extra ``so101`` as well: ``pip install -e '.[docs,so101]'``.
"""

# %%
# The arm
# -------
#
# A robot has six members: what its numbers mean, ``connect``, ``observe``, ``send``,
# ``disconnect``, and whether it is connected. Names and units are those of LeRobot's
# driver: degrees, and percent for the gripper. The arm obeys a clock; with a
# ``FakeClock`` an hour of control takes the time of its physics and is the same each
# time. Without it, the arm runs in real time.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from torchrl_vla.data import aggregate, collect
from torchrl_vla.diagnosis import diagnose
from torchrl_vla.evaluation import compare, evaluate
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.recipes import TrainingSettings, train_behavior_cloning
from torchrl_vla.runtime import (
    CorrectionPolicy,
    GateOptions,
    RobotEnv,
    SafetyGate,
    TeleoperatorPolicy,
)
from torchrl_vla.runtime.so101 import SO101Robot, SO101Teleoperator
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.testing import FakeClock

torch.set_num_threads(1)  # small networks: more threads cost more than they give
torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())
RATE_HZ, H, CAMERAS = 30.0, 8, ("front",)

clock = FakeClock()
robot = SO101Robot(
    colors=("red",), cameras=CAMERAS, image_size=48, rate_hz=RATE_HZ, clock=clock
)
for name, unit, low, high in zip(
    robot.metadata.action_names,
    robot.metadata.action_units,
    robot.metadata.action_low,
    robot.metadata.action_high,
):
    print(f"{name:<18} {low:7.1f} .. {high:6.1f} {unit}")

# %%
# The only way to it
# ------------------
#
# ``RobotEnv`` is an environment of TorchRL, so that collecting, executing and
# evaluating are what they were in the other tutorials. Every action goes through a
# ``SafetyGate``: finite, within the limits, at most 20 degrees from the one before, and
# an answer to a fresh observation of this episode.

gate = SafetyGate(robot, GateOptions("clip", max_step=20.0), clock=clock)
env = RobotEnv(
    gate,
    task=robot.instruction,
    max_steps=45,
    success=lambda observed: robot.is_successful,
    on_reset=robot.place,
)

# %%
# Record
# ------
#
# The person is a script here, which sees where the cube is. A leader arm would be
# ``LeRobotTeleoperator``. The command ``torchrl-vla record --robot so101 --teleoperator
# so101`` does the same in real time, with keys to end an episode or to record it again,
# and writes a LeRobot dataset.

person = SO101Teleoperator(robot)
person.connect()
recording = TeleoperatorPolicy(person, rate_hz=RATE_HZ)
options = {"progress": False, "labels": "clamp"}
demonstrations = collect(env, recording, 16, folder=folder / "demos", **options)
print(demonstrations)

images = demonstrations.frames["observation", "image", "front"]
figure, axes = plt.subplots(1, 6, figsize=(9, 1.7))
for axis, index in zip(axes, range(0, 18, 3)):
    axis.imshow(images[index].permute(1, 2, 0))
    axis.axis("off")
figure.tight_layout()

# %%
# Train, and ask the doctor
# -------------------------
#
# The doctor sends recorded frames through training and through acting, and names the
# first stage at which they part: camera, units, normalization, chunk, rate.

space = ModelSpace(demonstrations.metadata)


def train(dataset, steps):
    """Train a policy from the same initial weights."""
    torch.manual_seed(0)
    policy = TinyVLA(
        action_dim=6,
        chunk_size=H,
        instructions=env.instructions,
        backbone=BackboneConfig(state_dim=6, cameras=CAMERAS, hidden=128),
    )
    settings = TrainingSettings(steps=steps, batch_size=32)
    train_behavior_cloning(policy, dataset, settings, space=space, progress=False)
    return policy


def make_executor(policy):
    """Execute half of each chunk, in the robot's units."""
    return space.executor(policy, replan_interval=H // 2)


first = train(demonstrations, steps=300)
diagnosis = diagnose(make_executor(first), demonstrations, env)
print(diagnosis)

# %%
# Run
# ---
#
# Every episode begins where its seed says, and no demonstration began there. What the
# gate had to change is in its log.

before = evaluate(env, make_executor(first), 32, seed=1, progress=False)
print(before)
print(gate.log)

# %%
# Correct
# -------
#
# DAgger: the policy acts, and where it has not arrived after half a second, the person
# takes over, in a state that the policy brought about. The robot comes to the person's
# pose on a line. Only what the person did is a target. Demonstrations and corrections
# become one dataset, in the space of the first policy. The second one is trained from
# the same initial weights, and for twice the steps, as it has about twice the labeled
# frames. (Twice the steps on the demonstrations alone end at about one half: 53 % on
# the machine that wrote this page.)

corrector = SO101Teleoperator(robot, hands_off_s=0.5)
corrector.connect()
corrected = CorrectionPolicy(
    make_executor(first),
    TeleoperatorPolicy(corrector, handover_s=0.1, rate_hz=RATE_HZ),
)
corrections = collect(
    env,
    corrected,
    60,
    folder=folder / "corrections",
    seed=1,
    successes_only=False,
    **options,
)
taught = corrections.frames["is_intervention"].float().mean().item()
print(f"the person acted on {taught:.0%} of {len(corrections.frames)} frames")

second = train(aggregate(demonstrations, corrections), steps=600)

# %%
# Before and after, on the same episodes
# --------------------------------------
#
# Arm and cube begin where they began for the first policy, so each episode is a pair.

after = evaluate(env, make_executor(second), 32, seed=1, progress=False)
comparison = compare(after, before, names=("corrected", "cloned"))
print(comparison)
env.close()

# %%
# The claims: the paths agree, nothing illegal reached the arm, and corrections help.

assert diagnosis.stages == ()
assert 0 < taught < 1
assert comparison.difference > 0.2
assert comparison.is_decided
assert not robot.is_connected
