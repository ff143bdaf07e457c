from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from robot_space_fakes import (
    RewardRight,
    make_mover,
    make_state_critic,
)
from torchrl.envs import Transform, TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation import EvaluationResult
from torchrl_vla.objectives import ChunkPPOLoss, DecisionGAE
from torchrl_vla.profiling import TrainingProfiler, read_step_samples
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    RLOO,
    FinetuneSettings,
    ResumeError,
    RunLog,
    SettingsError,
    finetune,
    load_checkpoint,
    make_decision_env,
    make_policy,
    make_space,
    to_stochastic,
)
from torchrl_vla.recipes.finetuning.rollouts import Rollouts
from torchrl_vla.schema import MissingKeyError

SMALL = FinetuneSettings(
    algorithm=PPO(critic_warmup=1),
    iterations=3,
    epochs=2,
    minibatch_size=16,
    lr=1e-2,
    entropy_coeff=0.1,  # a gradient also where no episode succeeds
    eval_episodes=8,
    eval_interval=2,
)


def make_env(num_envs=8):
    return TabletopEnv(num_envs, image_size=16, num_blocks=2, max_steps=12, seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env()
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 12, folder=folder, progress=False)


def fresh(dataset, head="tokens"):
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=4, head=head, hidden=16, depth=1)
    return to_stochastic(policy), make_space(dataset.metadata, head)


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.parameters()])


def run(dataset, folder, settings=SMALL, head="tokens", **options):
    policy, space = fresh(dataset, head)
    result = finetune(
        policy, space, make_env(), folder, settings, progress=False, **options
    )
    return policy, result


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A training that nobody interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    return *run(dataset, folder), folder


class KilledError(Exception):
    pass


@pytest.mark.parametrize("where", ["while collecting", "while learning", "after"])
@pytest.mark.parametrize("iteration", [1, 3])
def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    dataset, whole, tmp_path, monkeypatch, where, iteration
):
    policy, space = fresh(dataset)
    target, name = {
        "while collecting": (Rollouts, "collect"),
        "while learning": (ChunkPPOLoss, "forward"),
        "after": (RunLog, "append"),
    }[where]
    original = getattr(target, name)
    calls = []

    def deadly(self, *arguments):
        calls.append(arguments)
        due = iteration if where != "while learning" else 4 * iteration - 1
        if len(calls) == due:
            raise KilledError
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, deadly)
        with pytest.raises(KilledError):
            finetune(policy, space, make_env(), tmp_path, SMALL, progress=False)
    resumed, result = run(dataset, tmp_path)
    expected, uninterrupted, _ = whole
    assert torch.equal(weights(resumed), weights(expected))
    drop = ("seconds",)
    assert [{k: v for k, v in row.items() if k not in drop} for row in result.log] == [
        {k: v for k, v in row.items() if k not in drop} for row in uninterrupted.log
    ]
    assert result.after.episodes == uninterrupted.after.episodes
    saved, _ = load_checkpoint(tmp_path / "policy")
    assert torch.equal(weights(saved), weights(expected))


def test_killed_before_the_first_state_it_is_judged_anew(dataset, whole, tmp_path):
    _, uninterrupted, folder = whole
    before = tmp_path / "evaluations" / "00000.json"
    before.parent.mkdir()
    before.write_text("")  # killed while writing
    _, result = run(dataset, tmp_path, replace(SMALL, iterations=1))
    assert result.before.episodes == uninterrupted.before.episodes
    # Another policy's, that was killed in the same folder, is not this one's past.
    other = EvaluationResult.from_json(folder / "evaluations" / "00003.json")
    (tmp_path / "training_state.pt").unlink()
    before.write_text(other.to_json())
    _, result = run(dataset, tmp_path, replace(SMALL, iterations=1))
    assert result.before.provenance["policy"]["iteration"] == 0


def test_a_finished_training_that_is_run_again_changes_nothing(
    dataset, whole, tmp_path
):
    expected, uninterrupted, folder = whole
    copied = shutil.copytree(folder, tmp_path / "copy")
    again, result = run(dataset, copied)
    assert torch.equal(weights(again), weights(expected))
    assert result.comparison == uninterrupted.comparison


