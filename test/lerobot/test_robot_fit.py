"""Checkpoints and policy types that are fitted to the data of another robot."""

from __future__ import annotations

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import TWO
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.policies import make_lerobot_policy
from torchrl_vla.recipes import TrainingSettings, fit_lerobot_policy, train_lerobot
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ActionChunkTransform

pytestmark = pytest.mark.lerobot
needs_pi0 = pytest.mark.skipif("pi0" not in backbones.here(), reason="needs a fork")

LENGTHS = (12, 9)


def make_dataset(action_dim, state_dim, *, names=None, cameras=TWO):
    """Joints around 90 degrees; actions are the joints one degree on."""
    generator = torch.Generator().manual_seed(0)
    count = sum(LENGTHS)
    state = 90 + 20 * torch.randn(count, state_dim, generator=generator)
    action = torch.rand(count, action_dim, generator=generator)
    shared = min(action_dim, state_dim, 3)
    noise = torch.randn(count, shared, generator=generator)
    action[:, :shared] = state[:, :shared] + noise
    size = (count, 3, 28, 28)
    image = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)
    table = InstructionTable(("pick",))
    observation = {"state": state}
    if cameras:
        observation["image"] = {name.split(".")[-1]: image for name in cameras}
    frames = TensorDict(
        {
            "observation": observation,
            "language_instruction": table.ids.repeat(count),
            "action": action,
            "episode_index": torch.repeat_interleave(
                torch.arange(len(LENGTHS)), torch.tensor(LENGTHS)
            ),
            "frame_index": torch.cat([torch.arange(n) for n in LENGTHS]),
        },
        [count],
    )
    metadata = RobotDatasetMetadata(
        "arm",
        action_names=names,
        action_statistics=FeatureStatistics.from_samples(action),
        state_statistics=FeatureStatistics.from_samples(state),
    )
    return DemonstrationDataset(frames, metadata, table)


def targets_of(policy, dataset) -> torch.Tensor:
    """Return the normalized targets without padding, ``[N, A]``."""
    steps = policy.target_steps
    chunks = ActionChunkTransform(
        len(steps), storage=dataset.storage, first_step=steps[0]
    )
    buffer = dataset.replay_buffer(len(dataset), transform=chunks, seed=0)
    batch = policy.make_training_batch(buffer[:])
    return batch["action"][~batch["action_is_pad"]]


@needs_pi0
@pytest.mark.parametrize(("action_dim", "state_dim"), [(6, 6), (7, 5), (9, 8), (2, 1)])
def test_a_padded_base_checkpoint_is_fitted_to_a_robot_of_other_sizes(
    action_dim, state_dim, tmp_path
):
    dataset = make_dataset(action_dim, state_dim)
    with backbones.narrow_gemma():
        base = backbones.make_checkpoint("pi0", tmp_path).folder  # 7 and 5, of 9 and 8
        policy = fit_lerobot_policy(base, dataset)
        assert (policy.action_dim, policy.metadata.state_dim) == (action_dim, state_dim)
        log = train_lerobot(
            policy,
            dataset,
            TrainingSettings(steps=1, batch_size=4),
            train_on_padding=True,
            progress=False,
        )
        assert torch.tensor(log.losses[-1][1]).isfinite()
        policy.to_folder(tmp_path / "tuned")
        again = type(policy).from_pretrained(
            tmp_path / "tuned", instructions=dataset.instructions
        )
        seeds = {"noise_seed": torch.arange(2)}
        td = dataset.replay_buffer(2, seed=0).sample().update(seeds)
        chunk = policy.eval()(td.clone())["action_chunk"]
        assert chunk.shape == (2, 8, action_dim)
        assert torch.equal(again(td)["action_chunk"], chunk)


@needs_pi0
def test_a_fitted_checkpoint_normalizes_with_the_datas_statistics(tmp_path):
    dataset = make_dataset(6, 6)
    with backbones.narrow_gemma():
        base = backbones.make_checkpoint("pi0", tmp_path).folder
        targets = targets_of(fit_lerobot_policy(base, dataset), dataset)
    # Every frame is in several chunks, those at an episode's ends in fewer.
    assert targets.mean(0).abs().max() < 0.3
    assert (targets.std(0) - 1).abs().max() < 0.2


@needs_pi0
def test_a_robot_beyond_the_padded_size_is_refused(tmp_path):
    with backbones.narrow_gemma():
        base = backbones.make_checkpoint("pi0", tmp_path).folder
        with pytest.raises(
            SchemaError, match=r"at most 9 numbers at 'action'.*got 10.*larger model"
        ):
            fit_lerobot_policy(base, make_dataset(10, 5))
        with pytest.raises(SchemaError, match=r"at most 8 numbers at 'observation\.st"):
            fit_lerobot_policy(base, make_dataset(7, 9))


def test_a_checkpoint_that_does_not_pad_is_not_fitted_to_other_sizes(checkpoint):
    with pytest.raises(
        SchemaError,
        match=r"expected 7 numbers at 'action' .*'act', got 6 .*fit_lerobot_policy"
        r"\('act', dataset\)",
    ):
        fit_lerobot_policy(checkpoint("act-cameras").folder, make_dataset(6, 5))


