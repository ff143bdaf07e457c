"""The loop of the page on several GPUs, by accelerate."""

import pytest
import torch
from ranked_accelerate import train_by_accelerate, train_plainly
from two_ranks import run_ranks

pytest.importorskip("accelerate")
pytestmark = pytest.mark.xdist_group("ranks")


def test_two_processes_of_accelerate_train_as_one_without_it():
    alone = train_plainly()
    for weights in run_ranks(train_by_accelerate):
        assert weights.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-9)
