"""Demonstrations
==============

``expert --> dataset --> buffer``, all of it in robot space.

We record a scripted expert on the tabletop, look at what was written, and sample single
frames from it. Nothing here is normalized, chunked or tokenized: a dataset keeps what
the robot saw and did, in its own units, so that every later choice can be made again.
"""

# %%
# An environment and its expert
# -----------------------------
#
# ``TabletopEnv`` runs many tables at once, all in torch. The camera sees the blocks and
# not the gripper, the state holds the gripper and not the blocks, and the instruction
# names the block, so a policy needs all three.
#
# The expert acts with noise. The noise moves the robot, and the action that is stored
# is the one that the expert *meant* in that place, so the demonstrations show how to
# come back from a mistake (DART, Laskey et al., 2017).

import tempfile

import matplotlib.pyplot as plt
import torch

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.schema import SchemaError, validate_vla_tensordict

env = TabletopEnv(num_envs=32, seed=0)
expert = env.make_expert(noise=0.3, seed=0)
folder = tempfile.mkdtemp() + "/reach"
dataset = collect(
    env, expert, episodes=60, folder=folder, balanced=True, progress=False
)
print(dataset)

# %%
# ``balanced=True`` keeps as many episodes of each instruction, and failed episodes are
# dropped and made up for. What was written is a folder that opens without the
# environment; the metadata in it say what the numbers mean.

dataset = DemonstrationDataset.from_folder(folder)
metadata = dataset.metadata
print(metadata.action_names, metadata.action_units, metadata.action_reference)
print(metadata.control_frequency_hz, "Hz, cameras", metadata.cameras)

# %%
# Their statistics are those of the stored frames, with exact quantiles. They are what
# normalization is built from later, for training and for acting alike.

statistics = metadata.action_statistics
print("mean", statistics.mean, "std", statistics.std)
print("q01 ", statistics.q01, "q99", statistics.q99, "of", statistics.count)

# %%
# Look at the frames
# ------------------
#
# An instruction is stored as an int64 id, the hash of its text: text in every step of a
# rollout costs more than the step. The table that comes with the dataset turns it back.
# Since the id is made from the text, two processes agree on it without talking, and an
# unknown id raises; it is never read as another text.

first_frames = dataset.frames[dataset.frames["frame_index"] == 0]
_, axes = plt.subplots(1, 4, figsize=(10, 3))
for axis, frame in zip(axes, first_frames[::16]):
    axis.imshow(frame["observation", "image"].permute(1, 2, 0))
    x, y = frame["observation", "state"].tolist()
    axis.set_title(dataset.instructions.decode(frame["language_instruction"]), size=9)
    axis.set_xlabel(f"gripper at ({x:.2f}, {y:.2f})", size=8)
    axis.set_xticks([])
    axis.set_yticks([])
plt.tight_layout()
plt.show()

text = "reach the red block"
red = dataset.instructions.id(text)
print(text, "<->", red)
assert dataset.instructions.decode(torch.tensor(red)) == text
assert env.instructions.id(text) == red  # another table, the same id

# %%
# Check data where they enter
# ---------------------------
#
# ``validate_vla_tensordict`` lists every violation in one error, against the schema and
# against the metadata. Here are two mistakes of an import script: images with the
# channel last, and actions without their dimension.

assert validate_vla_tensordict(dataset.frames[:], metadata=metadata) == []

broken = dataset.frames[:4].clone()
broken["observation", "image"] = broken["observation", "image"].permute(0, 2, 3, 1)
broken["action"] = broken["action"][:, 0]
try:
    validate_vla_tensordict(broken, metadata=metadata)
except SchemaError as error:
    print(error)
else:
    raise AssertionError("two violations must not pass")

# %%
# Sample i.i.d. frames
# --------------------
#
# The buffer is TorchRL's, over the memory-mapped frames. A batch mixes frames of many
# episodes, which is what a gradient wants; that a policy needs the *following* actions
# too is the next tutorial's business.

buffer = dataset.replay_buffer(batch_size=256, seed=0)
batch = buffer.sample()
print(batch["observation", "image"].shape, batch["observation", "image"].dtype)
print("episodes in the batch:", len(batch["episode_index"].unique()))

# %%
# What this page claims, as assertions: the episodes are whole, balanced and successful,
# a sample is valid as it is, and it comes from nearly all episodes.

frames = dataset.frames
lengths = torch.bincount(frames["episode_index"])
starts = lengths.cumsum(0) - lengths
assert torch.equal(
    frames["frame_index"],
    torch.arange(len(frames)) - starts[frames["episode_index"]],
)
assert frames["next", "success"].sum() == dataset.num_episodes == 60
for row in dataset.instructions.ids:
    told = frames["language_instruction"] == row
    assert len(frames["episode_index"][told].unique()) == 10
assert validate_vla_tensordict(batch, metadata=metadata) == []
assert len(batch["episode_index"].unique()) >= 50
