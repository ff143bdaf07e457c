"""Action tokens of a trunk act through every executor and learn by PPO and GRPO."""

import pytest
import torch
from action_chunks import smooth_chunks
from robot_space_fakes import RewardRight
from tensordict.nn import InteractionType, set_interaction_type
from tiny_vlms import KINDS, tiny_trunk
from torchrl.collectors import Collector
from torchrl.envs import Compose, ExplorationType, InitTracker, TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper, select_decisions
from torchrl_vla.policies import TokenSampling, make_critic_for
from torchrl_vla.policies.vlm.token_head import VLMTokenPolicy
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    TrainingSettings,
    finetune,
    load_checkpoint,
    make_space,
    train_behavior_cloning,
)
from torchrl_vla.testing import check_log_prob_consistency
from torchrl_vla.tokenizers import BEASTActionTokenizer, FASTActionTokenizer

CHUNK, ROWS = 4, 4
HOT = TokenSampling(temperature=1.6)
CHUNKS = smooth_chunks(200, CHUNK)


def make_env(max_steps=8):
    return TabletopEnv(ROWS, image_size=16, num_blocks=2, max_steps=max_steps, seed=0)


def make(kind, env, tokenizer=None, sampling=HOT):
    trunk = tiny_trunk(
        kind,
        cameras=None,
        image_sizes=((3, 16, 16),),
        state_dim=2,
        text_length=48,
    )
    policy = VLMTokenPolicy(
        trunk,
        action_dim=2,
        chunk_size=CHUNK,
        action_tokenizer=tokenizer or FASTActionTokenizer.fit(CHUNKS, vocab_size=120),
        sampling=sampling,
    )
    policy.instructions = env.instructions
    return policy.eval()


EXECUTORS = {
    "open loop": (MultiStepActorWrapper, list),
    "closed loop": (lambda p: MultiStepActorWrapper(p, replan_interval=1), list),
    "outer steps": (lambda p: p, lambda: [MultiAction(CHUNK, replan_interval=3)]),
}


@pytest.mark.parametrize(
    ("kind", "executor"),
    [*((kind, "outer steps") for kind in KINDS), *(("smolvlm", e) for e in EXECUTORS)][
        :-1
    ],
)
def test_through_a_collector_and_an_executor_the_ratio_is_one(kind, executor):
    env = make_env()
    policy = make(kind, env, sampling=TokenSampling(0.9, top_k=20, top_p=0.95))
    wrap, transforms = EXECUTORS[executor]
    env = TransformedEnv(env, Compose(InitTracker(), *transforms()))
    steps = 2 if transforms is not list else 6
    collector = Collector(
        env,
        wrap(policy),
        frames_per_batch=ROWS * steps,
        total_frames=ROWS * steps,
        exploration_type=ExplorationType.RANDOM,
    )
    rollout = next(iter(collector))
    collector.shutdown()
    if transforms is list:
        decisions = select_decisions(rollout, chunk_size=CHUNK)
    else:
        decisions = rollout.reshape(-1)
    assert len(decisions) >= ROWS * 2
    report = check_log_prob_consistency(policy, decisions, batch_sizes=(None, 3))
    assert report.n_different == 0
    assert report.kl == report.clip_fraction == 0.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env(max_steps=40)
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 8, folder=folder, progress=False)


SETTINGS = {
    "ppo": {"algorithm": PPO(critic_warmup=0)},
    # Settings of the kind of SimpleVLA-RL: groups, clip-higher, no critic.
    "grpo": {"algorithm": GRPO(2, keep=None), "clip_epsilon": (0.2, 0.28)},
}


@pytest.mark.parametrize("algorithm", SETTINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_three_iterations_of_fine_tuning(kind, algorithm, dataset, tmp_path):
    env = TransformedEnv(make_env(max_steps=4), RewardRight())
    policy = make(kind, env)
    space = make_space(dataset.metadata, "tokens")
    before = [p.detach().clone() for p in policy.parameters()]
    settings = FinetuneSettings(
        **SETTINGS[algorithm],
        iterations=3,
        num_decisions=8 if algorithm == "ppo" else None,
        epochs=1,
        minibatch_size=16,
        lr=1e-3,
        reward="environment",
        eval_episodes=ROWS,
        eval_interval=3,
    )
    result = finetune(
        policy,
        space,
        env,
        tmp_path / "run",
        settings,
        critic=make_critic_for(env) if algorithm == "ppo" else None,
        progress=False,
    )
    assert len(result.log) == 3
    moved = [
        not torch.equal(old, new.detach())
        for old, new in zip(before, policy.parameters(), strict=True)
    ]
    assert any(moved)
    again, _ = load_checkpoint(tmp_path / "run" / "policy")
    again.instructions = env.instructions
    data = env.reset()
    with torch.no_grad(), set_interaction_type(InteractionType.DETERMINISTIC):
        expected, got = policy.eval()(data.clone()), again.eval()(data.clone())
    assert torch.equal(expected["action_tokens"], got["action_tokens"])
    assert torch.equal(expected["log_probs"], got["log_probs"])


def test_cloning_lowers_the_loss_in_the_recipe(dataset):
    env = make_env()
    space = make_space(dataset.metadata, "tokens")
    tokenizer = BEASTActionTokenizer(
        chunk_size=CHUNK, num_basis=4, low=[-1.2, -1.2], high=[1.2, 1.2], num_bins=16
    )
    policy = make("smolvlm", env, tokenizer, sampling=None)
    policy.instructions = dataset.instructions
    settings = TrainingSettings(steps=12, batch_size=16, log_interval=1)
    log = train_behavior_cloning(policy, dataset, settings, space=space, progress=False)
    losses = [loss for _, loss in log.losses]
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