def test_a_finished_training_can_be_made_longer(dataset, whole, tmp_path):
    shorter, _ = run(dataset, tmp_path, replace(SMALL, iterations=2))
    assert not torch.equal(weights(shorter), weights(whole[0]))
    longer, result = run(dataset, tmp_path)
    assert torch.equal(weights(longer), weights(whole[0]))
    assert [row["iteration"] for row in result.log] == [1, 2, 3]


def test_a_decaying_rate_is_that_of_the_iteration_also_after_a_kill(
    dataset, tmp_path, monkeypatch
):
    settings = replace(SMALL, lr_decay=True)
    expected, _ = run(dataset, tmp_path / "whole", settings)
    rates, step = [], torch.optim.AdamW.step

    def spy(self, *arguments):
        rates.append(self.param_groups[0]["lr"])
        if len(rates) == 5:  # in the second iteration
            raise KilledError
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    with pytest.raises(KilledError):
        run(dataset, tmp_path / "killed", settings)
    resumed, _ = run(dataset, tmp_path / "killed", settings)
    assert torch.equal(weights(resumed), weights(expected))
    lr = SMALL.lr
    assert sorted(set(rates), reverse=True) == pytest.approx([lr, lr * 2 / 3, lr / 3])
    with pytest.raises(ResumeError, match=r"'iterations': \(3, 4\)"):
        run(dataset, tmp_path / "killed", replace(settings, iterations=4))


def test_a_folder_with_more_iterations_is_refused(dataset, whole, tmp_path):
    folder = shutil.copytree(whole[2], tmp_path / "copy")
    with pytest.raises(ResumeError, match=r"at most iterations=2 in .*, got 3"):
        run(dataset, folder, replace(SMALL, iterations=2))


def test_random_numbers_drawn_outside_do_not_matter(dataset, whole, tmp_path):
    policy, space = fresh(dataset)
    torch.manual_seed(12345)
    finetune(policy, space, make_env(), tmp_path, SMALL, progress=False)
    assert torch.equal(weights(policy), weights(whole[0]))


def test_another_seed_gives_other_weights(dataset, whole, tmp_path):
    other, _ = run(dataset, tmp_path, replace(SMALL, seed=1))
    assert not torch.equal(weights(other), weights(whole[0]))


def test_a_folder_begun_with_other_settings_is_refused(dataset, whole, tmp_path):
    folder = shutil.copytree(whole[2], tmp_path / "copy")
    with pytest.raises(
        ResumeError, match=r"\(name: \(then, now\)\): \{'lr': \(0\.01, "
    ):
        run(dataset, folder, replace(SMALL, lr=1e-3))


def test_the_log_has_a_line_per_iteration_and_the_evaluations_are_paired(whole):
    _, result, folder = whole
    rows = RunLog.read(folder / "log.csv")
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert ["success" in row for row in rows] == [False, True, True]
    assert sorted(p.name for p in (folder / "evaluations").iterdir()) == [
        "00000.json",
        "00002.json",
        "00003.json",
    ]
    seeds = [e.seed for e in result.before.episodes]
    assert seeds == [e.seed for e in result.after.episodes]
    stored = EvaluationResult.from_json(folder / "evaluations" / "00003.json")
    assert stored.episodes == result.after.episodes
    assert result.comparison.a == result.after


def test_the_critic_learns_alone_at_first(dataset, tmp_path):
    policy, space = fresh(dataset)
    before = weights(policy)
    settings = replace(SMALL, algorithm=PPO(critic_warmup=3))
    finetune(policy, space, make_env(), tmp_path, settings, progress=False)
    assert torch.equal(weights(policy), before)


