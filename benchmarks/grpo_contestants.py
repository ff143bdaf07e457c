"""GRPO on the toy task with our recipe and with TorchRL's parts, for bench_grpo.py."""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from grpo_plain import (
    ACTION_DIM,
    BINS,
    CLIP,
    GROUP,
    HORIZON,
    IMAGE_SHAPE,
    INSTRUCTION,
    KEEP,
    MAX_DECISIONS,
    MAX_GRAD_NORM,
    MINIBATCH,
    STATE_DIM,
    SUCCESS_STEPS,
    SUCCESS_TOL,
    Network,
    whole_lengths,
)
from tensordict import TensorDictBase
from torch import Tensor, nn
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.replay_buffers.samplers import SamplerWithoutReplacement
from torchrl.data.vla import UniformActionTokenizer as PeerTokenizer
from torchrl.envs import (
    ActionTokenizerTransform,
    Compose,
    EnvBase,
    ExplorationType,
    StepCounter,
    TransformedEnv,
)
from torchrl.envs import MultiAction as PeerMultiAction
from torchrl.envs import SuccessReward as PeerSuccessReward
from torchrl.envs.custom import ToyVLAEnv as PeerEnv
from torchrl.modules.vla import TinyVLA as PeerPolicy
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.llm import MCAdvantage

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.policies import TokenVLAWrapper
from torchrl_vla.recipes.finetuning.algorithms import GRPO
from torchrl_vla.recipes.finetuning.finetune_settings import FinetuneSettings
from torchrl_vla.recipes.finetuning.learner import Learner
from torchrl_vla.recipes.finetuning.rollouts import Rollouts, make_decision_env
from torchrl_vla.rollout import ScheduledEpisodes
from torchrl_vla.schema import FeatureStatistics, InstructionTable
from torchrl_vla.spaces import ModelSpace
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import SuccessReward

with warnings.catch_warnings():  # torchrl 0.14 deprecates classes as it defines them
    warnings.simplefilter("ignore", DeprecationWarning)
    from torchrl.collectors import Collector


class OurPolicy(TokenVLAWrapper):
    """Our token policy around the network that all contestants share."""

    def __init__(self, network: Network) -> None:
        super().__init__(
            action_dim=ACTION_DIM,
            chunk_size=HORIZON,
            action_tokenizer=UniformActionTokenizer(BINS, low=-1.0, high=1.0),
        )
        self.network = network

    def predict_logits(self, tensordict: TensorDictBase) -> Tensor:
        """Return ``[N, H, A, V]``."""
        seen = tensordict["observation"]
        return self.network(seen["image"], seen["state"])


class TaskEnv(ToyVLAEnv):
    """Our version of the task."""

    image_shape = IMAGE_SHAPE
    instruction = INSTRUCTION


def toy_env(rows: int, *, ids: bool) -> ToyVLAEnv:
    """Return our version of the task; instructions as ids, or as text as TorchRL's."""
    return TaskEnv(
        ACTION_DIM,
        STATE_DIM,
        success_steps=SUCCESS_STEPS,
        success_tol=SUCCESS_TOL,
        max_steps=MAX_DECISIONS * HORIZON,
        instructions=InstructionTable() if ids else None,
        batch_size=[rows],
    )


class OurGRPO:
    """Our recipe: ``Rollouts``, ``GRPO`` and ``Learner``.

    Args:
        network: trained in place.
        rows: of the environment.
        lr: learning rate.
    """

    def __init__(self, network: Network, rows: int, lr: float) -> None:
        self.policy = OurPolicy(network).eval()
        base = toy_env(rows, ids=True)
        still = torch.tensor([[-1.0], [1.0]])  # of mean 0 and standard deviation 1
        self.space = ModelSpace(
            replace(
                base.metadata,
                action_statistics=_statistics(still.expand(2, ACTION_DIM)),
                state_statistics=_statistics(still.expand(2, STATE_DIM)),
            )
        )
        settings = FinetuneSettings(
            algorithm=GRPO(group_size=GROUP, keep=KEEP),
            epochs=1,
            minibatch_size=MINIBATCH,
            lr=lr,
            clip_epsilon=CLIP,
            granularity="chunk",
            max_grad_norm=MAX_GRAD_NORM,
        )
        self.env = make_decision_env(
            base, self.space, chunk_size=HORIZON, group_size=GROUP
        )
        self.env.append_transform(SuccessReward())
        self.texture = base._texture
        self.schedule = self.env.base_env
        self.rollouts = Rollouts(self.env, self.policy, MAX_DECISIONS)
        self.learner = Learner(self.policy, self.space, settings, None)

    def seeds(self, iteration: int) -> Tensor:
        """Return the seeds of an iteration's episodes, ``[T + 1, N]``."""
        self.schedule.begin(iteration)
        return torch.stack(
            [self.schedule._next_seeds(None) for _ in range(MAX_DECISIONS + 1)]
        )

    def __call__(self, iteration: int) -> tuple[int, int]:
        """Run one iteration; return the decisions of whole episodes, and the used."""
        rollout = self.rollouts.collect(iteration)
        numbers = self.learner.learn(rollout, iteration)
        done = rollout["next", "done"].squeeze(-1)
        return int(whole_lengths(done).sum()), int(numbers["decisions"])


