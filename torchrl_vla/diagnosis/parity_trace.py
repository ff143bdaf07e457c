"""Traces of recorded frames through the training path and the acting path."""

from __future__ import annotations

from dataclasses import dataclass, field
from threading import get_ident

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import Compose, InitTracker, Transform, TransformedEnv
from torchrl.envs.utils import step_mdp

from torchrl_vla.data import Demonstrations
from torchrl_vla.diagnosis.acting_path import ActingPath
from torchrl_vla.diagnosis.finding import Finding, refusal
from torchrl_vla.diagnosis.lerobot_processing import LeRobotProcessing
from torchrl_vla.diagnosis.recorded_environment import RecordedEnvironment
from torchrl_vla.errors import VLAError
from torchrl_vla.policies import environment_transforms
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.recipes import make_training_transform
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    ACTION_TOKENS_KEY,
    EPISODE_KEY,
    FRAME_KEY,
    STATE_KEY,
)
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.transforms import (
    ActionChunkKeys,
    ActionChunkTransform,
    ActionTokenizerTransform,
)

#: Errors of data and policies that a path may stop with.
REFUSALS = (VLAError, ValueError, TypeError, RuntimeError, LookupError)


@dataclass
class Trace:
    """Record of one path.

    Args:
        inputs: ``[N, T]``, what the policy reads; None = it was not called.
        states: by name, the state in model space, ``[N, T, S]``.
        chunk: ``[N, T, H, A]`` in robot space; None = there is none.
        actions: ``[N, T, A]``, executed one after the other.
        decoded: chunk of the tokens ``[N, T, H, A]`` in model space; None = no tokens.
    """

    inputs: TensorDictBase | None = None
    states: dict[str, Tensor] = field(default_factory=dict)
    chunk: Tensor | None = None
    actions: Tensor | None = None
    decoded: Tensor | None = None


@dataclass
class Chain:
    """Both traces of the same frames, and the refusals on the way.

    Args:
        frames: ``[N, T]`` recorded steps in robot space.
        is_pad: bool ``[N, T, H]``, True = past the end of the episode.
        target: ``[N, T, H, A]`` or LeRobot's, the training's targets in model space.
        normalized: the same before they were tokens; None = there are no tokens.
    """

    frames: TensorDictBase
    is_pad: Tensor
    training: Trace = field(default_factory=Trace)
    acting: Trace = field(default_factory=Trace)
    refusals: list[Finding] = field(default_factory=list)
    target: Tensor | None = None
    normalized: Tensor | None = None


def episode_rows(dataset: Demonstrations, episodes: int, steps: int) -> Tensor:
    """Return the rows ``[N, T]`` of the first steps of some episodes, spread evenly.

    ``T`` is the length of the shortest of them, at most ``steps``.
    """
    every = dataset.episodes
    chosen = every[torch.linspace(0, len(every) - 1, min(episodes, len(every))).long()]
    of = dataset.frames.get(EPISODE_KEY).as_subclass(Tensor)
    frame = dataset.frames.get(FRAME_KEY).as_subclass(Tensor)
    rows = [(of == episode).nonzero().flatten() for episode in chosen.unique()]
    rows = [mine[frame[mine].argsort()] for mine in rows]
    length = min([steps, *map(len, rows)])
    return torch.stack([mine[:length] for mine in rows])


def sample_rows(
    dataset: Demonstrations,
    rows: Tensor,
    *,
    history_size: int = 1,
    transform: Transform | None = None,
) -> TensorDictBase:
    """Return the frames of rows ``[N, T]`` as the dataset's buffer samples them."""
    buffer = dataset.replay_buffer(1, history_size=history_size, transform=transform)
    return buffer[rows.flatten()].reshape(rows.shape)


def trace(
    path: ActingPath,
    dataset: Demonstrations,
    rows: Tensor,
    recorded: RecordedEnvironment,
    training: Transform | None = None,
) -> Chain:
    """Run recorded frames through both paths.

    Args:
        path: the acting side.
        dataset: that the policy was trained on.
        rows: ``[N, T]`` of its frames.
        recorded: environment that replays them.
        training: made the training's targets; None = what the recipes build.
    """
    lerobot = LeRobotProcessing.of(path.policy, dataset)
    cut = ActionChunkTransform(
        path.policy.chunk_size if lerobot is None else lerobot.target_size,
        storage=dataset.storage,
        first_step=0 if lerobot is None else lerobot.first_step,
        keys=ActionChunkKeys(done=None),
    )
    frames = sample_rows(dataset, rows, history_size=path.history_size, transform=cut)
    chain = Chain(frames, frames.get(ACTION_IS_PAD_KEY))
    try:
        if lerobot is None:
            _train_own(chain, path, dataset, rows, training)
        else:
            _train_lerobot(chain, lerobot)
    except REFUSALS as error:
        chain.refusals.append(refusal(error, "training"))
    try:
        _act(chain, path, recorded, lerobot)
    except REFUSALS as error:
        chain.refusals.append(refusal(error, "acting"))
    return chain


