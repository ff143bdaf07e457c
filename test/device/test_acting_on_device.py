"""Environments, executors, tokenizers and trainings on the device of ``--device``."""

from __future__ import annotations

import pytest
import torch
from action_chunks import smooth_chunks
from tensordict import TensorDict
from torchrl.collectors import Collector
from torchrl.envs import Compose, InitTracker, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import (
    AsyncExecutor,
    MultiStepActorWrapper,
    StepClockWorker,
    TemporalEnsemble,
    select_decisions,
)
from torchrl_vla.objectives import ChunkPPOLoss
from torchrl_vla.recipes import (
    PPO,
    FinetuneSettings,
    finetune,
    make_policy,
    make_space,
    to_stochastic,
)
from torchrl_vla.recipes.devices import on_device
from torchrl_vla.schema import FeatureStatistics, InstructionTable
from torchrl_vla.testing import check_env, check_log_prob_consistency
from torchrl_vla.tokenizers import (
    BEASTActionTokenizer,
    FASTActionTokenizer,
    OpenVLAActionTokenizer,
    UniformActionTokenizer,
    VocabTailActionTokenizer,
)

HEADS = ("gaussian", "tokens", "flow", "diffusion")
ABSOLUTE = {"action_reference": "absolute"}
EXECUTORS = {
    "open loop": MultiStepActorWrapper,
    "receding horizon": lambda p: MultiStepActorWrapper(p, replan_interval=2),
    "temporal ensemble": lambda p: TemporalEnsemble(p, **ABSOLUTE),
    "asynchronous": lambda p: AsyncExecutor(
        p, request_at=3, worker=StepClockWorker(2), **ABSOLUTE
    ),
}


def make_env(num_envs=4):
    return TabletopEnv(num_envs, image_size=16, num_blocks=2, max_steps=9, seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env()
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 4, folder=folder, progress=False)


def stochastic(dataset, head):
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=4, head=head, hidden=16, depth=1)
    return to_stochastic(policy)


