"""A VLA policy, from data to reinforcement learning
=================================================

Demonstrations, chunks, cloning, chunked inference and fine-tuning by reinforcement
learning, in one piece. Each part has a tutorial of its own, which the text names.
"""

# %%
# A task in pictures and words
# ----------------------------
#
# A gripper over a table, blocks of different colours, and an instruction that names one
# of them. The policy sees a camera image of 32 by 32 pixels, where its gripper is, and
# the words.

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate, shuffle_instructions
from torchrl_vla.recipes import (
    PPO,
    FinetuneSettings,
    TrainingSettings,
    finetune,
    make_policy,
    make_space,
    train_behavior_cloning,
)

torch.set_num_threads(1)  # small networks: more threads cost more than they give
folder = Path(tempfile.mkdtemp())
env = TabletopEnv(num_envs=64, image_size=32, seed=0)

first = env.reset()
fig, axes = plt.subplots(1, 4, figsize=(8, 2.4))
texts = env.instructions.decode(first["language_instruction"][:4])
for ax, image, text in zip(axes, first["observation", "image"], texts):
    ax.imshow(image.permute(1, 2, 0))
    ax.set_title(text, fontsize=7)
    ax.axis("off")
fig.tight_layout()

# %%
# Demonstrations
# --------------
#
# A scripted expert shows 480 episodes, as many of each instruction. Noise on what it
# executes makes it show how to recover; the stored action is what it meant. The dataset
# lies on disk with the metadata (units, bounds, statistics) that everything after it
# checks against. *More: 01_demonstrations.py; data of LeRobot: 06_lerobot.py.*

expert = env.make_expert(noise=0.3, seed=0)
dataset = collect(
    env, expert, 480, folder=folder / "demos", balanced=True, progress=False
)
print(dataset.num_episodes, "episodes,", len(dataset), "frames")

# %%
# Chunks
# ------
#
# The policy predicts the next ``H`` actions at once, as tokens: each dimension of each
# action is one of a few bins. The space makes the transforms of the replay buffer: the
# chunk of each frame, with ``action_is_pad`` True past the end of its episode, and
# normalized states and actions. *More: 02_transforms.py.*

H = 8
space = make_space(dataset.metadata, "tokens")
buffer = dataset.replay_buffer(
    4, transform=space.transforms(H, dataset.storage), seed=0
)
batch = buffer.sample()
print(batch["action_chunk"].shape, batch["action_is_pad"].sum(-1))

# %%
# Cloning
# -------
#
# A small policy with an image encoder that the words steer. ``train_behavior_cloning``
# minimizes the cross-entropy of the tokens and leaves padded actions out. *More:
# 03_cloning.py, for a policy that predicts numbers.*

torch.manual_seed(0)
policy = make_policy(dataset, chunk_size=H, head="tokens", hidden=128)
settings = TrainingSettings(steps=1200, batch_size=64)
log = train_behavior_cloning(policy, dataset, settings, space=space, progress=False)
print("nats per token, first and last:", log.losses[0][1], log.losses[-1][1])

# %%
# Chunked inference
# -----------------
#
# An executor gives the environment one action a step and calls the policy again at the
# end of each chunk. ``evaluate`` runs episodes that are not the demonstrations'. With a
# random instruction success falls, so the policy uses the words. *More:
# 04_chunked_execution.py, 08_executors.py.*

executor = space.executor(policy)
result = evaluate(env, executor, 200, progress=False)
print(result)
shuffled = evaluate(
    env, shuffle_instructions(executor, env.instructions), 200, progress=False
)
print(f"with shuffled instructions: {100 * shuffled.success_rate:.0f} %")

# %%
# Reinforcement learning
# ----------------------
#
# The policy samples its tokens, so it tries other chunks than the likeliest. PPO makes
# those likelier that led to success; before and after are compared on the same initial
# states. *More: 05_token_finetuning.py, 07_finetuning.py, and the loop written out in
# 09_ppo.py.*

tuned = finetune(
    policy,
    space,
    TabletopEnv(num_envs=256, image_size=32, seed=0),
    folder / "finetuned",
    FinetuneSettings(
        algorithm=PPO(gamma=0.95),
        iterations=12,
        lr=5e-4,
        eval_interval=12,
    ),
    eval_env=env,
    progress=False,
)
print(tuned.comparison)

# %%
# The claims of this page.

assert result.interval[0] > shuffled.interval[1]
assert tuned.comparison.difference > 0.1
assert tuned.comparison.is_decided
