"""With unchanged weights, PPO has nothing to correct: every head, executor, collector.

A new head or executor is audited by one line in a table below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from action_chunks import smooth_chunks
from markov_policy import MarkovVLA
from tiny_options import make_tiny
from torchrl.collectors import Collector
from torchrl.envs import Compose, ExplorationType, InitTracker, TransformedEnv
from torchrl.envs.utils import set_exploration_type
from torchrl.objectives import ClipPPOLoss

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import (
    ActionInterpolation,
    AsyncExecutor,
    MultiAction,
    MultiStepActorWrapper,
    SkipWaiting,
    StepClockWorker,
    TemporalEnsemble,
    select_decisions,
)
from torchrl_vla.objectives import ChunkPPOLoss, recompute_log_probs
from torchrl_vla.policies import (
    DiffusionConfig,
    FlowSDENoise,
    LearnedNoise,
    StdConfig,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TokenSampling,
)
from torchrl_vla.testing import check_log_prob_consistency
from torchrl_vla.tokenizers import FASTActionTokenizer, UniformActionTokenizer

CHUNK, ROWS = 6, 4
SEQUENCES = {"a sequence of FAST tokens"}
TOKENS = {"action_tokenizer": UniformActionTokenizer(16, low=-1.0, high=1.0)}
CONTROLLED = {
    "sampling": TokenSampling(temperature=0.7, top_k=9, top_p=0.9),
    "allowed_tokens": torch.arange(16) % 5 > 0,
}


def flow_with_learned_noise(**sizes):
    policy = make_tiny(TinyFlowVLA, num_steps=3, **sizes)
    policy.noise = LearnedNoise(policy.condition_dim, CHUNK, 2, hidden=8)
    return policy


def sequence_of_tokens(*, instructions, **sizes):
    chunks = smooth_chunks(200, CHUNK)
    tokenizer = FASTActionTokenizer.fit(chunks, vocab_size=120)
    return MarkovVLA(
        action_dim=2,
        chunk_size=CHUNK,
        action_tokenizer=tokenizer,
        sampling=TokenSampling(temperature=0.7, top_k=9, top_p=0.9),
    )


HEADS = {
    "tokens": lambda **a: make_tiny(TinyTokenVLA, **TOKENS, **a),
    "tempered tokens": lambda **a: make_tiny(TinyTokenVLA, **TOKENS, **CONTROLLED, **a),
    "gaussian": lambda **a: make_tiny(TinyGaussianVLA, **a),
    "gaussian that predicts its spread": lambda **a: make_tiny(
        TinyGaussianVLA, **a, std=StdConfig(reads_inputs=True)
    ),
    "flow": lambda **a: make_tiny(
        TinyFlowVLA, num_steps=3, noise=FlowSDENoise(0.5), **a
    ),
    "flow with learned noise": flow_with_learned_noise,
    "a sequence of FAST tokens": sequence_of_tokens,
    "diffusion": lambda **a: make_tiny(
        TinyDiffusionVLA, **a, diffusion=DiffusionConfig(num_steps=3)
    ),
}


class Executor(NamedTuple):
    """What acts, what it needs in the environment, and where its decisions are."""

    wrap: Callable = lambda policy: policy
    transforms: Callable = list
    decide: Callable = lambda rollout: rollout.reshape(-1)
    steps: int = 4


def per_step(wrap, *transforms, ticks=1):
    return Executor(
        wrap,
        lambda: [transform() for transform in transforms],
        lambda rollout: select_decisions(rollout, chunk_size=CHUNK, ticks=ticks),
        steps=15,
    )


ABSOLUTE = {"action_reference": "absolute"}
EXECUTORS = {
    "open loop": per_step(MultiStepActorWrapper),
    "receding horizon": per_step(lambda p: MultiStepActorWrapper(p, replan_interval=4)),
    "closed loop": per_step(lambda p: MultiStepActorWrapper(p, replan_interval=1)),
    "aligned": per_step(lambda p: MultiStepActorWrapper(p, align=True), SkipWaiting),
    "temporal ensemble": per_step(lambda p: TemporalEnsemble(p, **ABSOLUTE)),
    "asynchronous": per_step(
        lambda p: AsyncExecutor(p, request_at=3, worker=StepClockWorker(2), **ABSOLUTE)
    ),
    "interpolated": per_step(
        lambda p: ActionInterpolation(MultiStepActorWrapper(p), 2, **ABSOLUTE),
        SkipWaiting,
        ticks=2,
    ),
    "outer steps": Executor(transforms=lambda: [MultiAction(CHUNK)]),
    "shorter outer steps": Executor(
        transforms=lambda: [MultiAction(CHUNK, replan_interval=4)]
    ),
}


def make(head):
    """An environment of short episodes, whose rows drift apart, and a policy for it."""
    env = TabletopEnv(ROWS, image_size=16, max_steps=9, seed=0)
    torch.manual_seed(0)
    policy = HEADS[head](
        action_dim=2,
        chunk_size=CHUNK,
        state_dim=2,
        instructions=env.instructions,
        hidden=16,
        depth=1,
        text_dim=16,
        text_max_bytes=32,
    )
    with torch.no_grad():  # an output that differs from row to row
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return env, policy


def roll_out(env, policy, executor):
    actor = executor.wrap(policy)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(executor.steps, actor, break_when_any_done=False)
    return executor.decide(rollout)


def collect(env, policy, executor):
    collector = Collector(
        env,
        executor.wrap(policy),
        frames_per_batch=ROWS * executor.steps,
        total_frames=ROWS * executor.steps,
        exploration_type=ExplorationType.RANDOM,
    )
    rollout = next(iter(collector))
    collector.shutdown()
    return executor.decide(rollout)


@pytest.mark.parametrize("run", [roll_out, collect])
@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("head", HEADS)
def test_the_ratio_is_one_and_nothing_is_clipped(head, executor, run):
    env, policy = make(head)
    executor = EXECUTORS[executor]
    env = TransformedEnv(env, Compose(InitTracker(), *executor.transforms()))
    decisions = run(env, policy, executor)
    assert len(decisions) >= ROWS * 2
    report = check_log_prob_consistency(policy, decisions, batch_sizes=(None, 3))
    assert report.n_different == 0
    assert report.kl == report.clip_fraction == 0.0


def with_advantages(decisions):
    decisions["advantage"] = torch.linspace(-2.0, 2.0, len(decisions)).unsqueeze(-1)
    return decisions


@pytest.mark.parametrize("head", HEADS)
def test_torchrl_s_ppo_begins_with_nothing_to_correct(head):
    env, policy = make(head)
    env = TransformedEnv(env, MultiAction(CHUNK))
    decisions = with_advantages(roll_out(env, policy, EXECUTORS["outer steps"]))
    loss = ClipPPOLoss(policy, critic_network=None, entropy_bonus=False)
    loss.set_keys(action=policy.sample_key, sample_log_prob="log_probs")
    out = loss(decisions)
    assert out["clip_fraction"].item() == out["kl_approx"].item() == 0.0
    # It would not be so with the weights changed in the least.
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter += 0.01 * torch.randn_like(parameter)
    assert loss(decisions)["kl_approx"].item() != 0.0


@pytest.mark.parametrize("granularity", ["chunk", "action", "token"])
@pytest.mark.parametrize("head", HEADS)
def test_our_ppo_begins_with_nothing_to_correct(head, granularity):
    if head in SEQUENCES and granularity == "action":
        pytest.skip("a token of a sequence is not of one action")
    env, policy = make(head)
    env = TransformedEnv(env, MultiAction(CHUNK, replan_interval=4))
    decisions = with_advantages(roll_out(env, policy, EXECUTORS["outer steps"]))
    loss = ChunkPPOLoss(policy, granularity=granularity)
    for minibatch in decisions[torch.randperm(len(decisions))].split(7):
        out = loss(minibatch)
        assert out["clip_fraction"].item() == out["kl_approx"].item() == 0.0
        assert out["max_ratio"].item() == 1.0


@pytest.mark.parametrize("head", HEADS)
def test_in_half_precision_the_ratio_is_one_after_recomputing(head):
    env, policy = make(head)
    env = TransformedEnv(env, MultiAction(CHUNK))
    decisions = roll_out(env, policy, EXECUTORS["outer steps"])
    policy.bfloat16()  # the learner's precision is another than the actor's
    with pytest.raises(AssertionError, match="ratio 1, got"):
        check_log_prob_consistency(policy, decisions)
    recompute_log_probs(policy, decisions, minibatch_size=10)
    assert (
        check_log_prob_consistency(
            policy, decisions, batch_sizes=(10, 1, 3)
        ).ratio_error
        == 0.0
    )
