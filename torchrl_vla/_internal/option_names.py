"""Names of options that the command line offers, importable without PyTorch."""

from __future__ import annotations

from typing import Literal

#: What episodes are run for. Episodes of two purposes never share a seed.
Purpose = Literal["demonstrations", "evaluation", "training"]

#: What an episode counts as that ends in an error: a failure, nothing (it is listed
#: apart), or the end of the evaluation.
OnError = Literal["failure", "apart", "raise"]

#: What a guard does with an illegal action.
OnViolation = Literal["refuse", "clip", "hold"]

#: What becomes of a label beyond the bounds of the actions.
Labels = Literal["refuse", "clamp"]

#: What one importance ratio covers: a whole chunk, an action or a token.
Granularity = Literal["chunk", "action", "token"]

#: The input ablations that ``make_ablation`` knows.
AblationName = Literal[
    "shuffled-instruction", "reworded-instruction", "blank-images", "zero-state"
]

#: What a decision earns: 1 in success, or what the environment pays.
Reward = Literal["success", "environment"]

#: What a tiny policy's head emits. All but ``"regression"`` have log-probabilities, so
#: that reinforcement learning can train them.
Head = Literal["regression", "tokens", "gaussian", "flow", "diffusion"]

#: What happens to an image of another size than an encoder takes: it is refused,
#: resized (its shape changes), padded after resizing, or cropped around its centre
#: after resizing.
Resize = Literal["refuse", "stretch", "pad", "crop"]

#: What a head on a vision-language model emits.
VLMHead = Literal["flow", "parallel", "tokens"]
AnyHead = Literal["regression", "tokens", "gaussian", "flow", "diffusion", "parallel"]

#: Where a vision-language policy's state goes: to the action head, behind the prompt as
#: one projected token, or behind the prompt as the numbers of its bins, written out.
StateInput = Literal["head", "token", "text"]

#: Implementation of attention in ``transformers``.
Attention = Literal["sdpa", "eager"]

#: What a vision-language model computes in.
Precision = Literal["float32", "bfloat16"]

#: What a step does for which no action is left; see ``Lateness``.
Reaction = Literal["wait", "hold", "repeat", "zero", "stop"]

#: How chunks are executed: each to its end, ACT's mean of all, the next one planned
#: ahead, or continued by the next one (real-time chunking).
ExecutorName = Literal["chunks", "ensemble", "async", "rtc"]

#: Where an executor runs its policy: within the step, in a thread or in a process.
WorkerName = Literal["step", "thread", "process"]

#: How a new chunk is blended with the rest of the old one.
OverlapName = Literal["replace", "average", "ensemble"]

#: What a provider is asked for: the next action alone, or the chunk.
ActionMode = Literal["select_action", "predict_chunk"]
