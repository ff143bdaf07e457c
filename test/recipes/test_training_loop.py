from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from counting_dataset import counting_dataset
from tensordict import TensorDict
from torch import nn

from torchrl_vla.distributed.gradient_sharing import total_loss
from torchrl_vla.objectives import BCLoss, FlowMatchingLoss, TokenBCLoss
from torchrl_vla.policies import ContinuousVLAWrapper
from torchrl_vla.recipes import (
    ResumeError,
    TrainingSettings,
    TrainingState,
    run_training,
    train_behavior_cloning,
)
from torchrl_vla.recipes.training_loop import (
    _Loop,
    constant_rate,
    count_elements,
    warmup_cosine,
)
from torchrl_vla.recipes.weight_average import ramped_average

ROWS, H, A, VOCABULARY = 6, 3, 2, 5


class Chunk(nn.Module):
    """A linear policy with the heads that the losses read."""

    in_keys = [("observation", "state")]
    out_keys = ["action_chunk"]
    chunk_key = "action_chunk"
    without_gradient = {"*": "each loss reads one of the heads"}

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, H * A, dtype=torch.float64)
        self.tokens = nn.Linear(4, H * A * VOCABULARY, dtype=torch.float64)

    def forward(self, tensordict):
        return tensordict.set("action_chunk", self.predict(tensordict))

    def predict(self, tensordict):
        return self.layer(tensordict["observation", "state"]).unflatten(-1, (H, A))

    def token_log_probs(self, tensordict):
        logits = self.tokens(tensordict["observation", "state"])
        log_probs = logits.unflatten(-1, (H, A, VOCABULARY)).log_softmax(-1)
        tokens = tensordict["action_tokens"].unsqueeze(-1)
        return log_probs.gather(-1, tokens).squeeze(-1)

    def denoising_errors(self, tensordict, **options):
        noised = tensordict["action_chunk"] + tensordict["noise"]
        return (self.predict(tensordict) * noised - tensordict["noise"]) ** 2


def make_batch(weights=False):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    # Rows have 3, 1, 2, 3, 1 and 2 valid positions: the parts differ in their counts.
    valid = torch.tensor([3, 1, 2, 3, 1, 2])
    chunk = normal(ROWS, H, A)
    pad = torch.arange(H) >= valid[:, None]
    batch = TensorDict(
        {
            "observation": {"state": normal(ROWS, 4)},
            "action_chunk": torch.where(pad.unsqueeze(-1), 1e6, chunk),
            "action_tokens": torch.randint(
                VOCABULARY, (ROWS, H, A), generator=generator
            ),
            "noise": normal(ROWS, H, A),
            "action_is_pad": pad,
        },
        [ROWS],
    )
    if weights:
        # A whole part of weight 0, where the loss alone would raise.
        batch["sample_weight"] = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.0, 0.0]).double()
    return batch


class Fixed:
    """A buffer that always gives the same batch."""

    sampler = None

    def __init__(self, batch):
        self.batch = batch

    def set_rng(self, generator):
        pass

    def sample(self):
        return self.batch.copy()


LOSSES = {
    "chunk": lambda policy: BCLoss(policy, loss_function="l2"),
    "tokens": TokenBCLoss,
    "flow": FlowMatchingLoss,
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("name", LOSSES)
def test_the_accumulated_gradient_is_that_of_the_whole_batch(name, parts, weighted):
    torch.manual_seed(0)
    policy = Chunk()
    loss_module = LOSSES[name](policy)
    if name == "tokens":
        loss_module.set_keys(action="action_tokens")
    if weighted:
        loss_module.set_keys(weight="sample_weight")
    batch = make_batch(weighted)
    expected = total_loss(loss_module, batch.copy())
    expected.backward()
    gradients = [p.grad.clone() for p in policy.parameters() if p.grad is not None]
    policy.zero_grad()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    settings = TrainingSettings(accumulation_steps=parts)
    loop = _Loop(policy, loss_module, Fixed(batch), constant_rate(optimizer), settings)
    loss = loop._accumulate(batch)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    found = [p.grad for p in policy.parameters() if p.grad is not None]
    assert len(found) == len(gradients)
    for gradient, other in zip(found, gradients):
        assert (gradient - other).abs().max() < 1e-12


def test_elements_are_counted_by_mask_and_weight():
    loss_module = BCLoss(Chunk())
    # 3 + 1 + 2 + 3 + 1 + 2 positions of 2 dimensions
    assert count_elements(loss_module, make_batch()) == 24
    loss_module.set_keys(weight="sample_weight")
    # 2 * (0.5 * 3 + 2 * 1 + 1 * 2 + 3 * 3)
    assert count_elements(loss_module, make_batch(weights=True)) == 29


def test_a_loss_that_counts_nothing_is_a_mean_over_frames():
    assert count_elements(nn.Module(), make_batch()) == ROWS


class Noisy(ContinuousVLAWrapper):
    """Its loss draws random numbers, and it has a buffer that counts."""

    def __init__(self):
        super().__init__(action_dim=1, chunk_size=2)
        self.layer = nn.Linear(1, 2)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def predict_chunk(self, tensordict):
        self.calls += 1
        hidden = self.dropout(self.layer(tensordict["observation", "state"]))
        return hidden.unsqueeze(-1)


SETTINGS = TrainingSettings(
    steps=9, batch_size=4, lr=0.05, ema_decay=0.7, log_interval=4, checkpoint_interval=3
)


def fresh():
    torch.manual_seed(0)
    return Noisy()


def clone(policy, folder=None, settings=SETTINGS, **options):
    return train_behavior_cloning(
        policy, counting_dataset(), settings, folder=folder, progress=False, **options
    )


class KilledError(Exception):
    pass


@pytest.mark.parametrize("step", [1, 3, 5, 9])
def test_a_killed_training_ends_with_the_same_weights(tmp_path, monkeypatch, step):
    expected = fresh()
    curve = clone(expected)
    policy, take_step = fresh(), _Loop.take_step

    def deadly(self, number):
        if number == step:
            raise KilledError
        take_step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(_Loop, "take_step", deadly)
        with pytest.raises(KilledError):
            clone(policy, tmp_path / "run")
    torch.rand(step)  # the state outside does not matter
    resumed = fresh()
    log = clone(resumed, tmp_path / "run")
    assert log.losses == curve.losses
    for name, value in expected.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_a_process_that_was_killed_is_resumed(tmp_path):
    program = (
        "import os, sys; sys.path[:0] = sys.argv[2:]\n"
        "from test_training_loop import _Loop, clone, fresh\n"
        "take_step = _Loop.take_step\n"
        "def deadly(self, number):\n"
        "    if number == 8: os._exit(9)\n"
        "    take_step(self, number)\n"
        "_Loop.take_step = deadly\n"
        "clone(fresh(), sys.argv[1])\n"
    )
    here = __file__.rpartition("/")[0]
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "run"), here, *sys.path],
        check=False,
    )
    assert done.returncode == 9
    expected, resumed = fresh(), fresh()
    clone(expected)
    clone(resumed, tmp_path / "run")
    assert torch.equal(resumed.layer.weight, expected.layer.weight)


