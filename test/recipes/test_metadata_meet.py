"""Metadata of two sides that meet in a whole job: each path compares them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from tensordict.nn import TensorDictModule
from torch import nn

from torchrl_vla.data import DemonstrationDataset, aggregate, clamp_labels, collect
from torchrl_vla.envs import TabletopEnv, ToyVLAEnv
from torchrl_vla.evaluation import ComparisonError, compare, evaluate
from torchrl_vla.execution import ActionGuard, MultiStepActorWrapper, TemporalEnsemble
from torchrl_vla.policies import as_policy, to_stochastic
from torchrl_vla.recipes import (
    FinetuneSettings,
    TrainingSettings,
    finetune,
    load_checkpoint,
    load_executor,
    make_decision_env,
    make_policy,
    save_checkpoint,
    train_behavior_cloning,
)
from torchrl_vla.schema import (
    IncompatibleMetadataError,
    RobotDatasetMetadata,
    RotationConvention,
    SchemaError,
    metadata_of,
)
from torchrl_vla.spaces import ConvertedPolicy, ModelSpace

OTHERS = {
    "control_frequency_hz": 50.0,
    "action_reference": ("absolute", "absolute"),
    "action_names": ("dy", "dx"),
    "action_units": ("m", "m"),
    "action_space": ("joint", "joint"),
    "embodiment_id": "another robot",
    "state_names": ("y", "x"),
    "cameras": ("wrist",),
}
TWO_STEPS = TrainingSettings(steps=2, batch_size=4)
a_field = pytest.mark.parametrize("field", sorted(OTHERS))


def named(field):
    return pytest.raises(IncompatibleMetadataError, match=rf"\n  - {field}: ")


def other(metadata, field):
    return replace(metadata, **{field: OTHERS[field]})


def make_env(field=None, image_size=16):
    env = TabletopEnv(4, image_size=image_size, seed=0)
    if field is not None:
        env.metadata = other(env.metadata, field)
    return env


class Looks(nn.Module):
    """A module of a user's own that reads the image and the state."""

    chunk_size, action_dim = 4, 2
    in_keys = [("observation", "image"), ("observation", "state")]

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 8)

    def forward(self, tensordict):
        image = tensordict["observation", "image"].float().mean((-2, -1)) / 255
        features = torch.cat([image, tensordict["observation", "state"]], -1)
        return self.layer(features).unflatten(-1, (4, 2))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env, folder = make_env(), tmp_path_factory.mktemp("data") / "d"
    return collect(env, env.make_expert(), 4, folder=folder, progress=False)


@pytest.fixture(scope="module")
def space(dataset):
    return ModelSpace(dataset.metadata)


@pytest.fixture(scope="module")
def trained(dataset, space):
    policy = make_policy(dataset, chunk_size=4, hidden=16)
    train_behavior_cloning(policy, dataset, TWO_STEPS, space=space, progress=False)
    return policy


def test_the_same_environment_passes_everywhere(dataset, space, trained, tmp_path):
    executor = space.executor(trained)
    assert len(evaluate(make_env(), executor, 4, progress=False)) == 4
    save_checkpoint(tmp_path, trained, space)
    executor = load_executor(tmp_path, metadata=make_env().metadata)
    assert len(evaluate(make_env(), executor, 4, progress=False)) == 4
    make_decision_env(make_env(), space, chunk_size=4)


@a_field
def test_evaluate_compares_the_environment_with_the_space(field, dataset, space):
    untrained = make_policy(dataset, chunk_size=4, hidden=16)
    for executor in (
        space.executor(untrained),
        space.executor(untrained, guard=None),
        space.executor(untrained, TemporalEnsemble, action_reference="absolute"),
        ActionGuard.from_metadata(space.executor(untrained), dataset.metadata),
    ):
        with named(field):
            evaluate(make_env(field), executor, 4, progress=False)


@a_field
def test_collect_compares_the_environment_with_the_policy(
    field, space, trained, tmp_path
):
    with named(field):
        collect(make_env(field), space.executor(trained), 2, folder=tmp_path)


@a_field
def test_training_compares_the_dataset_with_the_space(field, dataset):
    policy = make_policy(dataset, chunk_size=4, hidden=16)
    foreign = ModelSpace(other(dataset.metadata, field))
    with named(field):
        train_behavior_cloning(policy, dataset, TWO_STEPS, space=foreign)
    assert metadata_of(policy) is None


@a_field
def test_training_compares_the_dataset_with_the_training_before(
    field, dataset, trained
):
    frames, table = dataset.frames, dataset.instructions
    second = DemonstrationDataset(frames, other(dataset.metadata, field), table)
    trained = as_policy(trained)
    with named(field):
        train_behavior_cloning(
            trained, second, TWO_STEPS, space=ModelSpace(second.metadata)
        )


@a_field
def test_a_checkpoint_is_compared_with_the_environment(field, space, trained, tmp_path):
    save_checkpoint(tmp_path, trained, space)
    with named(field):
        load_executor(tmp_path, metadata=make_env(field).metadata)
    policy, loaded = load_checkpoint(tmp_path)
    with named(field):
        evaluate(make_env(field), loaded.executor(policy), 4, progress=False)


@a_field
def test_a_policy_of_one_space_is_not_executed_in_another(field, space, trained):
    foreign = ModelSpace(other(space.metadata, field))
    with named(field):
        foreign.executor(trained)


