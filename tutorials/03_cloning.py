"""Cloning
=======

``transforms --model--> loss(policy)``, then ``evaluate(env, actor)``.

A training loop over ``BCLoss``, written out. ``train_behavior_cloning`` is this loop
with a learning-rate schedule and averaged weights; there is nothing behind it. Then the
question that matters: does the robot do what it is told, and how sure are we?
"""

# %%
# Demonstrations
# --------------
#
# Small images and 600 episodes, so that this page runs in half a minute. The networks
# are small too: more threads cost more than they give.

import tempfile

import matplotlib.pyplot as plt
import torch
from torch import nn

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import (
    Recorder,
    evaluate,
    contact_sheet,
    shuffle_instructions,
)
from torchrl_vla.objectives import BCLoss
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.spaces import ModelSpace

torch.set_num_threads(1)
H = 8
env = TabletopEnv(num_envs=64, image_size=32, seed=0)
folder = tempfile.mkdtemp() + "/reach"
expert = env.make_expert(noise=0.3, seed=0)
dataset = collect(env, expert, 600, folder=folder, balanced=True, progress=False)

# %%
# One border for training and acting
# ----------------------------------
#
# ``ModelSpace`` makes, from one record of metadata, the transforms of the buffer and
# the actor that undoes them. A policy that is trained on normalized actions and
# executed without denormalizing them fails without an error; here the two cannot
# disagree.

space = ModelSpace(dataset.metadata)
transforms = space.transforms(H, dataset.storage)
buffer = dataset.replay_buffer(batch_size=64, transform=transforms, seed=0)
print(transforms)

# %%
# The loop
# --------
#
# ``BCLoss`` runs the policy on the batch and compares its chunk with the expert's where
# ``action_is_pad`` is False. It is TorchRL's loss, made strict: if the mask is missing,
# misspelt or inverted into another shape, it raises instead of averaging over padding.

torch.manual_seed(0)
policy = TinyVLA(
    action_dim=2,
    chunk_size=H,
    instructions=dataset.instructions,
    backbone=BackboneConfig(state_dim=2, hidden=128),
)
loss_module = BCLoss(policy, loss_function="l1")
steps = 600
optimizer = torch.optim.AdamW(policy.parameters(), lr=2e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.1)

losses = []
for _ in range(steps):
    batch = buffer.sample()
    loss = loss_module(batch)["loss_bc"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
policy.eval()

plt.figure(figsize=(5, 2.5))
plt.plot(range(20, steps + 1, 20), torch.tensor(losses).view(-1, 20).mean(-1))
plt.xlabel("step")
plt.ylabel("L1, model space")
plt.tight_layout()
plt.show()

# %%
# The curve stays flat for a while, falls when the policy has found out which block the
# words mean, and says nothing about success. For that, act.
#
# Evaluate
# --------
#
# ``space.executor`` is the way back: the state is normalized for the policy, its chunk
# is denormalized, and an executor gives the environment one action a step and asks the
# policy again every four.
#
# ``evaluate`` runs exactly as many episodes as asked, each from a seed of its own, and
# gives Wilson's interval. It holds near 0 and 1, where a success rate plus or minus its
# standard error does not: 20 successes in 20 episodes are compatible with 84 %.

actor = space.executor(policy, replan_interval=4)
recorder = Recorder(episodes=3)
result = evaluate(env, actor, 200, seed=1, recorder=recorder, progress=False)
print(result)

# %%
# The images are for us: the ring marks the named block, and neither the ring nor the
# gripper is in the camera image that the policy sees.

plt.figure(figsize=(9, 3.6))
plt.imshow(contact_sheet(recorder.videos, columns=8).permute(1, 2, 0))
plt.axis("off")
plt.tight_layout()
plt.show()

# %%
# A control
# ---------
#
# A success rate does not say what the policy used. So tell it a random instruction in
# each of the same episodes. If it listens, it falls to chance: it goes to the block
# that it was told, or wanders when there is none. A rate that stays up would mean that
# the words are decoration.

control = shuffle_instructions(actor, env.instructions)
shuffled = evaluate(env, control, 200, seed=1, progress=False)
print(shuffled)

# %%
# The claims: the loss fell, most episodes succeed, and the whole interval lies far
# above that of the control.

assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
assert result.interval[0] > 0.6
assert shuffled.interval[1] < 0.4