def test_a_finished_training_that_is_run_again_takes_no_step(tmp_path, monkeypatch):
    first = fresh()
    curve = clone(first, tmp_path)
    monkeypatch.setattr(_Loop, "take_step", None)
    again = fresh()
    assert clone(again, tmp_path).losses == curve.losses
    assert torch.equal(again.layer.weight, first.layer.weight)


def test_other_settings_or_another_policy_are_refused(tmp_path):
    clone(fresh(), tmp_path)
    other = TrainingSettings(**{**vars(SETTINGS), "lr": 0.1})
    with pytest.raises(ResumeError, match=r"\{'lr': \(0\.05, 0\.1\)\}"):
        clone(fresh(), tmp_path, other)
    torch.manual_seed(1)
    with pytest.raises(ResumeError, match="with other initial weights"):
        clone(Noisy(), tmp_path)


@pytest.mark.parametrize("name", ["metadata.json", "policy", "notes.txt"])
def test_a_folder_in_use_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"at .*, got \['{name}'\]. Nothing was"):
        clone(fresh(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_leftover_of_a_killed_write_is_no_use(tmp_path):
    (tmp_path / ".training_state.pt.partial").write_text("")
    clone(fresh(), tmp_path)
    assert (tmp_path / "training_state.pt").is_file()


def test_a_loop_needs_no_folder_and_no_average():
    torch.manual_seed(0)
    policy = Chunk()
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    batch, loss = make_batch(), BCLoss(policy, loss_function="l2")
    before = policy.layer.weight.detach().clone()
    gradient = torch.autograd.grad(total_loss(loss, batch.copy()), policy.layer.weight)
    settings = TrainingSettings(steps=1)
    log = run_training(
        policy, loss, Fixed(batch), constant_rate(optimizer), settings, progress=False
    )
    assert torch.allclose(policy.layer.weight, before - 0.1 * gradient[0])
    assert [step for step, _ in log.losses] == [1]
    assert not policy.training


def test_the_state_is_read_by_its_class(tmp_path):
    clone(fresh(), tmp_path)
    state = torch.load(tmp_path / "training_state.pt", weights_only=True)
    assert state["iteration"] == 9
    assert set(state["parts"]) == {"policy", "optimizer", "schedule", "loop", "average"}
    assert TrainingState(tmp_path, {}, state["settings"], "other").path.is_file()


def test_the_decay_of_the_average_rises_to_its_value_and_stays():
    averages, weights = [torch.zeros(1)], [torch.ones(1)]
    kept = []
    for step in (1, 8, 1000):
        averages[0].zero_()
        ramped_average(0.9)(averages, weights, torch.tensor(step))
        kept.append(1 - averages[0].item())
    assert kept == pytest.approx([2 / 11, 9 / 18, 0.9])


@pytest.mark.parametrize("steps", [40, 400])
def test_the_schedule_scales_with_the_steps_and_ends_at_zero(steps):
    factor = warmup_cosine(steps)
    peak = steps // 20
    assert factor(peak) == pytest.approx(1.0)
    # Half of what is left after the warm-up, half of the rate.
    assert factor(peak + (steps - peak) // 2) == pytest.approx(0.5)
    assert factor(steps - 1) < 0.01