@a_field
def test_finetune_compares_the_policy_with_environment_and_demonstrations(
    field, dataset, space, trained, tmp_path
):
    policy = to_stochastic(trained)
    with named(field):
        make_decision_env(make_env(field), space, chunk_size=4)
    with named(field):
        finetune(policy, space, make_env(field), tmp_path)
    foreign = DemonstrationDataset(
        dataset.frames, other(dataset.metadata, field), dataset.instructions
    )
    settings = FinetuneSettings(iterations=1, bc_coeff=0.1)
    with named(field):
        finetune(policy, space, make_env(), tmp_path, settings, demonstrations=foreign)


def test_the_checkpoint_remembers_the_image_size_of_the_training(
    dataset, space, trained, tmp_path
):
    save_checkpoint(tmp_path, trained, space)
    policy, loaded = load_checkpoint(tmp_path)
    assert policy.training_metadata.image_sizes == ((3, 16, 16),)
    assert to_stochastic(policy).training_metadata == policy.training_metadata
    with named("image_sizes"):
        evaluate(make_env(image_size=24), loaded.executor(policy), 4, progress=False)


def test_a_module_of_the_users_refuses_images_of_another_size(dataset, space):
    module = Looks()
    train_behavior_cloning(module, dataset, TWO_STEPS, space=space, progress=False)
    with named("image_sizes"):
        executor = space.executor(as_policy(module))
        evaluate(make_env(image_size=24), executor, 4, progress=False)
    larger = make_env(image_size=24).reset()
    larger["is_init"] = torch.ones(4, 1, dtype=torch.bool)
    for act in (as_policy(module), space.executor(as_policy(module))):
        with pytest.raises(SchemaError, match=r"expected images .*\(3, 16, 16\)"):
            act(larger.clone())
    executor = MultiStepActorWrapper(space.robot_policy(as_policy(module)))
    with pytest.raises(SchemaError, match="MultiStepActorWrapper: expected images"):
        executor(larger.clone())


def test_a_refusal_names_the_sides_where_both_have_one_name(
    dataset, space, trained, tmp_path
):
    changed = other(dataset.metadata, "control_frequency_hz")
    assert changed.dataset_id == dataset.metadata.dataset_id == "tabletop"
    theirs = DemonstrationDataset(dataset.frames, changed, dataset.instructions)
    stored = save_checkpoint(tmp_path / "policy", trained, space)
    env = make_env("control_frequency_hz")
    refused = {
        "the environment .* with the policy's training data": lambda: evaluate(
            env, space.executor(trained), 4, progress=False
        ),
        "the environment .* with the checkpoint's training data": lambda: load_executor(
            stored, metadata=changed
        ),
        "the dataset .* with the space": lambda: train_behavior_cloning(
            trained, theirs, TWO_STEPS, space=space, progress=False
        ),
        "dataset 1 .* with dataset 0": lambda: aggregate(dataset, theirs),
    }
    for sides, call in refused.items():
        with pytest.raises(IncompatibleMetadataError, match=rf"expected {sides}"):
            call()


def test_another_layout_of_rotations_is_refused_or_converted(tmp_path):
    axis_angle, euler = (
        RobotDatasetMetadata(
            "toy",
            action_dim=3,
            action_units="rad",
            action_reference="absolute",
            rotations=(RotationConvention((0, 1, 2), layout),),
        )
        for layout in ("axis_angle", "euler_xyz")
    )
    turned = (0.3, -0.4, 0.5)  # euler angles

    def always(state):
        return torch.tensor(turned).expand(*state.shape[:-1], 2, 3)

    policy = TensorDictModule(always, [("observation", "state")], ["action_chunk"])
    policy.training_metadata = euler
    env = ToyVLAEnv(3, 6, success_steps=1, max_steps=2, batch_size=[2])
    env.metadata = axis_angle
    with pytest.raises(IncompatibleMetadataError, match=r"- rotations: .*axis_angle"):
        evaluate(env, MultiStepActorWrapper(policy), 2, progress=False)
    converted = ConvertedPolicy(policy, axis_angle.conversion_to(euler))
    executor = MultiStepActorWrapper(converted)
    assert len(evaluate(env, executor, 2, progress=False)) == 2
    step = env.reset().set("is_init", torch.ones(2, 1, dtype=torch.bool))
    expected = Rotation.from_euler("xyz", turned).as_rotvec()
    action = MultiStepActorWrapper(converted)(step)["action"]
    torch.testing.assert_close(
        action[1].double(), torch.tensor(expected), atol=1e-6, rtol=0
    )


def test_evaluations_of_two_environments_are_not_compared(dataset, space, trained):
    executor = space.executor(trained)
    first = evaluate(make_env(), executor, 4, progress=False)
    env = make_env("control_frequency_hz")
    second = evaluate(env, env.make_expert(), 4, progress=False)
    with pytest.raises(ComparisonError, match=r"control_frequency_hz 10\.0 and 50\.0"):
        compare(first, second)


def test_labels_beyond_the_bounds_are_refused_or_clamped_by_name(dataset):
    frames = dataset.frames.clone()
    frames["action"][:3, 1] = 5.0
    beyond = DemonstrationDataset(frames, dataset.metadata, dataset.instructions)
    policy = make_policy(dataset, chunk_size=4, hidden=16)
    with pytest.raises(SchemaError, match=r"dimensions \[1\].* in 3 of .*clamp_labels"):
        train_behavior_cloning(policy, beyond, TWO_STEPS, progress=False)
    clamped = clamp_labels(beyond)
    assert clamped.provenance["labels"] == {"beyond_bounds": "clamp", "frames": 3}
    assert clamped.metadata.action_statistics.max[1] == 1.0
    assert beyond.frames["action"].max() == 5.0
    train_behavior_cloning(policy, clamped, TWO_STEPS, progress=False)
