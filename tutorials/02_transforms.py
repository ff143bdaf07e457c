"""Transforms
==========

``dataset --robot--> transforms --model--> batch``: the border.

Robot space is what datasets, simulators and robots speak: table units, uint8 images,
one action per step. Model space is what policies and losses speak: normalized, chunked,
padded, tokenized. Only transforms cross the border. This page crosses it in both
directions and checks that nothing is lost on the way.
"""

# %%
# We need a small dataset; the first tutorial explains it.

import tempfile

import torch
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.envs import TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.schema import MissingKeyError
from torchrl_vla.tokenizers import UniformActionTokenizer, VocabTailActionTokenizer
from torchrl_vla.transforms import (
    ActionChunkTransform,
    ActionScaling,
    ActionTokenizerTransform,
)

env = TabletopEnv(num_envs=8, seed=0)
folder = tempfile.mkdtemp() + "/reach"
dataset = collect(env, env.make_expert(), episodes=20, folder=folder, progress=False)

# %%
# Chunks are gathered, not stored
# -------------------------------
#
# A chunk policy learns, from one frame, the next ``H`` actions of its episode. The
# buffer holds single frames; when one is sampled, the transform finds the actions that
# follow by episode and frame index *in the storage*. So every sampler, every order of
# the rows and any mix of environments give a frame the same target.

H = 8
chunks = ActionChunkTransform(H, storage=dataset.storage)
buffer = dataset.replay_buffer(batch_size=64, transform=chunks, seed=0)
batch = buffer.sample()
print(batch["action_chunk"].shape, batch["action_is_pad"].shape)

# %%
# ``action_is_pad`` is True past the episode's end. A padded slot repeats the last
# action, which looks like a target and is none: the loss has to mask it. The loss of
# the next tutorial raises when it does not find the mask.
#
# The naive reference: look the actions up one by one.

episodes, steps = dataset.frames["episode_index"], dataset.frames["frame_index"]
stored = {
    (int(episode), int(step)): action
    for episode, step, action in zip(episodes, steps, dataset.frames["action"])
}
for frame in batch:
    episode, step = int(frame["episode_index"]), int(frame["frame_index"])
    for slot in range(H):
        action = stored.get((episode, step + slot))
        assert bool(frame["action_is_pad"][slot]) == (action is None)
        if action is not None:
            assert torch.equal(frame["action_chunk"][slot], action)
print("padded slots:", int(batch["action_is_pad"].sum()), "of", 64 * H)

# %%
# Without the storage, a flat sample raises. The next row of a shuffled
# batch is not the next frame, and a transform that shifted rows would train, silently,
# on actions of other episodes.

flat = dataset.replay_buffer(batch_size=64, transform=ActionChunkTransform(H), seed=0)
try:
    flat.sample()
except MissingKeyError as error:
    print(error)
else:
    raise AssertionError("a flat sample without a storage must not give chunks")

# %%
# Scaling has a direction
# -----------------------
#
# ``ActionScaling`` is built from the statistics in the metadata. On a buffer it
# normalizes what is *sampled*, and stores what it was given: writing to a buffer is no
# border. (Elsewhere the inverse of a transform runs on ``extend``, and data that were
# in robot space arrive scaled a second time.) It comes after the chunks, which are
# looked up in robot space; the other order raises.

scaling = ActionScaling.from_metadata(dataset.metadata, "mean_std")
own = TensorDictReplayBuffer(storage=LazyTensorStorage(len(dataset)), batch_size=64)
own.append_transform(ActionChunkTransform(H, storage=own.storage))
own.append_transform(scaling)
robot_space = dataset.frames.select("action", "episode_index", "frame_index").clone()
own.extend(robot_space.clone())
assert torch.equal(own.storage[:]["action"], robot_space["action"])  # as it was given

model_space = own[:]
action = model_space["action"]
print("robot space: mean", robot_space["action"].mean(0))
print("model space: mean", action.mean(0), "std", action.std(0, correction=0))

# %%
# In an environment the same object goes the other way: the policy speaks model space,
# and the action is denormalized before the step. The action spec is that of model
# space, so a random policy is as wild as the robot allows and no wilder.

scaled_env = TransformedEnv(TabletopEnv(1, seed=0), scaling.clone())
step = scaled_env.reset()
start = step["observation", "state"].clone()
robot_action = torch.tensor([[0.5, -1.0]])
step["action"] = scaling.normalize(robot_action)
moved = scaled_env.step(step)["next", "observation", "state"] - start
print("the gripper moved by", moved, "table units")
torch.testing.assert_close(moved, 0.1 * robot_action)

# %%
# Actions as tokens
# -----------------
#
# A tokenizer maps each dimension of an action to a bin and back to the bin's middle, so
# the round trip is off by half a bin at most. ``UniformActionTokenizer`` takes its
# bounds from the metadata; ``VocabTailActionTokenizer`` is OpenVLA's code, bit for bit:
# the last 256 ids of a language model's vocabulary, counted down.

tokenizer = UniformActionTokenizer.from_metadata(dataset.metadata, num_bins=32)
buffer = dataset.replay_buffer(batch_size=64, transform=chunks, seed=0)
buffer.append_transform(ActionTokenizerTransform(tokenizer, in_key="action_chunk"))
batch = buffer.sample()
error = (tokenizer.decode(batch["action_tokens"]) - batch["action_chunk"]).abs().max()
half_bin = (1.0 - -1.0) / 32 / 2
print("tokens", batch["action_tokens"].shape, "worst round trip", error.item())

openvla = VocabTailActionTokenizer(256, full_vocab_size=32_000)
print("OpenVLA's ids of -1, 0, 1:", openvla.encode(torch.tensor([-1.0, 0.0, 1.0])))

# %%
# In an environment the token transform decodes, and the action spec becomes the
# vocabulary.

token_env = TransformedEnv(TabletopEnv(2), ActionTokenizerTransform(tokenizer))
print(token_env.action_spec)
token_env.rollout(5)

# %%
# The claims: the border is crossed without loss, and each side has its own scale.

assert error <= half_bin + 1e-6
round_trip = scaling.denormalize(model_space["action"])
torch.testing.assert_close(round_trip, robot_space["action"], atol=1e-6, rtol=0)
torch.testing.assert_close(action.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
torch.testing.assert_close(action.std(0, correction=0), torch.ones(2))
own.sample()
assert torch.equal(own.storage[:]["action"], robot_space["action"])  # nor by reading
assert openvla.encode(torch.tensor([-1.0])).item() == 31_999