def test_smolvla_is_fitted_to_a_robot_of_other_sizes(checkpoint):
    dataset = make_dataset(3, 4)
    policy = fit_lerobot_policy(checkpoint("smolvla").folder, dataset)
    td = dataset.replay_buffer(2, seed=0).sample()
    assert policy.eval()(td)["action_chunk"].shape == (2, 10, 3)


@needs_pi0
@pytest.mark.parametrize("names", [None, ("x", "y", "z", "gripper")])
def test_relative_actions_get_statistics_of_their_own(names, tmp_path):
    dataset = make_dataset(4, 5, names=names)
    with backbones.narrow_gemma():
        folder = backbones.make_relative_checkpoint(tmp_path).folder
        policy = fit_lerobot_policy(folder, dataset)
        targets = targets_of(policy, dataset)
    assert targets.mean(0).abs().max() < 1e-4
    assert (targets.std(0, correction=0) - 1).abs().max() < 1e-4
    step = next(s for s in policy.pipeline.preprocessor.steps if hasattr(s, "norm_map"))
    mean = step._tensor_stats["action"]["mean"]
    state, action = dataset.frames["observation", "state"], dataset.frames["action"]
    # By hand: all pairs of frames of an episode, at most seven apart.
    first = [
        float(action[j, 0] - state[i, 0])
        for i in range(len(dataset))
        for j in range(i, min(i + 8, LENGTHS[0] if i < LENGTHS[0] else sum(LENGTHS)))
    ]
    assert mean[0].item() == pytest.approx(sum(first) / len(first), rel=1e-4)
    assert 0 < mean[3] < 1  # the gripper stays absolute


@needs_pi0
def test_a_relative_policy_acts_with_the_state_that_it_saw(tmp_path):
    """Its postprocessor makes actions absolute with the preprocessor's own state."""
    dataset = make_dataset(4, 5)
    with backbones.narrow_gemma():
        folder = backbones.make_relative_checkpoint(tmp_path).folder
        policy = fit_lerobot_policy(folder, dataset).eval()
        td = dataset.replay_buffer(2, seed=0).sample()
        td["noise_seed"] = torch.arange(2)
        one = policy(td.clone())["action_chunk"]
        td["observation", "state"] = td["observation", "state"] + 10.0
        other = policy(td)["action_chunk"]
    moved = torch.tensor([10.0, 10.0, 10.0, 0.0]).expand_as(one)
    assert torch.allclose(other - one, moved, atol=1e-3)


@needs_pi0
def test_relative_actions_without_a_full_state_or_names_are_refused(tmp_path):
    with backbones.narrow_gemma():
        folder = backbones.make_relative_checkpoint(tmp_path).folder
        with pytest.raises(SchemaError, match=r"a state with the 4 numbers .* got 3"):
            fit_lerobot_policy(folder, make_dataset(4, 3))
        with pytest.raises(SchemaError, match=r"5 action_names in .*\['gripper'\]"):
            fit_lerobot_policy(folder, make_dataset(5, 5))
        plain = fit_lerobot_policy(
            folder, make_dataset(5, 5), config={"relative_exclude_joints": []}
        )
        assert targets_of(plain, make_dataset(5, 5)).mean(0).abs().max() < 1e-4


@needs_pi0
def test_a_plain_checkpoint_can_be_fitted_to_relative_actions(tmp_path):
    dataset = make_dataset(4, 5)
    with backbones.narrow_gemma():
        base = backbones.make_checkpoint("pi0", tmp_path).folder
        config = {"use_relative_actions": True, "relative_exclude_joints": []}
        policy = fit_lerobot_policy(base, dataset, config=config)
        targets = targets_of(policy, dataset)
    assert targets.mean(0).abs().max() < 1e-4


def test_metadata_alone_do_not_give_relative_statistics(tmp_path):
    if "pi0" not in backbones.here():
        pytest.skip("needs a fork")
    backbones.make_tokenizer(tmp_path / "clip-tiny")
    metadata = make_dataset(4, 5).metadata
    config = {
        **backbones.RECIPES["pi0"][2],
        "use_relative_actions": True,
        "relative_exclude_joints": [],
    }
    with (
        backbones.narrow_gemma(),
        backbones._tokenizer_at(tmp_path / "clip-tiny", "pi0"),
        pytest.raises(SchemaError, match="statistics of relative actions for a policy"),
    ):
        make_lerobot_policy(
            "pi0", metadata, image_sizes={"front": (3, 28, 28)}, config=config
        )


def test_what_the_dataset_gives_is_not_an_option(checkpoint):
    with pytest.raises(TypeError, match=r"expected no \['statistics'\], which the"):
        fit_lerobot_policy(
            checkpoint("act-cameras").folder, make_dataset(7, 5), statistics={}
        )


def test_sparse_dimensions_are_normalized_by_their_range():
    from torchrl_vla.policies.lerobot.load.robot_fit import lerobot_statistics

    values = torch.zeros(1000, 1)
    values[3] = 0.5
    statistics = FeatureStatistics.from_samples(values)
    metadata = RobotDatasetMetadata("arm", action_statistics=statistics)
    assert lerobot_statistics(metadata)["action"]["q99"].tolist() == [0.5]
