from __future__ import annotations

from dataclasses import replace

import pytest

from torchrl_vla.recipes import SettingsError, TrainingSettings


def test_values_that_are_left_out_become_the_defaults_of_the_training():
    settings = TrainingSettings(lr=0.1, ema_decay=0.0)
    filled = settings.with_defaults(batch_size=8, lr=0.2, ema_decay=0.9)
    assert filled == replace(settings, batch_size=8)
    assert filled.weight_decay is None


def test_what_the_weights_depend_on_leaves_reports_out():
    values = TrainingSettings(
        steps=3, log_interval=7, checkpoint_interval=9
    ).as_values()
    assert values["steps"] == 3
    assert {"log_interval", "checkpoint_interval"}.isdisjoint(values)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": 0}, r"expected steps to be an int >= 1, got 0"),
        ({"batch_size": 0}, r"expected batch_size to be an int >= 1, got 0"),
        ({"lr": float("nan")}, r"expected lr to be a finite number > 0, got nan"),
        ({"max_grad_norm": 0.0}, r"expected max_grad_norm to be .* > 0, got 0\.0"),
        ({"max_seconds": 0.0}, r"expected max_seconds to be .* > 0, got 0\.0"),
        ({"weight_decay": -1.0}, r"expected weight_decay to be .* >= 0, got -1\.0"),
        ({"ema_decay": 1.0}, r"expected ema_decay to be a number in \[0, 1\), got 1"),
        (
            {"batch_size": 2, "accumulation_steps": 3},
            r"expected accumulation_steps <= batch_size=2, got 3",
        ),
    ],
)
def test_numbers_out_of_their_range_are_refused(wrong, message):
    with pytest.raises(SettingsError, match=message):
        TrainingSettings(**wrong)
