from __future__ import annotations

import pytest
import torch

from torchrl_vla.data import collect, reword_demonstrations
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.recipes import (
    TrainingSettings,
    make_policy,
    train_behavior_cloning,
)
from torchrl_vla.schema import UnknownInstructionError, Wordings


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = TabletopEnv(4, image_size=16, seed=0)
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(), 6, folder=folder, progress=False)


def wordings_of(dataset) -> Wordings:
    return Wordings({x: [x.upper(), x.title()] for x in dataset.instructions})


def test_sampled_frames_are_reworded_and_stored_ones_are_not(dataset):
    reworded = reword_demonstrations(dataset, wordings_of(dataset))
    sample = reworded.replay_buffer(64, seed=0).sample()
    texts = reworded.instructions.decode(sample["language_instruction"])
    plain = dataset.replay_buffer(64, seed=0).sample()
    originals = dataset.instructions.decode(plain["language_instruction"])
    assert [text.lower() for text in texts] == originals
    assert {text.isupper() for text in texts} == {True, False}
    stored = dataset.frames["language_instruction"]
    assert torch.equal(reworded.frames["language_instruction"], stored)


def test_a_part_of_the_dataset_is_reworded_as_well(dataset):
    part = reword_demonstrations(dataset, wordings_of(dataset)).split(0.5)[0]
    sample = part.replay_buffer(8).sample()["language_instruction"]
    assert all(
        text.lower() in dataset.instructions and text not in dataset.instructions
        for text in part.instructions.decode(sample)
    )


def test_a_policy_made_for_it_trains_on_the_wordings_and_knows_them(dataset):
    reworded = reword_demonstrations(dataset, wordings_of(dataset))
    policy = make_policy(reworded, chunk_size=2, hidden=16)
    settings = TrainingSettings(steps=2, batch_size=8)
    log = train_behavior_cloning(policy, reworded, settings, progress=False)
    assert len(log.losses) == 1
    assert set(wordings_of(dataset).table) <= set(policy.instructions)


def test_an_instruction_without_wordings_is_refused(dataset):
    first, *rest = dataset.instructions
    with pytest.raises(UnknownInstructionError, match=rf"none of \[.*{rest[0]}"):
        reword_demonstrations(dataset, Wordings({first: [first]}))
