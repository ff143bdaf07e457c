"""PPO written out
===============

``env --> policy --> decisions --> advantages --> loss(policy)``, without a recipe.

``finetune`` is one call. This page is the loop inside it, in thirty lines: TorchRL's
``Collector`` (which was ``SyncDataCollector`` before 0.14), ``DecisionGAE``,
``ChunkPPOLoss`` and an optimizer. Take it as the start of an algorithm of your own.
"""

# %%
# Environment, policy, critic
# ---------------------------
#
# The toy robot has to hold its action near a target that is in its state. The policy is
# a Gaussian over chunks of four actions. ``MultiAction`` executes a whole chunk in one
# step of the environment, so one step of the rollout is one *decision* of the policy.
# The reward is the toy's own, minus the distance to the target, summed over a decision;
# with a sparse reward, clone demonstrations first, as ``07_finetuning.py`` does.

import matplotlib.pyplot as plt
import torch
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, TransformedEnv

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.execution import MultiAction
from torchrl_vla.objectives import ChunkPPOLoss, DecisionGAE
from torchrl_vla.policies import (
    BackboneConfig,
    StdConfig,
    TinyCritic,
    TinyGaussianVLA,
)
from torchrl_vla.schema import InstructionTable

torch.set_num_threads(1)  # small networks: more threads cost more than they give
torch.manual_seed(0)
H, NUM_ENVS, NUM_DECISIONS = 4, 128, 4

env = ToyVLAEnv(
    action_dim=2,
    state_dim=4,
    success_steps=3,
    success_tol=0.25,
    max_steps=16,
    instructions=InstructionTable(),
    batch_size=[NUM_ENVS],
    seed=0,
)
decision_env = TransformedEnv(env, MultiAction(H))

policy = TinyGaussianVLA(
    action_dim=2,
    chunk_size=H,
    instructions=env.instructions,
    backbone=BackboneConfig(state_dim=4, cameras=(), hidden=64),
    std=StdConfig(initial=0.3),
)
critic = TinyCritic.from_policy(policy)

# %%
# Collect
# -------
#
# The collector calls the policy with sampling on (``RANDOM``). Each batch holds
# ``NUM_DECISIONS`` decisions of each environment: what the policy read, the chunk that
# it sampled and its log-probability, which positions were executed, and the reward.

collector = Collector(
    decision_env,
    policy,
    frames_per_batch=NUM_ENVS * NUM_DECISIONS,
    total_frames=-1,
    exploration_type=ExplorationType.RANDOM,
    auto_register_policy_transforms=False,  # the policy reads no is_init
)
batches = iter(collector)

# %%
# Learn
# -----
#
# ``DecisionGAE`` discounts a decision of ``k`` steps by ``gamma ** k``. The loss counts
# the executed positions only. Before the first update the importance ratio is 1: the
# log-probabilities of the rollout and of the loss agree.

loss_module = ChunkPPOLoss(policy, critic, clip_epsilon=0.2, granularity="action")
estimate_advantages = DecisionGAE(critic, gamma=0.95, lmbda=0.9)
optimizer = torch.optim.AdamW(
    [
        {"params": policy.parameters(), "lr": 3e-4},
        {"params": critic.parameters(), "lr": 1e-3},
    ],
    weight_decay=0.0,
)

success_rates, first_ratio = [], None
for iteration in range(40):
    batch = next(batches)
    decisions = estimate_advantages(batch).reshape(-1)
    advantage = decisions["advantage"]
    decisions["advantage"] = (advantage - advantage.mean()) / advantage.std()
    for _ in range(3):
        for rows in torch.randperm(len(decisions)).split(128):
            losses = loss_module(decisions[rows])
            if first_ratio is None:
                first_ratio = losses["max_ratio"].item()
            loss = losses["loss_objective"] + losses["loss_critic"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
    ended = batch["next", "done"]
    successes = batch["next", "success"] & ended
    success_rates.append((successes.sum() / ended.sum()).item())
    if iteration % 5 == 0:
        print(
            f"iteration {iteration:>2}: success {success_rates[-1]:.2f}, "
            f"kl {losses['kl_approx'].item():.4f}"
        )
collector.shutdown()

plt.figure(figsize=(5, 2.5))
plt.plot(success_rates)
plt.xlabel("iteration")
plt.ylabel("success while sampling")
plt.tight_layout()
plt.show()

# %%
# On several processes
# --------------------
#
# ``MultiSyncCollector`` takes the same arguments with a list of functions that make an
# environment; after each update call ``collector.update_policy_weights_(policy)``.
# ``WorkerRollouts`` of ``torchrl_vla.recipes`` does both, and refuses batches that were
# collected with other weights than those that are trained.
#
# The claims: nothing was clipped before the first update, and the policy learned.

assert first_ratio == 1.0
assert sum(success_rates[-5:]) / 5 > sum(success_rates[:5]) / 5 + 0.2
