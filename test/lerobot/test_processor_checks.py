"""Processors that are not a policy's own, or whose numbers cannot be true."""

from __future__ import annotations

import json
import shutil

import lerobot_vla_backbones as backbones
import pytest
import torch
from lerobot_checkpoints import (
    TWO,
    A,
    Made,
    S,
    make_policy,
    make_processors,
    observe,
    stats,
)

from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.schema import MetadataError, SchemaError

pytestmark = pytest.mark.lerobot


def wrap(statistics, name="act-cameras") -> LeRobotPolicyWrapper:
    from lerobot.policies.factory import make_pre_post_processors

    policy = make_policy(name)
    both = make_pre_post_processors(policy.config, dataset_stats=statistics)
    return LeRobotPolicyWrapper(policy, pipeline=LeRobotPipeline(*both))


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """Return a copy of a checkpoint whose stored statistics a test has changed."""
    from safetensors.torch import load_file, save_file

    def damage(change, name="act"):
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint(name).folder, folder)
        files = sorted(folder.glob("*processor*.safetensors"))
        assert len(files) == 2
        for file in files:
            values = load_file(file)
            change(file.name, values)
            save_file({k: v.contiguous() for k, v in values.items()}, file)
        return folder

    return damage


def nan_mean(name, values):
    values["action.mean"][2] = float("nan")


def negative_std(name, values):
    values["action.std"] = -values["action.std"]


def one_number(name, values):
    for key in [key for key in values if key.startswith("action.")]:
        values[key] = values[key][:1].clone()


def eight_numbers(name, values):
    for key in [key for key in values if key.startswith("action.")]:
        values[key] = torch.cat([values[key], values[key][:1]])


def narrow_state(name, values):
    for key in [key for key in values if key.startswith("observation.state.")]:
        values[key] = values[key][:1].clone()


def infinite_state(name, values):
    if "observation.state.std" in values:
        values["observation.state.std"][0] = float("inf")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (nan_mean, r"'action': expected finite 'mean'.*dimensions \[2\]"),
        (negative_std, r"'action': expected std >= 0"),
        (one_number, r"'action': expected the width 7 of the feature, got 1"),
        (eight_numbers, r"'action': expected the width 7 of the feature, got 8"),
        (narrow_state, r"'observation\.state': expected the width 5 .*, got 1"),
        (infinite_state, r"'observation\.state': expected finite 'std'"),
    ],
)
def test_stored_statistics_that_cannot_be_true_are_refused(change, problem, damaged):
    with pytest.raises(
        MetadataError, match=rf"{problem}.*from_pretrained\(\.\.\., sta"
    ):
        LeRobotPolicyWrapper.from_pretrained(damaged(change))


def test_pre_and_postprocessor_with_other_statistics_are_refused(damaged):
    def apart(name, values):
        if "post" in name:
            values["action.mean"] = values["action.mean"] + 5

    with pytest.raises(
        SchemaError, match=r"mean of 'action' is \[.*preprocessor and \[5\..*in the pos"
    ):
        LeRobotPolicyWrapper.from_pretrained(damaged(apart))


def test_statistics_of_what_is_not_normalized_are_not_judged(damaged, checkpoint):
    def unused(name, values):
        values["action.q01"] = torch.full((3,), float("nan"))
        values["timestamp.mean"] = torch.full((1,), float("nan"))

    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    expected = LeRobotPolicyWrapper.from_pretrained(made.folder)(td.clone())
    policy = LeRobotPolicyWrapper.from_pretrained(damaged(unused))
    assert torch.equal(policy(td)["action_chunk"], expected["action_chunk"])


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [("min", "max", "diffusion"), ("min", "max", "diffusion-camera")],
)
def test_a_minimum_above_its_maximum_is_refused(low, high, name):
    statistics = stats()
    action = statistics["action"]
    action[low], action[high] = action[high], action[low]
    with pytest.raises(
        MetadataError, match=r"MIN_MAX: .*'action': expected min <= max"
    ):
        wrap(statistics, name)


def test_statistics_of_a_camera_need_a_number_per_channel():
    statistics = stats()
    wrist = statistics["observation.images.wrist"]
    statistics["observation.images.wrist"] = {k: v[:1] for k, v in wrist.items()}
    with pytest.raises(
        MetadataError, match=r"images\.wrist': expected the width 3 .*1"
    ):
        wrap(statistics)


def test_replacing_statistics_passes_the_same_checks(checkpoint):
    folder = checkpoint("act").folder
    with pytest.raises(MetadataError, match="width 7 of the feature, got 6"):
        LeRobotPolicyWrapper.from_pretrained(
            folder,
            statistics={"action": {"mean": torch.zeros(6), "std": torch.ones(6)}},
        )
    with pytest.raises(SchemaError, match=r"'statistics', got \['acton'\]\. It has"):
        LeRobotPolicyWrapper.from_pretrained(
            folder,
            statistics={"acton": {"mean": torch.zeros(A), "std": torch.ones(A)}},
        )


def test_replaced_statistics_move_the_chunk_by_hand_computed_numbers(checkpoint):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    own = LeRobotPolicyWrapper.from_pretrained(made.folder)(td.clone())["action_chunk"]
    other = {"mean": torch.full((A,), 3.0), "std": torch.full((A,), 2.0)}
    policy = LeRobotPolicyWrapper.from_pretrained(
        made.folder, statistics={"action": other}
    )
    old = stats()["action"]
    expected = (own - old["mean"]) / old["std"] * 2 + 3
    assert torch.allclose(policy(td)["action_chunk"], expected, atol=1e-5)


