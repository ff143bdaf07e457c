from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate, hash_weights
from torchrl_vla.policies import BestOfN, NoiseSpacePolicy, ResidualPolicy
from torchrl_vla.recipes import (
    OFF_POLICY,
    QC,
    RLPD,
    FinetuneSettings,
    NoiseSpace,
    Residual,
    ResumeError,
    RunLog,
    SettingsError,
    finetune,
    load_checkpoint,
    load_executor,
    make_policy,
    make_space,
    to_stochastic,
)
from torchrl_vla.recipes.finetuning.demonstration_decisions import (
    demonstration_decisions,
)
from torchrl_vla.recipes.finetuning.off_policy_learner import OffPolicyLearner
from torchrl_vla.recipes.finetuning.rollouts import Rollouts, make_decision_env
from torchrl_vla.schema import mark_space

SMALL = {"members": 3, "hidden": 16, "updates_per_decision": 0.5}
ALGORITHMS = {
    "rlpd": RLPD(warm_up=2, **SMALL),
    "qc": QC(num_samples=3, warm_up=2, **SMALL),
    "residual": Residual(warm_up=2, **SMALL),
    "dsrl": NoiseSpace(**SMALL),
}
SETTINGS = FinetuneSettings(
    iterations=3, minibatch_size=8, eval_episodes=4, eval_interval=3, lr=1e-2
)


def make_env(num_envs=4):
    return TabletopEnv(num_envs, image_size=16, num_blocks=2, max_steps=12, seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env()
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 6, folder=folder, progress=False)


def parts(dataset, name):
    torch.manual_seed(0)
    head = "flow" if name in ("dsrl", "qc") else "regression"
    policy = make_policy(dataset, chunk_size=4, head=head, hidden=16)
    space = make_space(dataset.metadata, head)
    mark_space(policy, space.policy_space)
    policy.instructions = dataset.instructions
    return to_stochastic(policy) if name == "rlpd" else policy, space


def run(dataset, name, folder, settings=SETTINGS):
    policy, space = parts(dataset, name)
    return finetune(
        policy,
        space,
        make_env(),
        folder,
        replace(settings, algorithm=ALGORITHMS[name]),
        demonstrations=None if name == "dsrl" else dataset,
        progress=False,
    )


def weights(folder):
    state = torch.load(folder / "training_state.pt", weights_only=True)
    return state["parts"]


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if torch.is_tensor(value):
            assert torch.equal(found[key], value), key
        elif type(value) is dict:
            check_equal(found[key], value)
        else:
            assert found[key] == value, key


