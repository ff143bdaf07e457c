from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from lerobot_checkpoints import ACT, DIFFUSION
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import ContinuousVLAWrapper, LeRobotPolicyWrapper
from torchrl_vla.recipes import (
    TrainingSettings,
    fit_lerobot_policy,
    save_checkpoint,
    train_behavior_cloning,
    train_lerobot,
)
from torchrl_vla.schema import (
    ArgumentTypeError,
    FeatureStatistics,
    InstructionTable,
    ObservationKeys,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ActionChunkTransform

pytestmark = [
    pytest.mark.lerobot,
    # Policies step after a schedule was made for them, as in LeRobot's own training.
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

LENGTHS = (5, 9, 6)
SMALL_ACT = {**ACT, "chunk_size": 4, "n_action_steps": 2}
SMALL_DIFFUSION = {
    **DIFFUSION,
    "do_mask_loss_for_padding": True,
    "down_dims": (8, 16),
}


class Recording(DemonstrationDataset):
    """Keeps the frames of every batch that was sampled from it."""

    def replay_buffer(self, batch_size, **options):
        buffer = super().replay_buffer(batch_size, **options)
        sample, self.batches = buffer.sample, []

        def sample_and_keep():
            batch = sample()
            self.batches.append(batch)
            return batch

        buffer.sample = sample_and_keep
        return buffer


def make_dataset(texts=("count",), scale=1.0) -> Recording:
    """Episodes whose action is 100 times the episode and the frame."""
    table = InstructionTable(texts)
    parts = []
    for episode, length in enumerate(LENGTHS):
        frame = torch.arange(length)
        value = scale * (100.0 * episode + frame)[:, None]
        text = table.ids[episode % len(texts)]
        parts.append(
            TensorDict(
                {
                    "observation": {
                        "state": value + torch.tensor([0.0, 0.5]),
                        # LeRobot does not normalize it unless told to.
                        "environment_state": torch.zeros(length, 3),
                    },
                    "language_instruction": text.expand(length),
                    "action": value,
                    "episode_index": torch.full((length,), episode),
                    "frame_index": frame,
                },
                [length],
            )
        )
    frames = torch.cat(parts)
    metadata = RobotDatasetMetadata(
        "counting",
        action_units="m",
        action_statistics=FeatureStatistics.from_samples(frames["action"]),
        state_statistics=FeatureStatistics.from_samples(frames["observation", "state"]),
    )
    return Recording(frames, metadata, table)


def make(policy_type, dataset, **changes) -> LeRobotPolicyWrapper:
    config = {"act": SMALL_ACT, "diffusion": SMALL_DIFFUSION}[policy_type]
    torch.manual_seed(0)
    return fit_lerobot_policy(policy_type, dataset, config={**config, **changes})


OWN_OPTIONS = ("train_on_padding", "callback", "folder")


def train(policy, dataset, **options):
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    settings = TrainingSettings(**{"steps": 3, "batch_size": 4, **options})
    return train_lerobot(policy, dataset, settings, progress=False, **own)


def weights_of(policy) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in policy.policy.named_parameters()}


def test_act_learns_the_chunks_of_the_episodes():
    dataset = make_dataset()
    policy = make("act", dataset, use_vae=False, dropout=0.0)
    log = train(policy, dataset, steps=150, batch_size=20, lr=5e-3, log_interval=10)
    assert log.losses[-1][1] < 0.3 * log.losses[0][1]
    # The second frame of the second episode: 101, 102, 103, 104.
    with torch.no_grad():
        chunk = policy.predict_chunk(dataset.frames[LENGTHS[0] + 1 :][:1])
    expected = torch.tensor([101.0, 102.0, 103.0, 104.0])
    assert (chunk.flatten() - expected).abs().max() < 10  # of 82, one deviation


def test_both_recipes_see_the_same_batches_in_the_same_order():
    class Constant(ContinuousVLAWrapper):
        def __init__(self):
            keys = ObservationKeys(image=None)
            super().__init__(action_dim=1, chunk_size=4, keys=keys)
            self.chunk = torch.nn.Parameter(torch.zeros(4, 1))

        def predict_chunk(self, tensordict):
            return self.chunk.expand(*tensordict.batch_size, -1, -1)

    ours, theirs = make_dataset(), make_dataset()
    budget = {"steps": 5, "batch_size": 6, "seed": 3}
    settings = TrainingSettings(**budget)
    train_behavior_cloning(Constant(), ours, settings, progress=False)
    train(make("act", theirs), theirs, **budget)
    assert len(ours.batches) == len(theirs.batches) == 5
    for mine, other in zip(ours.batches, theirs.batches):
        assert torch.equal(mine["index"], other["index"])
        assert torch.equal(mine["action_is_pad"], other["action_is_pad"])
        # Theirs stay in robot space: the policy has processors of its own.
        frame = 100.0 * other["episode_index"] + other["frame_index"]
        assert torch.equal(other["action_chunk"][:, 0, 0], frame)


def test_training_is_lerobots_training_step_repeated():
    dataset = make_dataset()
    policy, reference = make("act", dataset), make("act", dataset)
    log = train(policy, dataset, log_interval=1, seed=5)
    optimizer = torch.optim.AdamW(
        [
            {
                "params": [
                    p
                    for name, p in reference.policy.named_parameters()
                    if p.requires_grad
                ]
            }
        ],
        lr=1e-5,
        weight_decay=1e-4,
    )
    losses = []
    torch.manual_seed(5)
    for batch in dataset.batches:
        reference.policy.train()
        loss, _ = reference.policy(reference.make_training_batch(batch))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reference.policy.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [loss for _, loss in log.losses] == losses
    expected = weights_of(reference)
    for name, weight in weights_of(policy).items():
        assert torch.equal(weight, expected[name]), name


def test_lerobots_rates_hold_for_each_group_unless_one_is_given():
    dataset = make_dataset()
    config = {"optimizer_lr": 1e-3, "optimizer_lr_backbone": 0.0}
    image = torch.randint(0, 256, (sum(LENGTHS), 3, 32, 32), dtype=torch.uint8)
    dataset.frames["observation", "image"] = image
    changed = {}
    for lr in (None, 1e-3):
        policy = make("act", dataset, **config)
        before = weights_of(policy)
        train(policy, dataset, steps=2, lr=lr)
        moved = {n for n, w in weights_of(policy).items() if not w.equal(before[n])}
        changed[lr] = {name.startswith("model.backbone") for name in moved}
    assert changed == {None: {False}, 1e-3: {True, False}}


def test_lerobots_schedule_is_used_where_it_has_one():
    dataset = make_dataset()
    policy = make("diffusion", dataset, scheduler_warmup_steps=2)
    before, history = weights_of(policy), []
    name = "diffusion.unet.final_conv.1.bias"
    train(
        policy,
        dataset,
        steps=3,
        log_interval=1,
        callback=lambda step: history.append(weights_of(policy)[name]),
    )
    # The rate rises from 0, so the first step changes nothing.
    assert torch.equal(history[0], before[name])
    assert not torch.equal(history[1], history[0])
    assert not torch.equal(history[2], history[1])


def test_a_policy_that_looks_back_is_trained_with_history_and_past_targets():
    dataset = make_dataset()
    policy = make("diffusion", dataset)
    assert list(policy.target_steps) == list(range(-1, 7))
    train(policy, dataset, steps=2, lr=1e-3)
    batch = dataset.batches[0]
    for row in range(len(batch)):
        episode, frame = (
            int(batch["episode_index"][row]),
            int(batch["frame_index"][row]),
        )
        last = LENGTHS[episode] - 1
        steps = [min(max(frame + step, 0), last) for step in range(-1, 7)]
        assert batch["action_chunk"][row, :, 0].tolist() == [
            100.0 * episode + step for step in steps
        ]
        history = batch["observation_history", "state"][row, :, 0].tolist()
        assert history == [100.0 * episode + step for step in steps[:2]]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    dataset = make_dataset()
    results = []
    for seed in (0, 0, 1):
        policy = make("act", dataset)
        torch.manual_seed(99 + len(results))  # the state outside does not matter
        train(policy, dataset, seed=seed, lr=1e-3)
        results.append(weights_of(policy)["model.action_head.weight"])
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_training_leaves_the_global_random_numbers_alone():
    dataset = make_dataset()
    policy = make("act", dataset)
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    train(policy, dataset)
    assert torch.equal(torch.rand(3), expected)
    assert not policy.policy.training


def test_several_instructions_for_a_policy_that_reads_none_are_reported():
    dataset = make_dataset(texts=("count up", "count down"))
    with pytest.warns(UserWarning, match="ACTPolicy, which reads no text, got 2"):
        train(make("act", dataset), dataset, steps=1)


def test_what_train_refuses_is_refused_for_lerobots_policies_too():
    dataset = make_dataset()
    policy = make("act", dataset)
    with pytest.raises(ArgumentTypeError, match=r"^train_lerobot: .* got str 'runs/m"):
        train(policy, "runs/mine")
    bounds = {"action_low": (-0.1,), "action_high": (0.1,)}
    dataset.metadata = replace(dataset.metadata, **bounds)
    with pytest.raises(SchemaError, match=r"^train_lerobot: expected 'action' within"):
        train(policy, dataset)


def test_a_loss_that_counts_padding_is_refused_unless_accepted():
    dataset = make_dataset()
    policy = make("diffusion", dataset, do_mask_loss_for_padding=False)
    with pytest.raises(SchemaError, match="DiffusionPolicy, which counts them"):
        train(policy, dataset)
    assert len(train(policy, dataset, train_on_padding=True).losses) == 1


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch_size": 0}])
def test_sizes_that_are_not_positive_are_refused(wrong):
    dataset = make_dataset()
    with pytest.raises(ValueError, match=r"expected \w+ to be an int >= 1, got 0"):
        train(make("act", dataset), dataset, **wrong)


def test_a_checkpoint_goes_on_with_the_statistics_of_its_new_data(tmp_path):
    first, second = make_dataset(), make_dataset(scale=0.25)
    policy = make("act", first, use_vae=False).eval()
    save_checkpoint(tmp_path / "act", policy, None, first.metadata)
    tuned = fit_lerobot_policy(str(tmp_path / "act"), second)
    # The same weights, the inputs in the same place of the new data's spread: the same
    # answer in the new data's units.
    with torch.no_grad():
        before = policy.predict_chunk(first.frames)
        after = tuned.predict_chunk(second.frames)
    assert torch.allclose(after, 0.25 * before, rtol=1e-4, atol=1e-3)
    loss, losses = {}, (LeRobotLoss(policy), LeRobotLoss(tuned))
    for name, module, dataset in zip(("old", "new"), losses, (first, second)):
        chunks = ActionChunkTransform(4, storage=dataset.storage)
        batch = dataset.replay_buffer(8, transform=chunks, seed=0).sample()
        with torch.no_grad():
            loss[name] = module(batch)["log", "l1_loss"].item()
    assert loss["new"] == pytest.approx(loss["old"], rel=1e-4)


def test_the_configuration_of_a_checkpoint_can_be_changed(tmp_path):
    dataset = make_dataset()
    save_checkpoint(tmp_path, make("act", dataset), None, dataset.metadata)
    tuned = fit_lerobot_policy(tmp_path, dataset, config={"n_action_steps": 1})
    assert tuned.n_action_steps == 1


def test_a_type_that_was_not_exercised_says_why():
    with pytest.raises(SchemaError, match="its backbone comes from the Hub"):
        fit_lerobot_policy("groot", make_dataset())


def test_a_new_policy_has_no_cameras_to_rename():
    with pytest.raises(TypeError, match=r"\['rename_map'\] beside a checkpoint"):
        fit_lerobot_policy("act", make_dataset(), rename_map={"a": "b"})


def test_a_new_policy_with_impossible_horizons_is_refused_when_it_is_made():
    with pytest.raises(SchemaError, match=r"n_action_steps <= 7, .* got 8.*config="):
        make("diffusion", make_dataset(), n_action_steps=8)
    with pytest.raises(SchemaError, match=r"Got 5 for `n_action_steps` and 4"):
        make("act", make_dataset(), n_action_steps=5)
    with pytest.raises(SchemaError, match=r"no 'pretrained_path' in config"):
        make("act", make_dataset(), pretrained_path="runs/act")