def test_processors_of_another_policy_are_refused():
    policy = make_policy("act-cameras")
    pipeline = LeRobotPipeline(*make_processors(make_policy("act")))
    with pytest.raises(
        SchemaError,
        match=r"its preprocessor does not normalize 'observation\.images\.front' "
        r"\(MEAN_STD\); .*wrist",
    ):
        LeRobotPolicyWrapper(policy, pipeline=pipeline)
    policy = make_policy("act")
    pipeline = LeRobotPipeline(*make_processors(make_policy("act-cameras")))
    with pytest.raises(
        SchemaError, match=r"normalizes 'observation\.images\.front', wh"
    ):
        LeRobotPolicyWrapper(policy, pipeline=pipeline)


def test_processors_with_another_normalization_are_refused():
    policy = make_policy("act")
    pipeline = LeRobotPipeline(*make_processors(make_policy("diffusion")))
    with pytest.raises(
        SchemaError,
        match=r"'action' as ACTION \[7\] MIN_MAX, the policy as ACTION \[7\]",
    ):
        LeRobotPolicyWrapper(policy, pipeline=pipeline)


def test_a_postprocessor_that_does_not_denormalize_is_refused(checkpoint):
    policy = make_policy("act")
    before, after = make_processors(policy)
    after.steps = [step for step in after.steps if not hasattr(step, "norm_map")]
    with pytest.raises(
        SchemaError, match=r"postprocessor does not normalize 'action' \(MEAN_STD\)"
    ):
        LeRobotPolicyWrapper(policy, pipeline=LeRobotPipeline(before, after))


def test_a_nan_in_the_state_is_named():
    policy = wrap(stats())
    (td,) = observe(Made(None, TWO, False, False), 1, 2)
    td["observation", "state"][1, 3] = float("nan")
    with pytest.raises(
        SchemaError, match=r"finite numbers at 'observation\.state'.*row 1, dimension 3"
    ):
        policy(td)


def test_weights_that_give_nan_are_named(checkpoint):
    made = checkpoint("act")
    policy = LeRobotPolicyWrapper.from_pretrained(made.folder)
    torch.nn.init.constant_(policy.policy.model.action_head.bias, float("nan"))
    (td,) = observe(made, 1, 2)
    with pytest.raises(
        SchemaError, match=r"finite actions at 'action_chunk', got nan at env index 0"
    ):
        policy(td)


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda content: content[: len(content) // 2], r"\d+ bytes that are cut"),
        (lambda content: b"version https://git-lfs.github.com/spec/v1", "42 bytes"),
        (lambda content: b"", "0 bytes"),
    ],
    ids=["cut", "pointer", "empty"],
)
@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
    ],
)
def test_damaged_weights_and_statistics_are_named(
    name, damage, got, checkpoint, tmp_path
):
    shutil.copytree(checkpoint("act").folder, tmp_path / "copy")
    file = tmp_path / "copy" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(SchemaError, match=rf"{name}', got {got}.*git lfs pull"):
        LeRobotPolicyWrapper.from_pretrained(tmp_path / "copy")


@pytest.mark.skipif("pi0" not in backbones.here(), reason="LeRobot 0.4.4 wants a fork")
def test_relative_actions_need_both_processors_and_the_policy_to_agree(tmp_path):
    with backbones.narrow_gemma():
        made = backbones.make_relative_checkpoint(tmp_path)
        assert S == 5  # the joints of the four actions come first
        LeRobotPolicyWrapper.from_pretrained(made.folder)
        file = made.folder / "policy_postprocessor.json"
        text = file.read_text()
        assert text.count('"enabled": true') == 1
        file.write_text(text.replace('"enabled": true', '"enabled": false'))
        with pytest.raises(
            SchemaError,
            match=r"for the policy: True, the preprocessor: True, the post.*: False",
        ):
            LeRobotPolicyWrapper.from_pretrained(made.folder)
        with pytest.raises(SchemaError, match=r"'use_relative_actions'.*fit_lerobot"):
            LeRobotPolicyWrapper.from_pretrained(
                made.folder, overrides={"use_relative_actions": False}
            )


@pytest.mark.skipif("pi0" not in backbones.here(), reason="LeRobot 0.4.4 wants a fork")
def test_a_padded_model_may_declare_a_wider_state_than_it_was_tuned_on(tmp_path):
    """LeRobot's fine-tuning keeps the base model's size, with the robot's numbers."""
    with backbones.narrow_gemma():
        made = backbones.make_checkpoint("pi0", tmp_path)
        (td,) = observe(made, 1, 2)
        td["noise_seed"] = torch.arange(2)
        expected = LeRobotPolicyWrapper.from_pretrained(made.folder)(td.clone())
        for name in ("config.json", "policy_preprocessor.json"):
            file = made.folder / name
            content = json.loads(file.read_text())
            features = content.get("input_features") or next(
                step["config"]["features"]
                for step in content["steps"]
                if "features" in step.get("config", {})
            )
            features["observation.state"]["shape"] = [8]
            file.write_text(json.dumps(content))
        policy = LeRobotPolicyWrapper.from_pretrained(made.folder)
        assert policy.config.input_features["observation.state"].shape == (8,)
        assert policy.metadata.state_dim == 5
        assert torch.equal(policy(td)["action_chunk"], expected["action_chunk"])