@pytest.mark.parametrize("name", OFF_POLICY)
def test_a_training_that_was_killed_ends_as_one_that_was_not(name, dataset, tmp_path):
    run(dataset, name, tmp_path / "whole")
    first = replace(SETTINGS, iterations=2)
    run(dataset, name, tmp_path / "killed", first)
    # A segment that was written before the kill, and the state that would name it was
    # not:
    online = tmp_path / "killed" / "replay" / "online"
    shutil.copy(next(online.iterdir()), online / "00000099-16.pt")
    run(dataset, name, tmp_path / "killed")
    for part in ("policy", "loss", "optimizer"):
        found, expected = (weights(tmp_path / k)[part] for k in ("killed", "whole"))
        if part == "optimizer":
            found, expected = found["state"], expected["state"]
        check_equal(dict(found), dict(expected))
    assert not (online / "00000099-16.pt").exists()
    log = RunLog.read(tmp_path / "whole" / "log.csv")
    assert [row["updates"] for row in log] == [row["decisions"] // 2 for row in log]
    again, _ = load_checkpoint(tmp_path / "killed" / "policy")
    whole, _ = load_checkpoint(tmp_path / "whole" / "policy")
    assert hash_weights(again) == hash_weights(whole)
    metadata = make_env().metadata
    executor = load_executor(tmp_path / "whole" / "policy", metadata=metadata)
    result = evaluate(make_env(), executor, 4, progress=False)
    assert len(result) == 4


def test_before_is_the_policy_that_was_given(dataset, tmp_path):
    policy, _ = parts(dataset, "qc")
    result = run(dataset, "qc", tmp_path / "qc", replace(SETTINGS, iterations=1))
    digest = result.before.provenance["policy"]["sha256"]
    assert digest == hash_weights(policy)
    assert result.after.provenance["policy"]["sha256"] != digest


@pytest.mark.parametrize(
    ("name", "kind"),
    [("residual", ResidualPolicy), ("dsrl", NoiseSpacePolicy), ("qc", BestOfN)],
)
def test_the_policy_inside_keeps_its_weights(name, kind, dataset, tmp_path):
    policy, _ = parts(dataset, name)
    run(dataset, name, tmp_path / name)
    around, _ = load_checkpoint(tmp_path / name / "policy")
    assert type(around) is kind
    assert hash_weights(around.policy) == hash_weights(policy)


def make_learner(dataset, name, tmp_path, **changes):
    policy, space = parts(dataset, name)
    settings = replace(SETTINGS, algorithm=replace(ALGORITHMS[name], **changes))
    demonstrations = None if name == "dsrl" else dataset
    return OffPolicyLearner(
        policy, space, settings, demonstrations, make_env(), tmp_path
    )


def test_the_warm_up_trains_the_critic_alone(dataset, tmp_path):
    learner = make_learner(dataset, "residual", tmp_path)
    before = learner.policy.state_dict()
    kept = {name: value.clone() for name, value in before.items()}
    critic = {n: v.clone() for n, v in learner.made.critic.state_dict().items()}
    learner.begin()
    assert all(torch.equal(v, kept[n]) for n, v in learner.policy.state_dict().items())
    moved = learner.made.critic.state_dict()
    assert any(not torch.equal(value, critic[name]) for name, value in moved.items())


def test_the_replay_keeps_features_instead_of_images(dataset, tmp_path):
    learner = make_learner(dataset, "residual", tmp_path)
    learner.begin()
    batch = learner.replay.sample(4)
    assert batch["observation_features"].shape == (4, 16)
    assert "observation" not in batch
    assert "observation" not in batch["next"]
    learner = make_learner(dataset, "rlpd", tmp_path / "rlpd")
    learner.begin()
    assert learner.replay.sample(4)["observation", "image"].dtype == torch.uint8


def test_demonstrations_become_decisions_by_hand(dataset):
    policy, space = parts(dataset, "residual")
    data = torch.cat(list(demonstration_decisions(policy, space, dataset, 3)))
    frames = dataset.frames
    episode = frames["episode_index"].reshape(-1)
    assert len(data) == len(frames)
    state = data["observation", "state"]
    for row in range(len(frames)):
        left = int((episode[row:] == episode[row]).sum())  # with its own
        steps = min(left, 3)
        assert data["next", "executed_steps"][row].item() == steps
        executed = data["next", "is_executed"][row].tolist()
        assert executed == [True] * steps + [False] * (4 - steps)
        ended = left <= 3
        assert data["next", "terminated"][row].item() == ended
        assert data["next", "reward"][row].item() == float(ended)
        if not ended:
            after = data["next", "observation", "state"][row]
            assert torch.equal(after, state[row + 3])
    assert data["next", "terminated"].sum() == 3 * dataset.num_episodes


def test_stored_chunks_are_those_that_the_policy_sampled(dataset, tmp_path):
    """In model space: scaled to the robot's, a critic would value other numbers."""
    learner = make_learner(dataset, "residual", tmp_path, bound=0.5)
    _, space = parts(dataset, "residual")
    env = make_decision_env(make_env(), space, chunk_size=4)
    rollout = Rollouts(env, learner.policy, 3).collect(1)
    rows = learner._complete(rollout.reshape(-1))
    apart = (rows["action_chunk"] - rows["base_chunk"]).abs()
    assert 0.1 < apart.max() <= 0.5
    base = learner.policy.policy(rollout.reshape(-1).select(*learner.policy.in_keys))
    torch.testing.assert_close(base["action_chunk"], rows["base_chunk"])


def test_as_many_actions_count_as_the_policy_inside_wants_executed(dataset, tmp_path):
    policy, space = parts(dataset, "residual")
    policy.n_action_steps = 3  # as LeRobot's policies have
    settings = replace(SETTINGS, algorithm=ALGORITHMS["residual"])
    learner = OffPolicyLearner(policy, space, settings, dataset, make_env(), tmp_path)
    assert learner.policy.n_action_steps == 3
    assert learner.made.critic.planned.tolist() == [True, True, True, False]
    learner.begin()
    assert learner.replay.sample(64)["next", "executed_steps"].max() == 3


@pytest.mark.parametrize("name", ["residual", "dsrl"])
def test_an_encoder_that_is_trained_begins_with_the_policys_features(
    name, dataset, tmp_path
):
    learner = make_learner(
        dataset, name, tmp_path, train_encoder=True, warm_up=0, demonstration_share=0.5
    )
    encoders = [learner.policy.encoder, learner.made.critic.encoder]
    with torch.no_grad():
        seen = learner.policy.policy.backbone.entry.weight.clone()
    assert all(torch.equal(e.backbone.entry.weight, seen) for e in encoders)
    _, space = parts(dataset, name)
    env = make_decision_env(make_env(), space, chunk_size=4)
    learner.begin()
    learner.learn(Rollouts(env, learner.policy, 3).collect(1), 1)
    batch = learner.replay.sample(4)
    assert "observation_features" not in batch
    assert batch["next", "observation", "image"].dtype == torch.uint8
    for _ in range(3):  # the actor's last layer is 0 at first, and hides its encoder
        learner._step("here")
    assert not any(torch.equal(e.backbone.entry.weight, seen) for e in encoders)
    assert torch.equal(learner.policy.policy.backbone.entry.weight, seen)


def test_the_entropy_that_is_aimed_at_is_in_units_of_the_bound(dataset, tmp_path):
    """One nat below that of a unit per number: else a small bound cannot reach it."""
    learner = make_learner(dataset, "residual", tmp_path, bound=0.1)
    by_hand = 4 * 2 * (-2.302585 - 1)  # of four actions of two numbers
    assert learner.loss.entropy.target == pytest.approx(by_hand)
    rlpd = make_learner(dataset, "rlpd", tmp_path)
    assert rlpd.loss.entropy.target == -8.0


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("residual", {"bc_coeff": 1.0}, r"no settings of on-policy .* \{'bc_coeff'"),
        ("dsrl", {}, "expected no demonstrations with NoiseSpace"),
        ("qc", {"target_kl": 0.1}, "'target_kl': 0.1"),
    ],
)
def test_what_has_no_effect_is_refused(name, change, message, dataset, tmp_path):
    policy, space = parts(dataset, name)
    settings = replace(SETTINGS, algorithm=ALGORITHMS[name], **change)
    with pytest.raises(SettingsError, match=message):
        finetune(
            policy,
            space,
            make_env(),
            tmp_path / "x",
            settings,
            demonstrations=dataset,
            progress=False,
        )


