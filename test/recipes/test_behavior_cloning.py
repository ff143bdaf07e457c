from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from counting_dataset import counting_dataset
from tensordict import TensorDict

from torchrl_vla.objectives import CloningOptions
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.recipes import (
    TrainingLog,
    TrainingSettings,
    make_cloning_loss,
    make_training_transform,
    train_behavior_cloning,
    training_loop,
)
from torchrl_vla.recipes.training_loop import warmup_cosine
from torchrl_vla.schema import SchemaError
from torchrl_vla.spaces import ModelSpace


class Constant(ContinuousVLAWrapper):
    """Answers the same chunk whatever it sees."""

    def __init__(self, chunk_size: int) -> None:
        super().__init__(action_dim=1, chunk_size=chunk_size)
        self.chunk = torch.nn.Parameter(torch.zeros(chunk_size, 1))

    def predict_chunk(self, tensordict):
        return self.chunk.expand(*tensordict.batch_size, -1, -1)


OWN_OPTIONS = ("callback", "folder", "loss", "space")


def train(policy, dataset, **options):
    own = {name: options.pop(name) for name in OWN_OPTIONS if name in options}
    settings = TrainingSettings(**{"steps": 300, "batch_size": 64, **options})
    return train_behavior_cloning(policy, dataset, settings, progress=False, **own)


def test_each_slot_learns_the_mean_of_its_targets_without_the_padded_ones():
    dataset, policy = counting_dataset(), Constant(2)
    loss = make_cloning_loss(policy, CloningOptions(loss_function="l2"))
    train(policy, dataset, loss=loss, lr=0.1, weight_decay=0.0)
    learned = ModelSpace(dataset.metadata).action_scaling.denormalize(policy.chunk)
    # Slot 0 sees 0, 1, 2, 3. Slot 1 sees 1, 2, 3; with the padded 3 it would be 2.25.
    assert learned.flatten().tolist() == pytest.approx([1.5, 2.0], abs=0.1)


def test_with_a_budget_the_rate_falls_with_the_time_and_the_training_ends(monkeypatch):
    clock = {"now": 0.0}
    fake = SimpleNamespace(perf_counter=lambda: clock["now"])
    monkeypatch.setattr(training_loop, "time", fake)
    factor = warmup_cosine(1000, max_seconds=10.0)
    assert factor(0) == pytest.approx(1 / 50)
    clock["now"] = 5.25  # halfway between the warm-up's end, 0.5 s, and 10 s
    assert factor(1) == pytest.approx(0.5)
    assert factor(1000) == pytest.approx(0.0)  # the steps are further than the time
    clock["now"] = 11.0
    assert factor(2) == pytest.approx(0.0)

    clock["now"] = 0.0
    policy, seen = Constant(1), []

    def tick(step):
        seen.append(step)
        clock["now"] += 1.0

    options = {"steps": 100, "log_interval": 1, "max_seconds": 4.0, "callback": tick}
    log = train(policy, counting_dataset(), **options)
    assert seen == [1, 2, 3, 4, 5]  # the time is over when the fifth is taken
    assert log.losses[-1][0] == 5
    assert not policy.training


def test_frames_count_by_their_weight_and_are_refused_without_a_word_of_it():
    dataset, policy = counting_dataset((0.0, 4.0)), Constant(1)
    dataset.frames["sample_weight"] = torch.tensor([3.0, 1.0])
    with pytest.raises(SchemaError, match=r"a key of weights, .* 'sample_weight'"):
        train(policy, dataset)
    loss = make_cloning_loss(policy, CloningOptions(loss_function="l2"))
    loss.set_keys(weight="sample_weight")
    train(policy, dataset, loss=loss, lr=0.1, weight_decay=0.0)
    learned = ModelSpace(dataset.metadata).action_scaling.denormalize(policy.chunk)
    # (3 * 0 + 1 * 4) / 4; all alike it would be 2.
    assert learned.item() == pytest.approx(1.0, abs=0.1)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    weights = []
    for seed in (0, 0, 1):
        policy = Constant(2)
        train(policy, counting_dataset(), steps=20, batch_size=2, seed=seed)
        weights.append(policy.chunk.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_policy_ends_with_the_average_of_its_weights_or_with_the_last():
    dataset = counting_dataset((0.0, 2.0))
    averaged, last, history = Constant(1), Constant(1), []
    train(averaged, dataset, steps=3, ema_decay=0.9)
    train(
        last,
        dataset,
        steps=3,
        ema_decay=0.0,
        log_interval=1,
        callback=lambda step: history.append(last.chunk.item()),
    )
    # Both go through the same weights. The first average is the first weights; then
    # the decay rises: 2/11 and 3/12, from below 0.9.
    mean = 2 / 11 * history[0] + 9 / 11 * history[1]
    mean = 3 / 12 * mean + 9 / 12 * history[2]
    assert averaged.chunk.item() == pytest.approx(mean, abs=1e-6)
    assert last.chunk.item() == history[2]


def test_the_learning_rate_rises_over_a_twentieth_and_falls_along_a_cosine():
    factor = warmup_cosine(100)
    assert [factor(step) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])
    assert factor(5) == pytest.approx(1.0)
    half = 0.5 * (1 + math.cos(math.pi * 50 / 95))
    assert factor(55) == pytest.approx(half)
    assert factor(100) == pytest.approx(0.0, abs=1e-6)