class PeerGRPO:
    """TorchRL's toy recipe in one process, put together from its parts.

    Its own environment cannot group the episodes of more than one row, so for more
    it steps ours, with the instruction as text and groups by ``episode_seed``, and
    collects as ours does: a fixed number of decisions, what they cut off left out.

    Args:
        policy: trained in place.
        rows: of the environment; 1 is TorchRL's own.
        lr: learning rate.
        episodes: of one iteration, with one row.
    """

    def __init__(
        self, policy: PeerPolicy, rows: int, lr: float, episodes: int = 0
    ) -> None:
        self.policy = policy
        self.buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(max(rows, episodes) * MAX_DECISIONS),
            sampler=SamplerWithoutReplacement(drop_last=False),
            batch_size=MINIBATCH,
        )
        self.advantage = peer_advantage("group_id" if rows == 1 else "episode_seed")
        self.buffer.append_transform(self.advantage)
        self.loss = peer_loss(policy)
        self.optimizer = torch.optim.AdamW(self.loss.parameters(), lr, weight_decay=0.0)
        self.env = peer_env(rows)
        self.trajectories = {}
        if rows == 1:
            self.trajectories = {"trajs_per_batch": episodes, "traj_format": "cat"}
        self.collector = Collector(
            self.env,
            policy,
            frames_per_batch=rows * MAX_DECISIONS,
            total_frames=-1,
            exploration_type=ExplorationType.RANDOM,
            reset_at_each_iter=rows > 1,
            auto_register_policy_transforms=False,
            **self.trajectories,
        )
        self.batches = iter(self.collector)

    def __call__(self, iteration: int = 0) -> tuple[int, int]:
        """Run one iteration; return the decisions of whole episodes, and the used."""
        if not self.trajectories:
            self.env.base_env.begin(iteration)
        batch = next(self.batches).exclude("collector")
        whole = batch.numel()
        if self.trajectories:
            self.buffer.extend(batch)
        else:
            lengths = whole_lengths(batch["next", "done"].squeeze(-1)).tolist()
            whole = sum(lengths)
            for row, length in zip(batch.unbind(0), lengths):
                if length:
                    self.buffer.extend(row[:length])
            self.advantage.queues.clear()
        used = len(self.buffer)
        if used:
            for part in self.buffer:
                self.loss(part)["loss_objective"].backward()
                nn.utils.clip_grad_norm_(self.loss.parameters(), MAX_GRAD_NORM)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.buffer.empty()
        return whole, used


def peer_policy() -> PeerPolicy:
    """Return TorchRL's token policy, its lazy layers made."""
    policy = PeerPolicy(
        action_dim=ACTION_DIM,
        chunk_size=HORIZON,
        action_head="tokens",
        vocab_size=BINS,
        hidden_dim=128,
    )
    with torch.no_grad():
        policy(peer_env(1).fake_tensordict())
    return policy


def peer_env(rows: int) -> EnvBase:
    """Return the task with TorchRL's transforms: one step is one decision."""
    base: EnvBase
    if rows == 1:
        base = PeerEnv(
            ACTION_DIM,
            STATE_DIM,
            IMAGE_SHAPE,
            INSTRUCTION,
            success_steps=SUCCESS_STEPS,
            success_tol=SUCCESS_TOL,
            group_repeats=GROUP,
            batch_size=[1],
            seed=0,
        )
    else:
        base = ScheduledEpisodes(toy_env(rows, ids=False), group_size=GROUP)
    tokenizer = PeerTokenizer(BINS, low=-1.0, high=1.0)
    transforms = Compose(
        PeerMultiAction(stack_rewards=False),
        ActionTokenizerTransform(tokenizer),
        PeerSuccessReward(),
        StepCounter(max_steps=MAX_DECISIONS),
    )
    return TransformedEnv(base, transforms)


def peer_advantage(group_key: str) -> MCAdvantage:
    """Return TorchRL's group advantage."""
    return MCAdvantage(
        grpo_size=GROUP,
        prompt_key=group_key,
        trajectory_return="sum",
        keep_return_bounds=KEEP,
    )


def peer_loss(policy: PeerPolicy) -> ClipPPOLoss:
    """Return TorchRL's loss, one ratio per decision."""
    loss = ClipPPOLoss(policy, None, clip_epsilon=CLIP, entropy_bonus=False)
    tokens, log_probs = policy.out_keys
    loss.set_keys(action=tokens, sample_log_prob=log_probs)
    return loss


def _statistics(samples: Tensor) -> FeatureStatistics:
    return FeatureStatistics.from_samples(samples)