@pytest.mark.parametrize(
    ("algorithm", "name", "message"),
    [
        (RLPD(**SMALL), "qc", "expected a Gaussian policy for RLPD"),
        (
            NoiseSpace(**SMALL),
            "residual",
            "expected a flow or diffusion policy, which starts",
        ),
        (Residual(warm_up=3, **SMALL), "residual", "expected demonstrations with Resi"),
    ],
)
def test_policies_and_data_that_do_not_fit_are_refused(
    algorithm, name, message, dataset, tmp_path
):
    policy, space = parts(dataset, name)
    settings = replace(SETTINGS, algorithm=algorithm)
    with pytest.raises(SettingsError, match=message):
        finetune(policy, space, make_env(), tmp_path / "x", settings, progress=False)


def test_a_critic_of_the_users_is_refused(dataset, tmp_path):
    policy, space = parts(dataset, "residual")
    settings = replace(SETTINGS, algorithm=Residual(**SMALL))
    with pytest.raises(SettingsError, match="expected no critic with Residual"):
        finetune(
            policy,
            space,
            make_env(),
            tmp_path / "x",
            settings,
            critic=policy.make_critic(),
            progress=False,
        )


def test_other_settings_do_not_resume(dataset, tmp_path):
    run(dataset, "dsrl", tmp_path / "run", replace(SETTINGS, iterations=1))
    policy, space = parts(dataset, "dsrl")
    other = replace(SETTINGS, algorithm=replace(ALGORITHMS["dsrl"], tau=0.1))
    with pytest.raises(ResumeError, match="tau"):
        finetune(policy, space, make_env(), tmp_path / "run", other, progress=False)


@pytest.mark.parametrize(
    ("field", "value"), [("gamma", 1.5), ("tau", 0.0), ("target_members", 9)]
)
def test_numbers_out_of_range_are_refused(field, value):
    with pytest.raises(SettingsError, match=f"Residual: expected {field} in"):
        Residual(**{field: value})
