"""Fine-tuning action tokens
=========================

``env --> policy --> executor --> env``, and back into the policy by TorchRL's
``ClipPPOLoss``.

A token policy gives every action a probability, so what it did can be made more or less
likely. That only works if the log-probability that was stored when the policy acted is
the one that the loss computes again later. This page checks the identity behind it:
*before the first update every ratio is 1 and nothing is clipped*.
"""

# %%
# A token policy
# --------------
#
# ``TinyTokenVLA`` predicts, for each of ``H`` steps and ``A`` dimensions, a
# distribution over the tokenizer's bins. The bins span the bounds that the metadata
# declare, so the tokenizer is the whole border here: its decoded actions are in robot
# space.

import tempfile

import torch
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, InitTracker, TransformedEnv
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiStepActorWrapper, select_decisions
from torchrl_vla.objectives import TokenBCLoss
from torchrl_vla.policies import BackboneConfig, TinyTokenVLA
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import ActionChunkTransform, ActionTokenizerTransform

torch.set_num_threads(1)  # small networks: more threads cost more than they give
H = 4
env = TabletopEnv(num_envs=64, image_size=32, num_blocks=2, seed=0)
tokenizer = UniformActionTokenizer.from_metadata(env.metadata, num_bins=11)

torch.manual_seed(0)
policy = TinyTokenVLA(
    action_dim=2,
    chunk_size=H,
    action_tokenizer=tokenizer,
    instructions=env.instructions,
    backbone=BackboneConfig(state_dim=2, hidden=128),
)

# %%
# A warm start
# ------------
#
# Reinforcement learning from a sparse reward needs some successes to begin with. A
# short cross-entropy training on demonstrations gives them: the chunks of the second
# tutorial, encoded by the policy's own tokenizer, and ``TokenBCLoss``, masked like
# ``BCLoss``.

folder = tempfile.mkdtemp() + "/reach"
dataset = collect(env, env.make_expert(noise=0.3), 300, folder=folder, progress=False)
buffer = dataset.replay_buffer(64, seed=0)
buffer.append_transform(ActionChunkTransform(H, storage=dataset.storage))
buffer.append_transform(ActionTokenizerTransform(tokenizer, in_key="action_chunk"))
cloning = TokenBCLoss(policy)
optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
for step in range(600):
    loss = cloning(buffer.sample())["loss_bc"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0 or step == 599:
        print(f"step {step:>3}: {loss.item():.2f} nats per token")
policy.eval()

# %%
# Roll out
# --------
#
# A TorchRL collector samples (``RANDOM``); the executor serves the chunks one action a
# step. The rollout holds, at every step, the tokens and log-probs of the chunk *in
# execution*. They were computed from the observation of the step on which the policy
# was called, and from no other, so those are the steps to train on:
# ``select_decisions`` keeps them, with the reward that followed.

collector = Collector(
    TransformedEnv(env, InitTracker()),
    MultiStepActorWrapper(policy),
    frames_per_batch=64 * 80,
    total_frames=64 * 80,
    exploration_type=ExplorationType.RANDOM,
)
rollout = next(iter(collector))
collector.shutdown()
decisions = select_decisions(rollout, chunk_size=H)
print(len(decisions), "decisions in", rollout.numel(), "steps")

# %%
# An advantage
# ------------
#
# The simplest honest one: the outcome of the decision's episode, minus the mean
# outcome. Episodes that the batch has cut off have no outcome yet and get none. (With a
# critic, TorchRL's ``GAE`` goes here; discount by ``gamma ** executed_steps``, since
# decisions last for different times.)

episode = decisions["collector", "traj_ids"]
count = int(episode.max()) + 1
reward = decisions["next", "reward"][:, 0]
outcome = torch.zeros(count).index_add_(0, episode, reward)
ended = torch.zeros(count).index_add_(
    0, episode, decisions["next", "done"][:, 0].float()
)
complete = ended[episode] > 0
baseline = outcome[ended > 0].mean()
print(f"{int(ended.sum())} episodes ended, {100 * baseline:.0f} % of them in success")
advantage = torch.where(complete, outcome[episode] - baseline, 0.0)
decisions["advantage"] = advantage.unsqueeze(-1)

# %%
# The identity
# ------------
#
# The policy goes into ``ClipPPOLoss`` as it is; only the keys have to be named. With
# unchanged weights, the log-probs computed now are those stored then, so the ratio is
# 1, nothing is clipped and the divergence is 0. If this fails, something between acting
# and training differs (rows that are no decisions, dropout, another scaling), and PPO
# would go on and train on it without a complaint. Check it first in every new setup.

ppo = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
ppo.set_keys(action="action_tokens", sample_log_prob="log_probs", advantage="advantage")
losses = ppo(decisions)
with torch.no_grad():
    ratio = (policy.log_prob(decisions) - decisions["log_probs"]).exp()
print("ratios from", ratio.min().item(), "to", ratio.max().item())
print({key: losses[key].item() for key in ("clip_fraction", "kl_approx")})
# A matrix product may round differently for 64 rows than for a thousand.
torch.testing.assert_close(ratio, torch.ones(len(decisions)), atol=1e-4, rtol=0)
assert losses["clip_fraction"].item() == 0.0
assert abs(losses["kl_approx"].item()) < 1e-4

# %%
# What goes wrong without ``select_decisions``: on a step in mid-chunk, the stored
# log-prob belongs to another observation, and the ratio is not 1 although nothing has
# changed.

middle = rollout[~rollout["is_decision"][..., 0]][:500]
with torch.no_grad():
    wrong_ratio = (policy.log_prob(middle) - middle["log_probs"]).exp()
low, high = wrong_ratio.quantile(torch.tensor([0.1, 0.9])).tolist()
print(
    f"ratios in mid-chunk, from the 10 % to the 90 % quantile: {low:.3f} to {high:.3f}"
)

# %%
# One update
# ----------
#
# One gradient step on the surrogate. What it promises is not a better success rate
# (that takes many batches) but this: what has a positive advantage becomes more likely,
# against what has a negative one.

optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
optimizer.zero_grad()
losses["loss_objective"].backward()
optimizer.step()

with torch.no_grad():
    change = policy.log_prob(decisions) - decisions["log_probs"]
good, bad = advantage > 0, advantage < 0
print(f"log-prob of decisions in successful episodes: {change[good].mean():+.3f}")
print(f"log-prob of decisions in failed episodes:     {change[bad].mean():+.3f}")

# %%
# The claims: there was something to learn from, the ratio was 1 on decisions only, and
# the update moved the probabilities the way the advantages point.

assert 0 < baseline < 1
assert (wrong_ratio - 1).abs().median() > 0.05
assert change[good].mean() > change[bad].mean()
assert (advantage * change).mean() > 0