def _train_own(
    chain: Chain,
    path: ActingPath,
    dataset: Demonstrations,
    rows: Tensor,
    transform: Transform | None,
) -> None:
    space = None
    if path.mode is not None:
        space = ModelSpace(dataset.metadata, path.mode)
    if transform is None:
        transform = make_training_transform(path.policy, space, dataset.storage)
    batch = sample_rows(
        dataset, rows, history_size=path.history_size, transform=transform
    )
    side = chain.training
    side.inputs = batch
    if batch.get(STATE_KEY, None) is not None:
        side.states = {"observation.state": batch.get(STATE_KEY)}
    target = batch.get(ACTION_CHUNK_KEY)
    chain.is_pad = batch.get(ACTION_IS_PAD_KEY)
    parts = transform if isinstance(transform, Compose) else [transform]
    coders = [part for part in parts if isinstance(part, ActionTokenizerTransform)]
    if coders:
        chain.normalized = target
        tokens = batch.get(ACTION_TOKENS_KEY)
        target = side.decoded = coders[0].tokenizer.decode(tokens)
    side.chunk = target if space is None else space.action_scaling.denormalize(target)
    chain.target = target
    if coders:  # last: these tokens may be none of the acting tokenizer's
        chain.acting.decoded = declared(path.policy, "decode", None)(tokens)


def _train_lerobot(chain: Chain, lerobot: LeRobotProcessing) -> None:
    side = chain.training
    side.inputs = chain.frames
    side.chunk = lerobot.executed(chain.frames.get(ACTION_CHUNK_KEY))
    chain.is_pad = lerobot.executed(chain.is_pad.unsqueeze(-1)).squeeze(-1)
    side.states = lerobot.states(chain.frames, training=True)
    chain.target = lerobot.target(chain.frames)


def _act(
    chain: Chain,
    path: ActingPath,
    recorded: RecordedEnvironment,
    lerobot: LeRobotProcessing | None,
) -> None:
    """Fill the trace of acting: every frame is planned for, then chunks are executed.

    The policy's own answer is replaced by the training's target of the frame, so what
    comes out has to be the recorded action.
    """
    inputs: list[TensorDictBase] = []
    chunks: list[Tensor] = []
    threads: set[int] = set()
    now = {"step": 0}
    target, steps = chain.target, chain.frames.shape[1]
    key = declared(path.policy, "chunk_key", ACTION_CHUNK_KEY)
    robot_key = declared(path.executor, "chunk_key", ACTION_CHUNK_KEY)

    def keep(module: object, args: tuple[TensorDictBase, ...]) -> None:
        threads.add(get_ident())
        inputs.append(args[0].clone())

    def answer(module: object, args: object, out: TensorDictBase) -> TensorDictBase:
        if target is None:
            return out
        goal = target[:, now["step"]]
        if lerobot is not None:
            goal = lerobot.deliver(goal)
        return out.set(key, goal.to(out.get(key)))

    def see(module: object, args: object, out: TensorDictBase) -> None:
        chunks.append(out.get(robot_key).clone())

    hooks = [
        path.policy.register_forward_pre_hook(keep),
        path.policy.register_forward_hook(answer),
        path.robot_policy.register_forward_hook(see),
    ]
    try:
        with path.evaluated():
            _drive(path, recorded, steps, now, replan=True)
            executed = _drive(path, recorded, steps, now, replan=False)
            if threads == {get_ident()}:  # else the step of a call is unknown
                chain.acting.actions = torch.stack(executed, 1)
    finally:
        for hook in hooks:
            hook.remove()
        side = chain.acting
        if inputs:
            side.inputs = torch.stack(inputs[:steps], 1)
        if len(chunks) >= steps:
            side.chunk = torch.stack(chunks[:steps], 1)
    if side.inputs is None:
        return
    if lerobot is not None:
        with path.evaluated():
            side.states = lerobot.states(side.inputs, training=False)
    elif side.inputs.get(STATE_KEY, None) is not None:
        side.states = {"observation.state": side.inputs.get(STATE_KEY)}


def _drive(
    path: ActingPath,
    recorded: RecordedEnvironment,
    steps: int,
    now: dict[str, int],
    *,
    replan: bool,
) -> list[Tensor]:
    """Step through the recorded frames; return the actions ``[N, A]``."""
    carried = environment_transforms(path.executor)
    env = TransformedEnv(recorded, Compose(InitTracker(), *carried))
    reset = path.executor.reset
    reset()
    actions = []
    tensordict = env.reset()
    for step in range(steps):
        now["step"] = step
        if replan:
            reset()
        tensordict = path.executor(tensordict)
        actions.append(tensordict.get(ACTION_KEY).clone())
        tensordict = step_mdp(env.step(tensordict))
    reset()
    return actions