def test_the_log_has_the_mean_loss_of_each_interval_and_the_last_step(tmp_path):
    log = train(Constant(1), counting_dataset(), steps=7, log_interval=3)
    assert [step for step, _ in log.losses] == [3, 6, 7]
    assert log.seconds > 0
    lines = log.to_csv(tmp_path / "curve.csv").read_text().splitlines()
    assert lines[0] == "step,loss"
    assert lines[1] == f"3,{log.losses[0][1]}"


def test_an_empty_log_writes_a_header_only(tmp_path):
    assert TrainingLog().to_csv(tmp_path / "c.csv").read_text().split() == ["step,loss"]


def test_the_policy_is_in_evaluation_mode_afterwards():
    policy = Constant(1).train()
    train(policy, counting_dataset(), steps=1)
    assert not policy.training


def test_a_loss_that_is_not_finite_raises_and_names_the_step():
    dataset = counting_dataset((0.0, 1.0, float("nan"), 1.0))
    with pytest.raises(
        RuntimeError, match=r"expected a finite loss, got nan at step 1\. Lower lr"
    ):
        train(Constant(1), dataset, log_interval=2)


class Exploding(torch.nn.Module):
    """A loss that is infinite from its third call on."""

    out_keys = ("loss_bc",)

    def __init__(self, policy, value):
        super().__init__()
        self.policy, self.value, self.calls = policy, value, 0

    def forward(self, tensordict):
        self.calls += 1
        offset = self.value if self.calls > 2 else 0.0
        return TensorDict({"loss_bc": self.policy.chunk.sum() + offset})


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_the_first_step_with_an_infinite_loss_is_named(value):
    policy = Constant(1)
    with pytest.raises(RuntimeError, match=rf"finite loss, got {value} at step 3\."):
        train(policy, counting_dataset(), loss=Exploding(policy, value))
    assert policy.chunk.isfinite().all()  # the step was not taken


def test_the_average_is_of_weights_and_leaves_counters_as_they_are():
    class Counting(Constant):
        def __init__(self):
            super().__init__(1)
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def predict_chunk(self, tensordict):
            self.calls += 1
            return super().predict_chunk(tensordict)

    policy = Counting()
    train(policy, counting_dataset(), steps=5, ema_decay=0.5)
    assert policy.calls == 5


def test_episodes_end_where_their_indices_say():
    dataset = counting_dataset((0.0, 2.0, 4.0))
    dataset.frames["next", "done"] = torch.tensor([[True], [False], [False]])
    space = ModelSpace(dataset.metadata)
    buffer = dataset.replay_buffer(1, transform=space.transforms(2, dataset.storage))
    assert buffer[:]["action_is_pad"][:, 1].tolist() == [False, False, True]


def test_without_a_space_targets_stay_as_they_were_recorded():
    dataset = counting_dataset()
    transform = make_training_transform(Constant(2), None, dataset.storage)
    sample = dataset.replay_buffer(16, transform=transform, seed=0).sample()
    first = sample["frame_index"].float()  # its action is the frame's number, 0..3
    expected = torch.stack([first, (first + 1).clamp(max=3)], 1).unsqueeze(-1)
    assert torch.equal(sample["action_chunk"], expected)


class SteepRoot(torch.nn.Module):
    """A finite loss whose gradient is infinite."""

    out_keys = ("loss_bc",)

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, tensordict):
        flat = self.policy.chunk - self.policy.chunk.detach()
        return TensorDict({"loss_bc": (flat + 0.0).sqrt().sum()})


def test_a_gradient_that_is_not_finite_raises_before_the_step():
    policy = Constant(1)
    before = policy.chunk.detach().clone()
    with pytest.raises(RuntimeError, match=r"finite gradient, got (inf|nan) at step 1"):
        train(policy, counting_dataset(), loss=SteepRoot(policy))
    assert torch.equal(policy.chunk, before)