@pytest.mark.parametrize(
    "head", ["tokens", "regression", "gaussian", "flow", "diffusion"]
)
def test_before_the_first_update_every_ratio_is_one(dataset, head):
    policy, space = fresh(dataset, head)
    env = make_decision_env(make_env(), space, chunk_size=4, seed=3)
    rollouts = Rollouts(env, policy.eval(), num_decisions=3)
    rollout = rollouts.collect(1)
    rollouts.close()
    decisions = PPO().estimate_advantages(
        rollout.set("state_value", torch.zeros(8, 3, 1)), NoCritic()
    )
    loss = ChunkPPOLoss(policy, granularity="token")
    for batch in (decisions, decisions[torch.randperm(24)[:7]]):
        out = loss(batch)
        assert out["max_ratio"].item() == 1.0
        assert out["clip_fraction"].item() == 0.0
        assert out["kl_approx"].item() == 0.0


class NoCritic(torch.nn.Module):
    in_keys = ()

    def __call__(self, tensordict):
        shape = (*tensordict.batch_size, 1)
        return tensordict.set("state_value", torch.zeros(shape))


@pytest.mark.parametrize(
    "algorithm", [GRPO(group_size=4, keep=None), RLOO(group_size=4)]
)
def test_groups_of_rows_begin_alike(dataset, algorithm):
    policy, space = fresh(dataset)
    env = make_decision_env(make_env(), space, chunk_size=4, group_size=4)
    rollout = Rollouts(env, policy, num_decisions=3).collect(1)
    seeds = rollout["episode_seed"][:, 0]
    assert seeds[:4].unique().numel() == seeds[4:].unique().numel() == 1
    images = rollout["observation", "image"][:, 0]
    assert torch.equal(images[0], images[3])
    assert not torch.equal(images[0], images[4])


def test_demonstrations_are_cloned_beside(dataset, whole, tmp_path):
    settings = replace(SMALL, bc_coeff=0.5)
    policy, result = run(dataset, tmp_path, settings, demonstrations=dataset)
    assert all(row["loss_bc"] > 0 for row in result.log[1:])
    assert not torch.equal(weights(policy), weights(whole[0]))


