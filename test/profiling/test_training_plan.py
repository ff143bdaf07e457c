from __future__ import annotations

from pathlib import Path

import pytest

from torchrl_vla.errors import SettingsError
from torchrl_vla.profiling.training_plan import (
    FIRST_STEPS,
    MEMORY_CLASSES,
    estimate_memory,
    find_bottleneck,
    memory_class,
    plan_training,
)

PAGE = Path(__file__).parents[2] / "docs" / "profiling.md"


def test_epochs_become_steps():
    # 50 episodes of 30 s at 30 Hz are 45,000 frames.
    plan = plan_training(45_000, 8, epochs=5)
    assert (plan.steps_per_epoch, plan.steps) == (5_625, 28_125)
    assert plan_training(45_000, 8, epochs=10).steps == 56_250
    assert plan_training(45_000, 8, steps=5_625).epochs == 1
    assert plan_training(9, 2, epochs=1).steps == 5  # the last batch is not full
    sharded = plan_training(45_000, 8, epochs=1, processes=4, batches_per_step=2)
    assert (sharded.effective_batch, sharded.steps) == (64, 704)


@pytest.mark.parametrize(
    "given", [{}, {"epochs": 1, "steps": 1}, {"epochs": 0}, {"steps": -1}]
)
def test_either_epochs_or_steps_are_given(given):
    with pytest.raises(SettingsError, match="expected either epochs or steps > 0"):
        plan_training(10, 1, **given)
    with pytest.raises(SettingsError, match=">= 1, got"):
        plan_training(0, 1, steps=1)


def test_memory_counts_weights_gradients_and_the_optimizer():
    # 4 B weights in bfloat16: 8 GB, gradients 8 GB, AdamW's two tensors 16 GB.
    assert estimate_memory(4 * 10**9, bytes_per_weight=2) == 32 * 10**9
    assert estimate_memory(4 * 10**9, bytes_per_weight=2, optimizer="sgd") == 16 * 10**9
    assert estimate_memory(100, trainable=10, activation_bytes=5) == 4 * 130 + 5


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [
        (1, "laptop (up to 6 GB)"),
        (7, "8 GB"),
        (7.5, "16 GB"),
        (20, "24 GB"),
        (30, "40 GB"),
        (70, "80 GB"),
        (80, "several devices, sharded"),
    ],
)
def test_memory_has_a_class_with_a_tenth_to_spare(gigabytes, expected):
    assert memory_class(int(gigabytes * 2**30)) == expected


@pytest.mark.parametrize(
    ("loading", "expected"), [(2.0, "data"), (0.5, "balanced"), (0.1, "compute")]
)
def test_the_bottleneck_follows_from_the_measured_sections(loading, expected):
    summary = {
        "total_update_s": {"median": 1.0},
        "dataloading_s": {"median": loading},
        "forward_s": {"median": 0.3},
        "backward_s": {"median": 0.6},
    }
    kind, advice = find_bottleneck(summary)
    assert kind == expected
    assert ("backward" in advice) == (expected == "compute")
    assert find_bottleneck({})[0] == "unknown"


def test_the_page_has_the_classes_and_the_usual_lengths():
    text = PAGE.read_text()
    for name in MEMORY_CLASSES:
        assert name in text
    for policy, (low, high, batch) in FIRST_STEPS.items():
        assert f"| `{policy}` | {low:,} to {high:,} | {batch} |" in text
    assert "dataloading_s" in text
