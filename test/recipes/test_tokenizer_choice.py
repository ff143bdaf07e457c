import pytest
import torch
from action_chunks import published_folder

from torchrl_vla.data import collect
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.policies import TinySequenceVLA
from torchrl_vla.recipes import (
    TrainingSettings,
    fit_tokenizer,
    make_policy,
    make_space,
    make_training_transform,
    normalized_chunks,
    train_behavior_cloning,
)
from torchrl_vla.tokenizers import tokenizer_report


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    env = TabletopEnv(8, image_size=16, num_blocks=2, max_steps=40, seed=0)
    folder = tmp_path_factory.mktemp("data") / "demos"
    return collect(env, env.make_expert(noise=0.3), 16, folder=folder, progress=False)


@pytest.fixture(scope="module")
def space(dataset):
    return make_space(dataset.metadata, "tokens")


def test_the_chunks_are_those_that_training_sees(dataset, space):
    chunks = normalized_chunks(dataset, space, 4)
    assert chunks.shape == (len(dataset.frames), 4, 2)
    policy = make_policy(dataset, chunk_size=4, hidden=16)
    buffer = dataset.replay_buffer(
        len(chunks), transform=make_training_transform(policy, space, dataset.storage)
    )
    seen = buffer[:]
    assert torch.equal(seen["action_chunk"], chunks)
    assert seen["action_is_pad"].any()  # the last action is repeated in them


@pytest.mark.parametrize("name", ["bins", "fast", "beast", "folder"])
def test_each_tokenizer_keeps_the_dataset_s_actions(name, dataset, space, tmp_path):
    chunks = normalized_chunks(dataset, space, 8)
    if name == "folder":
        name = str(published_folder(tmp_path / "fast", chunks, sizes=False))
    tokenizer = fit_tokenizer(name, dataset, space, 8)
    report = tokenizer_report(tokenizer, chunks)
    assert max(report.error) < 0.2  # a chunk of 8 by 4 control points is smoothed
    policy = make_policy(
        dataset, chunk_size=8, head="tokens", hidden=16, tokenizer=tokenizer
    )
    assert isinstance(policy, TinySequenceVLA)


def test_training_with_a_fitted_tokenizer_lowers_the_loss(dataset, space):
    torch.manual_seed(0)
    tokenizer = fit_tokenizer("fast", dataset, space, 4)
    policy = make_policy(
        dataset, chunk_size=4, head="tokens", hidden=16, tokenizer=tokenizer
    )
    settings = TrainingSettings(steps=60, batch_size=32, lr=1e-2, log_interval=5)
    log = train_behavior_cloning(policy, dataset, settings, space=space, progress=False)
    assert log.losses[-1][1] < 0.9 * log.losses[0][1]


def test_an_unknown_tokenizer_is_refused(dataset, space):
    with pytest.raises(SettingsError, match="'bins', 'fast', 'beast' or the folder"):
        fit_tokenizer("slow", dataset, space, 4)
    tokenizer = fit_tokenizer("bins", dataset, space, 4)
    with pytest.raises(ValueError, match="tokenizer=None for the head 'flow', got a U"):
        make_policy(dataset, chunk_size=4, head="flow", tokenizer=tokenizer)
