"""With unchanged weights PPO has nothing to correct: executors, collector, bfloat16."""

import pytest
import torch
from tiny_vlms import KINDS, make_image_encoder, tiny_vlm_folder
from torchrl.collectors import Collector
from torchrl.envs import ExplorationType, InitTracker, TransformedEnv
from torchrl.envs.utils import set_exploration_type

from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper, select_decisions
from torchrl_vla.objectives import ChunkPPOLoss, recompute_log_probs
from torchrl_vla.policies import (
    ExpertConfig,
    FlowSDENoise,
    TrunkConfig,
    VLMChunkPolicy,
    VLMFlowPolicy,
    load_trunk,
)
from torchrl_vla.testing import check_log_prob_consistency

ROWS, H = 3, 4


def make(kind, head, **options):
    env = TabletopEnv(ROWS, image_size=16, num_blocks=2, max_steps=9, seed=0)
    config = TrunkConfig(
        image_sizes=((3, 16, 16),), state_dim=2, text_length=16, **options
    )
    encoder = make_image_encoder() if kind == "causal" else None
    torch.manual_seed(0)
    trunk = load_trunk(tiny_vlm_folder(kind), config, image_encoder=encoder)
    trunk.instructions = env.instructions
    if head == "parallel":
        policy = VLMChunkPolicy(trunk, action_dim=2, chunk_size=H)
        return env, policy.to_stochastic()
    return env, VLMFlowPolicy(
        trunk,
        action_dim=2,
        chunk_size=H,
        num_steps=2,
        noise=FlowSDENoise(0.5),
        expert=ExpertConfig(hidden=16),
    )


CASES = [*((kind, "flow") for kind in KINDS), ("causal", "parallel")]


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_the_ratio_is_one_for_decisions_of_an_executor_and_of_a_collector(kind, head):
    env, policy = make(kind, head)
    env = TransformedEnv(env, InitTracker())
    actor = MultiStepActorWrapper(policy, replan_interval=3)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(7, actor, break_when_any_done=False)
    collector = Collector(
        env,
        actor,
        frames_per_batch=ROWS * 7,
        total_frames=ROWS * 7,
        exploration_type=ExplorationType.RANDOM,
    )
    collected = next(iter(collector))
    collector.shutdown()
    for data in (rollout, collected):
        decisions = select_decisions(data, chunk_size=H)
        assert len(decisions) >= ROWS * 2
        report = check_log_prob_consistency(policy, decisions, batch_sizes=(None, 2))
        assert report.n_different == 0
        assert report.kl == report.clip_fraction == 0.0


def decide(env, policy):
    env = TransformedEnv(env, MultiAction(H))
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        decisions = env.rollout(3, policy, break_when_any_done=False).reshape(-1)
    decisions["advantage"] = torch.linspace(-1, 1, len(decisions)).unsqueeze(-1)
    return decisions


@pytest.mark.parametrize("head", ["flow", "parallel"])
def test_our_ppo_begins_with_nothing_to_correct(head):
    env, policy = make("smolvlm", head)
    decisions = decide(env, policy)
    loss = ChunkPPOLoss(policy)
    for minibatch in decisions[torch.randperm(len(decisions))].split(4):
        out = loss(minibatch)
        assert out["clip_fraction"].item() == out["kl_approx"].item() == 0.0
        assert out["max_ratio"].item() == 1.0


@pytest.mark.parametrize("head", ["flow", "parallel"])
def test_in_bfloat16_the_ratio_is_one_after_recomputing(head):
    env, policy = make("smolvlm", head)
    decisions = decide(env, policy)
    _, learner = make("smolvlm", head, precision="bfloat16")
    learner.load_state_dict(policy.state_dict())
    with pytest.raises(AssertionError, match="ratio 1, got"):
        check_log_prob_consistency(learner, decisions)
    recompute_log_probs(learner, decisions, minibatch_size=4)
    assert decisions["log_probs"].dtype == torch.float32
    report = check_log_prob_consistency(learner, decisions, batch_sizes=(4, 2))
    assert report.ratio_error == 0.0
