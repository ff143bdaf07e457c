"""LeRobot's flow policies learn by reinforcement in the recipe finetune."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import lerobot_vla_backbones as backbones
import pytest
import torch
from robot_space_fakes import RewardRight
from tabletop_smolvla import make_tabletop_smolvla
from torchrl.envs import TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.policies import (
    BackboneConfig,
    FlowSDENoise,
    LearnedNoise,
    LeRobotFlowPolicy,
    TinyCritic,
    TinyVLA,
)
from torchrl_vla.recipes import (
    GRPO,
    PPO,
    FinetuneSettings,
    RunLog,
    SettingsError,
    finetune,
    load_executor,
)
from torchrl_vla.recipes.finetuning.policies import choose_critic
from torchrl_vla.spaces import ModelSpace

pytestmark = pytest.mark.lerobot

PAGE = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text()
ROWS = 4
#: Kernels round a row in another batch differently: measured 2e-6 of a log-density.
OTHER_BATCH = 1e-4
PPO_ONCE = FinetuneSettings(
    algorithm=PPO(critic_warmup=1),
    iterations=2,
    replan_interval=4,
    epochs=1,
    minibatch_size=5,
    lr=1e-3,
    reward="environment",  # RewardRight's
    eval_episodes=ROWS,
    eval_interval=2,
)
#: One step per batch, so that an iteration's ratios are those before its update.
GRPO_ONCE = dataclasses.replace(
    PPO_ONCE, algorithm=GRPO(group_size=2, keep=None), minibatch_size=64
)


def make_env():
    env = TabletopEnv(ROWS, image_size=32, max_steps=8, num_blocks=2, seed=0)
    return TransformedEnv(env, RewardRight())


def make_policy(vlm, noise=None):
    return make_tabletop_smolvla(vlm, make_env(), noise)


def make_critic():
    torch.manual_seed(1)
    table = make_env().instructions
    backbone = BackboneConfig(state_dim=2, hidden=16, depth=1)
    eyes = TinyVLA(action_dim=1, chunk_size=1, instructions=table, backbone=backbone)
    return TinyCritic.from_policy(eyes)


def run(policy, folder, settings, **options):
    options = {"progress": False, **options}
    return finetune(policy, None, make_env(), folder, settings, **options)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def changed(module, before):
    now = module.state_dict()
    return {name for name in now if not torch.equal(now[name], before[name])}


@pytest.fixture(scope="module")
def whole(tiny_vlm, tmp_path_factory):
    """A training by PPO that nobody interrupts, and the weights before it."""
    folder = tmp_path_factory.mktemp("whole")
    policy, critic = make_policy(tiny_vlm), make_critic()
    before = weights(policy)
    run(policy, folder, PPO_ONCE, critic=critic)
    return folder, policy, critic, before


def test_ppo_changes_weights_that_are_not_frozen_and_no_other(whole):
    _, policy, critic, before = whole
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert len(trainable) < len(list(policy.parameters()))  # the eyes are frozen
    moved = changed(policy, before)
    assert moved
    assert moved <= trainable
    assert any("action_out_proj" in name for name in moved)
    assert "backbone.out.weight" in changed(critic, weights(make_critic()))


def test_before_the_first_update_ratios_are_one_up_to_rounding(whole):
    first = RunLog.read(whole[0] / "log.csv")[0]  # the critic learns alone in it
    assert first["max_ratio"] == pytest.approx(1.0, abs=OTHER_BATCH)
    assert first["clip_fraction"] == 0.0


def test_log_probabilities_that_are_recomputed_make_them_exactly_one(
    tiny_vlm, tmp_path
):
    settings = dataclasses.replace(PPO_ONCE, recompute=True, iterations=1)
    result = run(make_policy(tiny_vlm), tmp_path, settings, critic=make_critic())
    assert result.log[0]["max_ratio"] == 1.0
    assert result.log[0]["kl_approx"] == 0.0


class KilledError(Exception):
    pass


def test_a_training_that_was_killed_goes_on_to_the_same_weights(
    whole, tiny_vlm, tmp_path, monkeypatch
):
    append = RunLog.append

    def deadly(self, row):
        if row["iteration"] == 2:
            raise KilledError
        append(self, row)

    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "append", deadly)
        with pytest.raises(KilledError):
            run(make_policy(tiny_vlm), tmp_path, PPO_ONCE, critic=make_critic())
    policy, critic = make_policy(tiny_vlm), make_critic()
    run(policy, tmp_path, PPO_ONCE, critic=critic)
    assert changed(policy, weights(whole[1])) == set()
    assert changed(critic, weights(whole[2])) == set()


def test_what_is_written_acts_and_can_be_trained_on(whole):
    folder, policy, _, _ = whole
    env = make_env()
    actor = load_executor(
        folder / "policy", metadata=env.metadata, instructions=env.instructions
    )
    assert actor.replan_interval == 4
    assert changed(actor.policy, weights(policy.wrapper)) == set()
    again = LeRobotFlowPolicy.from_pretrained(folder / "policy")
    assert again.noise.scale == 0.5
    assert (folder / "policy" / "metadata.json").is_file()


def test_grpo_keeps_near_the_reference_and_clones_beside(tiny_vlm, tmp_path):
    env = make_env()
    demos = collect(
        env, env.make_expert(), 4, folder=tmp_path / "demos", progress=False
    )
    policy = make_policy(tiny_vlm, LearnedNoise(2, 6, 2, hidden=8))
    before = weights(policy)
    settings = dataclasses.replace(
        GRPO_ONCE, reference_kl_coeff=0.1, bc_coeff=0.5, entropy_coeff=0.01
    )
    result = run(policy, tmp_path / "run", settings, demonstrations=demos)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    moved = changed(policy, before)
    assert moved <= trainable
    assert any(name.startswith("noise.") for name in moved)
    first, second = result.log
    assert first["max_ratio"] == pytest.approx(1.0, abs=OTHER_BATCH)
    assert first["reference_kl"] == pytest.approx(0.0, abs=OTHER_BATCH)
    assert second["reference_kl"] > first["reference_kl"]
    assert min(first["loss_bc"], second["loss_bc"]) > 0
    again = LeRobotFlowPolicy.from_pretrained(tmp_path / "run" / "policy")
    assert changed(again.noise, weights(policy.noise)) == set()


def test_a_space_that_would_normalize_twice_is_refused(tiny_vlm, tmp_path):
    env = make_env()
    with pytest.raises(
        SettingsError, match=r"expected space=None for LeRobotFlowPolicy, .* 'tabletop'"
    ):
        finetune(make_policy(tiny_vlm), ModelSpace(env.metadata), env, tmp_path)


def test_an_environment_that_says_nothing_of_its_robot_is_refused(tiny_vlm, tmp_path):
    env = make_env()
    env.base_env.metadata = None
    with pytest.raises(
        SettingsError, match=r"RobotDatasetMetadata at env\.metadata, .* got NoneType"
    ):
        finetune(make_policy(tiny_vlm), None, env, tmp_path)


def test_ppo_without_a_critic_makes_one_of_the_environments_observations(tiny_vlm):
    policy = make_policy(tiny_vlm)
    critic = choose_critic(policy, None, PPO_ONCE.algorithm, make_env())
    assert isinstance(critic, TinyCritic)
    assert set(critic.in_keys) == set(make_critic().in_keys)
    with pytest.raises(
        SettingsError, match=r"expected a critic with PPO for LeRobotFlowPolicy"
    ):
        choose_critic(policy, None, PPO_ONCE.algorithm)


@pytest.mark.skipif("pi0" not in backbones.here(), reason="0.4.4 has no pi0 here")
def test_cloning_beside_with_a_loss_that_counts_padding_is_refused(tmp_path):
    with backbones.narrow_gemma():
        made = backbones.make_checkpoint("pi0", tmp_path / "pi0")
        policy = LeRobotFlowPolicy.from_pretrained(made.folder, noise=FlowSDENoise(0.5))
    env = make_env()
    demos = collect(
        env, env.make_expert(), 1, folder=tmp_path / "demos", progress=False
    )
    settings = dataclasses.replace(GRPO_ONCE, bc_coeff=0.5)
    with pytest.raises(
        SettingsError, match=r"got PI0Policy, which counts them.* Leave demonstrations"
    ):
        run(policy, tmp_path / "run", settings, demonstrations=demos)


def test_the_python_of_the_page_runs(tiny_vlm, tmp_path, monkeypatch, capsys):
    section = PAGE.split("## Fine-tune a LeRobot flow policy")[1].split("\n## ")[0]
    (program,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    smaller = {
        "num_envs=64": "num_envs=2, image_size=32",
        "minibatch_size=64": "minibatch_size=64, iterations=1, eval_episodes=2",
    }
    for old, new in smaller.items():
        assert old in program
        program = program.replace(old, new)
    monkeypatch.chdir(tmp_path)
    make_policy(tiny_vlm).wrapper.to_folder(tmp_path / "runs" / "smolvla")
    exec(compile(program, "docs/finetuning.md", "exec"), {})
    assert "after" in capsys.readouterr().out
    assert (tmp_path / "runs" / "smolvla-ppo" / "policy" / "noise.pt").is_file()