def devices_of(data):
    return {
        value.device.type
        for value in data.values(True, True)
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize(
    "make", [make_env, lambda: ToyVLAEnv(batch_size=[3], max_steps=9)]
)
def test_environments_of_tensors_keep_their_contract_on_the_device(make, device):
    check_env(make().to(device), max_steps=9)


@pytest.mark.parametrize("name", EXECUTORS)
def test_executors_serve_actions_on_the_device(name, device, dataset):
    policy = stochastic(dataset, "tokens").to(device)
    env = TransformedEnv(make_env().to(device), InitTracker())
    with torch.no_grad():
        rollout = env.rollout(12, EXECUTORS[name](policy), break_when_any_done=False)
    assert devices_of(rollout) == {device.type}


@pytest.mark.parametrize("head", HEADS)
def test_what_was_chosen_on_the_device_is_learned_with_ratio_one(head, device, dataset):
    policy = stochastic(dataset, head).to(device)
    env = TransformedEnv(make_env().to(device), InitTracker())
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = env.rollout(
            8, MultiStepActorWrapper(policy), break_when_any_done=False
        )
    decisions = select_decisions(rollout, chunk_size=4)
    # Kernels choose their order of summation by the size of the batch.
    tolerance = 1e-3 if device.type == "cuda" else 0.0
    check_log_prob_consistency(policy, decisions, tolerance=tolerance)
    decisions["advantage"] = torch.linspace(-1, 1, len(decisions)).to(device)[:, None]
    loss = ChunkPPOLoss(policy)
    out = loss(decisions)
    out["loss_objective"].backward()
    assert devices_of(out) == {device.type}
    assert any(
        p.grad is not None and p.grad.abs().sum() > 0 for p in policy.parameters()
    )


def test_a_collector_that_is_told_no_device_gives_decisions_of_one(device, dataset):
    policy = stochastic(dataset, "tokens").to(device)
    env = TransformedEnv(make_env().to(device), Compose(InitTracker()))
    executor = MultiStepActorWrapper(policy)
    collector = Collector(env, executor, frames_per_batch=32, total_frames=32)
    decisions = select_decisions(next(iter(collector)), chunk_size=4)
    collector.shutdown()
    assert devices_of(decisions) == {device.type}


@pytest.mark.parametrize("simulator", [False, True])
def test_two_iterations_of_finetuning(simulator, device, dataset, tmp_path):
    policy = stochastic(dataset, "tokens").to(device)
    before = [p.detach().clone() for p in policy.parameters()]
    settings = FinetuneSettings(
        algorithm=PPO(critic_warmup=0),
        iterations=2,
        minibatch_size=16,
        lr=1e-2,
        entropy_coeff=0.1,  # a gradient also where no episode succeeds
        eval_episodes=4,
    )
    env = on_device(make_env(), str(device)) if simulator else make_env().to(device)
    result = finetune(
        policy,
        make_space(dataset.metadata, "tokens"),
        env,
        tmp_path,
        settings,
        progress=False,
    )
    assert len(result.log) == 2
    assert all(p.device.type == device.type for p in policy.parameters())
    assert any(
        not torch.equal(p, q) for p, q in zip(policy.parameters(), before, strict=True)
    )


def test_an_evaluation_counts_the_same_episodes_wherever_the_environment_is(
    device, dataset
):
    policy = stochastic(dataset, "tokens")
    actors = [MultiStepActorWrapper(policy)]
    here = evaluate(make_env(), actors[0], 4, progress=False)
    executor = MultiStepActorWrapper(policy.to(device))
    there = evaluate(make_env().to(device), executor, 4, progress=False)
    cast = evaluate(on_device(make_env(), str(device)), executor, 4, progress=False)
    assert [e.seed for e in here.episodes] == [e.seed for e in there.episodes]
    assert [e.seed for e in there.episodes] == [e.seed for e in cast.episodes]


def make_chunks():
    return smooth_chunks(60, 8)


TOKENIZERS = {
    "uniform": lambda: UniformActionTokenizer(32, low=[-1.0, -2.0], high=[1.0, 2.0]),
    "vocabulary tail": lambda: VocabTailActionTokenizer(32, full_vocab_size=100),
    "openvla": lambda: OpenVLAActionTokenizer(
        norm_low=[-1.0, -1.0], norm_high=[1.0, 1.0]
    ),
    "fast": lambda: FASTActionTokenizer.fit(make_chunks(), vocab_size=120),
    "beast": lambda: BEASTActionTokenizer.fit(make_chunks(), num_basis=4),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_and_actions_are_those_of_the_cpu(name, device):
    tokenizer = TOKENIZERS[name]()
    chunks = make_chunks().clamp(-0.99, 0.99)
    tokens = tokenizer.encode(chunks)
    actions = tokenizer.decode(tokens)
    tokenizer.to(device)
    found = tokenizer.encode(chunks.to(device))
    assert found.device.type == device.type
    # An action on an edge may fall to either side where sums are rounded otherwise.
    assert (found.cpu() != tokens).float().mean() < 1e-2
    back = tokenizer.decode(tokens.to(device))
    torch.testing.assert_close(back.cpu(), actions, atol=1e-5, rtol=1e-5)


def test_the_grammar_of_a_tokenizer_on_the_device_lies_there(device):
    tokenizer = TOKENIZERS["fast"]().to(device)
    grammar = tokenizer.make_grammar()
    state = grammar.start(3, device)
    assert grammar.allowed(state).device.type == device.type


def test_instructions_statistics_and_flags_take_tensors_of_the_device(device):
    table = InstructionTable(["pick", "place"])
    ids = table.encode(["place", "pick"]).to(device)
    assert table.rows(ids).tolist() == [1, 0]
    assert table.decode(ids) == ["place", "pick"]
    samples = torch.arange(12.0).view(6, 2)
    found = FeatureStatistics.from_samples(samples.to(device))
    torch.testing.assert_close(found.mean, FeatureStatistics.from_samples(samples).mean)
    data = TensorDict({"a": samples.to(device)}, [6], device=device)
    assert devices_of(data) == {device.type}
