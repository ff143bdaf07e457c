"""A dataset of one convention, a policy of another, an environment of the first."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchrl_vla.data import DemonstrationDataset, collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.execution import MultiStepActorWrapper
from torchrl_vla.schema import FeatureStatistics
from torchrl_vla.spaces import ConvertedPolicy, ModelSpace
from torchrl_vla.transforms import ActionChunkTransform


def make_env():
    return TabletopEnv(2, image_size=16, seed=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = make_env()
    folder = tmp_path_factory.mktemp("converted") / "demonstrations"
    return collect(env, env.make_expert(), 3, folder=folder, progress=False)


def turned(metadata, **options):
    """The same robot, its dimensions in the other order."""
    names, states = metadata.action_names, metadata.state_names
    return replace(
        metadata,
        dataset_id="turned",
        action_names=names[::-1],
        state_names=states[::-1],
        action_statistics=None,
        state_statistics=None,
        **options,
    )


def test_a_converted_dataset_has_the_statistics_of_its_frames(dataset):
    conversion = dataset.metadata.conversion_to(turned(dataset.metadata))
    converted = DemonstrationDataset(
        conversion(dataset.frames), conversion.metadata, dataset.instructions
    )
    action = dataset.frames["action"].as_subclass(torch.Tensor)
    assert torch.equal(converted.frames["action"], action.flip(-1))
    expected = FeatureStatistics.from_samples(converted.frames["action"])
    torch.testing.assert_close(
        converted.metadata.action_statistics.std, expected.std, rtol=1e-6, atol=1e-9
    )
    assert torch.equal(dataset.frames["action"].as_subclass(torch.Tensor), action)


def test_what_was_trained_on_converted_data_acts_as_if_nothing_was_converted(dataset):
    conversion = dataset.metadata.conversion_to(turned(dataset.metadata))
    space = ModelSpace(conversion.metadata)
    chunks = ActionChunkTransform(2, storage=dataset.storage)
    chain = Compose(chunks, conversion, space.action_scaling, space.state_scaling)
    batch = dataset.replay_buffer(len(dataset), transform=chain, seed=0).sample()
    seen, target = batch["observation", "state"], batch["action_chunk"]

    def nearest(state):
        distance = torch.cdist(state, seen)
        return target[distance.argmin(-1)]  # the normalized target of a known state

    policy = TensorDictModule(nearest, [("observation", "state")], ["action_chunk"])
    robot = ConvertedPolicy(space.robot_policy(policy), conversion)
    row = dataset.replay_buffer(4, transform=chunks.clone(), seed=1).sample()
    torch.testing.assert_close(
        robot(row.select(("observation", "state")))["action_chunk"],
        row["action_chunk"],
        rtol=1e-4,
        atol=1e-5,
    )
    env = TransformedEnv(make_env(), InitTracker())
    rollout = env.rollout(4, MultiStepActorWrapper(robot))
    assert rollout["action"].shape[-1] == 2
