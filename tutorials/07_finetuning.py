"""Fine-tuning by reinforcement learning
=====================================

``env --> policy --> decisions --> advantages --> loss(policy)``, around and around.

Imitation inherits the demonstrator's mistakes. Here the demonstrator misses its target
by a constant, so the cloned policy misses too. Its own successes are enough to correct
it: PPO over chunks, from cloning to a paired comparison, in under a minute.
"""

# %%
# A demonstrator that misses
# --------------------------
#
# The toy robot has to hold its action near a target that is in its state. The
# demonstrator aims 0.18 too far to the right, where 0.15 still counts as a success.
# With some noise it succeeds in a part of the episodes, and demonstrations are those.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from tensordict.nn import TensorDictModule

from torchrl_vla.data import collect
from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.objectives import ChunkPPOLoss
from torchrl_vla.policies import BackboneConfig, TinyVLA
from torchrl_vla.recipes import (
    PPO,
    FinetuneSettings,
    Rollouts,
    finetune,
    make_decision_env,
    to_stochastic,
    TrainingSettings,
    train_behavior_cloning,
)
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.schema import InstructionTable

torch.set_num_threads(1)  # small networks: more threads cost more than they give
H = 4


def make_env(num_envs):
    """Make toy robots."""
    return ToyVLAEnv(
        action_dim=2,
        state_dim=4,
        success_steps=3,
        success_tol=0.15,
        max_steps=16,
        instructions=InstructionTable(),
        batch_size=[num_envs],
        seed=0,
    )


def aim_too_far_right(state):
    """Hit a point beside the target, more or less."""
    target = state[..., 2:4]
    return target + torch.tensor([0.18, 0.0]) + 0.05 * torch.randn_like(target)


env = make_env(64)
demonstrator = TensorDictModule(
    aim_too_far_right, in_keys=[("observation", "state")], out_keys=["action"]
)
folder = Path(tempfile.mkdtemp())
torch.manual_seed(0)
dataset = collect(
    env,
    demonstrator,
    100,
    folder=folder / "demos",
    max_attempts=2000,
    progress=False,
)

# %%
# Clone it
# --------
#
# As in the third tutorial. The clone aims where the demonstrator aimed.

space = ModelSpace(dataset.metadata)
cloned = TinyVLA(
    action_dim=2,
    chunk_size=H,
    instructions=env.instructions,
    backbone=BackboneConfig(state_dim=4, cameras=(), hidden=64),
)
settings = TrainingSettings(steps=300)
train_behavior_cloning(cloned, dataset, settings, space=space, progress=False)

# %%
# Give it something to try
# ------------------------
#
# A deterministic policy gives its actions no probability, so there is nothing to make
# likelier. ``to_stochastic`` puts a Gaussian around what the clone predicts (a token
# policy draws already, a flow gets noise on its steps). Without sampling it acts as
# before.

policy = to_stochastic(cloned, initial_std=0.3)

# %%
# What PPO learns from
# --------------------
#
# ``make_decision_env`` puts the environment in model space, where one step is one
# *decision*: ``MultiAction`` executes the chunk and says which of its positions were
# executed. A decision that achieves the task earns 1, whatever the toy's own reward.
# The log-probabilities that a collector stores are those that the loss computes again:
# before the first update every ratio is 1.

rollouts = Rollouts(make_decision_env(make_env(64), space, chunk_size=H), policy, 4)
decisions = rollouts.collect(0).reshape(-1)
rollouts.close()
decisions["advantage"] = torch.randn(len(decisions), 1)
losses = ChunkPPOLoss(policy)(decisions)
print({key: losses[key].item() for key in ("max_ratio", "clip_fraction", "kl_approx")})
assert losses["max_ratio"].item() == 1.0
executed = decisions["next", "is_executed"]
print(f"{(~executed).sum()} of {executed.numel()} predicted actions were not executed")
assert not executed.all()  # success ended those episodes in mid-chunk

# %%
# The loop
# --------
#
# ``finetune`` collects, estimates advantages with a critic (a decision of ``k`` steps
# discounts by ``gamma ** k``), takes the optimizer steps, and evaluates on the same
# initial states before, during and after. Kill it, run it again, and it ends with the
# same weights.

result = finetune(
    policy,
    space,
    env,
    folder / "finetuned",
    FinetuneSettings(
        algorithm=PPO(critic_warmup=2),
        iterations=40,
        minibatch_size=128,
        lr=1e-3,
        eval_episodes=100,
    ),
    progress=False,
)
print(result.comparison)

# %%
# Every line of the log is a row of a CSV file.

rows = result.log
fig, ax = plt.subplots(figsize=(5, 2.6))
iterations = [r["iteration"] for r in rows]
ax.plot(iterations, [r["train_success"] for r in rows], label="while learning")
evaluated = [r for r in rows if "success" in r]
ax.errorbar(
    [0, *(r["iteration"] for r in evaluated)],
    [result.before.success_rate, *(r["success"] for r in evaluated)],
    fmt="o",
    label="evaluation, without sampling",
)
ax.set(xlabel="iteration", ylabel="success rate", ylim=(0, 1.02))
ax.legend()
fig.tight_layout()

# %%
# The claim of this page, on paired episodes.

assert result.comparison.difference > 0.2
assert result.comparison.is_decided
