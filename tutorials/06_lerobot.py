"""LeRobot
=======

``demonstrations --> LeRobot dataset --> LeRobot policy --> env``, and LeRobot's own
loop beside it.

LeRobot is where the field's datasets and checkpoints are. This page goes there and
back: demonstrations become a dataset that LeRobot opens, LeRobot's ACT is trained on it
with its own loss, and the checkpoint acts in an environment of ours. At the end
LeRobot's own code is given the same observations: *the actions are the same, bit for
bit*.

It needs the extra ``lerobot``: ``pip install -e '.[lerobot]'``.
"""

# %%
# Record
# ------
#
# ACT reads no text, so the tabletop is asked for one colour: the instruction is the
# same in every episode, and the other blocks are distractors.

import tempfile
from pathlib import Path

import torch
from torchrl.envs import InitTracker, TransformedEnv

from torchrl_vla.data import LeRobotExperienceReplay, collect, write_lerobot
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.recipes import (
    fit_lerobot_policy,
    load_executor,
    save_checkpoint,
    TrainingSettings,
    train_lerobot,
)

torch.set_num_threads(1)  # small networks: more threads cost more than they give
H = 8
folder = Path(tempfile.mkdtemp())
env = TabletopEnv(num_envs=16, colors=("red",), image_size=32, seed=0)
expert = env.make_expert(noise=0.3, seed=0)
recorded = collect(env, expert, 64, folder=folder / "ours", progress=False)
print(recorded)

# %%
# A dataset that LeRobot opens
# ----------------------------
#
# ``write_lerobot`` writes format v3.0: episodes, tasks, statistics, and images as PNG
# or video. Neither writing nor reading imports LeRobot.

write_lerobot(recorded, folder / "lerobot", images="png", progress=False)
print(sorted(str(p.relative_to(folder)) for p in folder.glob("lerobot/**/*.*")))

# %%
# Read back, a sample is a batch of single frames with chunk targets that end with their
# episode, under our names. Images are decoded when they are sampled; the numbers are
# one memory-mapped TensorDict.

replay = LeRobotExperienceReplay(
    folder / "lerobot",
    batch_size=64,
    chunk_size=H,
    seed=0,
    cache_folder=folder / "cache",
)
sample = replay.sample()
print(sample)
print(replay.instructions)

# %%
# Train ACT with its own loss
# ---------------------------
#
# ``fit_lerobot_policy`` makes an untrained policy for the dataset: sizes, cameras and
# statistics come from there. ACT's ResNet starts from random weights here (no download)
# and it is narrow. ``train_lerobot`` feeds ``LeRobotLoss``, which runs LeRobot's
# preprocessor and LeRobot's training loss (L1, masked by ``action_is_pad``, and KL).
# ``lr=None`` would take LeRobot's own rate, 1e-5: too slow for a page that runs in a
# minute.

torch.manual_seed(0)
policy = fit_lerobot_policy(
    "act",
    replay.dataset,
    config={
        "chunk_size": H,
        "n_action_steps": 4,
        "dim_model": 64,
        "n_heads": 4,
        "dim_feedforward": 128,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
        "latent_dim": 8,
        "pretrained_backbone_weights": None,
    },
)
log = train_lerobot(
    policy,
    replay.dataset,
    TrainingSettings(steps=60, batch_size=16, lr=3e-4, log_interval=10),
    progress=False,
)

for step, loss in log.losses:
    print(f"step {step:>3}: {loss:.2f}")

# %%
# Save and evaluate
# -----------------
#
# The checkpoint is LeRobot's: configuration, weights and both processors. Beside it
# lies ``metadata.json``, which says what the numbers mean: a robot with other units
# would be refused. ``load_executor`` takes any LeRobot checkpoint, a folder or a repo
# id.
#
# Sixty steps teach nothing yet; ``benchmarks/bench_lerobot_training.py`` trains longer.

checkpoint = save_checkpoint(folder / "act", policy, None, replay.dataset.metadata)
actor = load_executor(checkpoint, metadata=env.metadata, instructions=env.instructions)
print(f"asks the policy every {actor.replan_interval} steps")
result = evaluate(env, actor, 32, seed=1, progress=False)
print(result)

# %%
# LeRobot's own loop
# ------------------
#
# First ours: four tables side by side, each asked again every four steps, until the
# first episode ends.

tables = TabletopEnv(4, colors=("red",), image_size=32, seed=2)
actor.reset()
with torch.no_grad():
    rollout = TransformedEnv(tables, InitTracker()).rollout(40, actor)
print(rollout["action"].shape)

# %%
# Then LeRobot's: preprocess, ``select_action``, postprocess, as ``lerobot-eval`` does,
# on the same observations. ``select_action`` keeps the rest of the chunk in a queue of
# the policy, where ours keeps it for each table.

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

config = PreTrainedConfig.from_pretrained(checkpoint)
theirs = get_policy_class(config.type).from_pretrained(checkpoint, config=config)
preprocess, postprocess = make_pre_post_processors(
    config, pretrained_path=str(checkpoint)
)
theirs.eval()
theirs.reset()
actions = []
for step in rollout.unbind(-1):
    batch = {
        "observation.image": step["observation", "image"].float() / 255,
        "observation.state": step["observation", "state"],
    }
    with torch.inference_mode():
        actions.append(postprocess(theirs.select_action(preprocess(batch))))
actions = torch.stack(actions, 1)
difference = (actions - rollout["action"]).abs().max().item()
print(f"{actions.shape[1]} steps, largest difference {difference}")

# %%
# The claims: what was written is what is read, the loss fell, and the actions are the
# same.

stored = recorded.frames["observation", "image"][sample["index"]]
assert torch.equal(sample["observation", "image"], stored)
assert log.losses[-1][1] < 0.5 * log.losses[0][1]
assert torch.equal(actions, rollout["action"])