def test_the_reference_keeps_its_weights(dataset, tmp_path):
    settings = replace(SMALL, reference_kl_coeff=1.0)
    _, result = run(dataset, tmp_path, settings)
    # nothing has changed in the critic's iteration, later the policy has moved
    assert result.log[0]["reference_kl"] == 0.0
    assert result.log[2]["reference_kl"] > 0.0


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ({"bc_coeff": 0.5}, {}, r"expected demonstrations and bc_coeff > 0 together"),
        (
            {"algorithm": GRPO(group_size=5)},
            {},
            r"expected environments in whole groups of 5, got 8 in Table",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    dataset, tmp_path, settings, options, message
):
    with pytest.raises(SettingsError, match=message):
        run(dataset, tmp_path, replace(SMALL, **settings), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"iterations": 0}, r"expected iterations >= 1, got 0"),
        ({"lr": 0.0}, r"expected lr > 0, got 0\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(SettingsError, match=message):
        FinetuneSettings(**options)


def test_a_policy_on_another_device_is_refused_at_once(dataset, tmp_path):
    policy, space = fresh(dataset)
    with pytest.raises(SettingsError, match=r"the policy on 'cpu', where .*on 'meta'"):
        finetune(policy.to("meta"), space, make_env(), tmp_path, SMALL)
    assert list(tmp_path.iterdir()) == []


def test_another_policy_does_not_resume_the_training(dataset, whole, tmp_path):
    copied = shutil.copytree(whole[2], tmp_path / "copy")
    torch.manual_seed(5)
    other = make_policy(dataset, chunk_size=4, head="tokens", hidden=16, depth=1)
    space = make_space(dataset.metadata, "tokens")
    with pytest.raises(ResumeError, match="got one with other initial weights"):
        finetune(other, space, make_env(), copied, SMALL, progress=False)


def test_a_folder_of_something_else_is_refused(dataset, tmp_path):
    (tmp_path / "metadata.json").write_text("{}")
    policy, space = fresh(dataset)
    with pytest.raises(FileExistsError, match=r"finetune: .*got \['metadata\.json'\]"):
        finetune(policy, space, make_env(), tmp_path, SMALL, progress=False)


def test_a_regression_head_is_refused(dataset, tmp_path):
    torch.manual_seed(0)
    policy = make_policy(dataset, chunk_size=4, hidden=16, depth=1)
    space = make_space(dataset.metadata)
    with pytest.raises(TypeError, match=r"got TinyVLA. Call to_stochastic"):
        finetune(policy, space, make_env(), tmp_path, SMALL, progress=False)


def test_success_early_in_a_chunk_pays_at_least_as_much_as_late(dataset):
    """An oracle that waits gains nothing: TorchRL's recipe pays it alone."""
    space = make_space(dataset.metadata, "tokens")
    env = make_decision_env(make_long_env(), space, chunk_size=32)
    expert = make_long_env()
    returns, advantages, lengths = [], [], []
    for wait in range(4):
        step = env.reset(episode_seeds=torch.arange(4))
        chunk = oracle_chunk(expert, torch.arange(4), wait, space)
        after = env.step(step.set("action_chunk", chunk))
        data = after.unsqueeze(1)
        returns.append(data["next", "reward"].flatten())
        lengths.append(data["next", "executed_steps"].flatten())
        advantages.append(DecisionGAE(NoCritic())(data)["advantage"].flatten())
        assert after["next", "success"].flatten().tolist() == [True] * 4
    assert all((reward == 1.0).all() for reward in returns)
    for row in torch.stack(lengths, 1):
        assert row.unique().numel() > 1  # it did wait
    assert all(torch.equal(advantages[0], other) for other in advantages[1:])


def make_long_env():
    return TabletopEnv(4, image_size=16, num_blocks=2, max_steps=40)


def oracle_chunk(env, seeds, wait, space):
    """Play the expert after ``wait`` steps that stay where they are."""
    data = env.reset(episode_seeds=seeds)
    actions = []
    expert = env.make_expert()
    for index in range(32):
        if index < wait:
            back = 0.6 if index % 2 else -0.6  # long enough not to come down
            action = torch.tensor([[back, 0.0]]).expand(4, 2).clone()
        else:
            action = expert(data.clone())["action"]
        actions.append(action)
        done = data.get("done")
        if not bool(done.all()):
            data = env.step(data.set("action", action))["next"]
    return space.action_scaling.normalize(torch.stack(actions, 1))


class PayForTime(Transform):
    """Pay 10 a step, as simulators do for being close."""

    def __init__(self):
        super().__init__(in_keys=["reward"], out_keys=["reward"])

    def _call(self, next_tensordict):
        return next_tensordict.set("reward", next_tensordict["reward"] + 10)


@pytest.mark.parametrize("reward", ["success", "environment"])
def test_a_simulator_that_pays_for_time_makes_nobody_wait_unless_asked(dataset, reward):
    space = make_space(dataset.metadata, "tokens")
    paying = TransformedEnv(make_long_env(), PayForTime())
    env = make_decision_env(paying, space, chunk_size=32, reward=reward)
    expert, returns = make_long_env(), []
    for wait in (0, 3):
        step = env.reset(episode_seeds=torch.arange(4))
        chunk = oracle_chunk(expert, torch.arange(4), wait, space)
        after = env.step(step.set("action_chunk", chunk))["next"]
        assert after["success"].all()
        returns.append(after["reward"].flatten())
    if reward == "success":
        assert returns[0].tolist() == returns[1].tolist() == [1.0] * 4
    else:  # the trap: 10 for each step of waiting
        assert (returns[1] > returns[0]).any()


def test_an_environment_without_success_is_refused(dataset):
    space = make_space(dataset.metadata, "tokens")
    echo = ToyVLAEnv(2, batch_size=[2])
    with pytest.raises(
        MissingKeyError, match=r"expected 'success' .* ToyVLAEnv, .*reward='environment"
    ):
        make_decision_env(echo, space, chunk_size=2)
    with pytest.raises(ValueError, match=r"reward of \('success', .*got 'dense'"):
        make_decision_env(echo, space, chunk_size=2, reward="dense")


ROBOT = replace(SMALL, iterations=2, reward="environment")  # RewardRight's


def make_easy_env():
    return TransformedEnv(make_env(), RewardRight())


def run_in_robot_space(folder, settings, critic=None, **options):
    policy = make_mover()
    result = finetune(
        policy,
        None,
        make_easy_env(),
        folder,
        settings,
        critic=critic,
        progress=False,
        **options,
    )
    return policy, result


@pytest.mark.parametrize(
    ("algorithm", "critic"),
    [
        (GRPO(group_size=4, keep=None), None),
        (RLOO(group_size=4, keep=None), None),
        (PPO(), make_state_critic()),
    ],
)
def test_any_stochastic_policy_learns_in_robot_space(algorithm, critic, tmp_path):
    settings = replace(ROBOT, algorithm=algorithm, iterations=6, eval_interval=6)
    policy, _ = run_in_robot_space(tmp_path, settings, critic)
    before = make_mover()
    data = make_env().reset()
    right = [p(data.clone())["action_chunk"][..., 0].mean() for p in (before, policy)]
    assert right[1] > right[0] + 0.1  # what is paid
    assert torch.equal(policy.eyes.weight, before.eyes.weight)  # frozen, and left so
    saved, space = load_checkpoint(tmp_path / "policy")
    assert space is None
    assert torch.equal(saved.out.weight, policy.out.weight)


def test_a_critic_that_was_passed_is_resumed_with_the_policy(tmp_path):
    critics = [make_state_critic() for _ in range(3)]
    whole, _ = run_in_robot_space(tmp_path / "whole", ROBOT, critics[0])
    half = replace(ROBOT, iterations=1)
    run_in_robot_space(tmp_path / "parts", half, critics[1])
    resumed, _ = run_in_robot_space(tmp_path / "parts", ROBOT, critics[2])
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(weights(critics[2]), weights(critics[0]))
    assert not torch.equal(weights(critics[1]), weights(critics[0]))


def test_a_policy_of_robot_space_is_cloned_beside_without_scaling(dataset, tmp_path):
    alone, _ = run_in_robot_space(tmp_path / "alone", ROBOT, make_state_critic())
    settings = replace(ROBOT, bc_coeff=0.5)
    cloned, result = run_in_robot_space(
        tmp_path / "cloned", settings, make_state_critic(), demonstrations=dataset
    )
    assert not torch.equal(cloned.out.weight, alone.out.weight)
    # L1 of a network whose output is small: the mean size of the table's actions
    expected = dataset.frames["action"].abs().mean().item()
    assert result.log[1]["loss_bc"] / 0.5 == pytest.approx(expected, rel=0.2)


@pytest.mark.filterwarnings("ignore:TrainingProfiler. expected at least 9 steps")
@pytest.mark.parametrize("mode", ["timing", "summary"])
def test_a_profiled_training_ends_with_the_same_weights(dataset, whole, tmp_path, mode):
    profiler = TrainingProfiler(tmp_path / "profiling", mode, warmup_steps=0)
    policy, _ = run(dataset, tmp_path, profiler=profiler)
    assert torch.equal(weights(policy), weights(whole[0]))
    samples = read_step_samples(tmp_path / "profiling")
    assert [sample.step for sample in samples] == [1, 2, 3]
    sample = samples[-1]
    outer = {*("collect", "advantage", "forward", "backward", "grad_clip"), "optimizer"}
    assert set(sample.sections) == outer | {"policy_call", "env_step", "other"}
    assert sample.inside == ["env_step", "policy_call"]
    total = sum(sample.sections[name] for name in [*outer, "other"])
    assert total == pytest.approx(sample.total_update_s, abs=1e-9)
    # 8 rows of 12 steps in chunks of 4: three decisions of four steps.
    assert (sample.calls["policy_call"], sample.calls["env_step"]) == (3, 12)
    inside = sample.sections["policy_call"] + sample.sections["env_step"]
    assert inside < sample.sections["collect"]
