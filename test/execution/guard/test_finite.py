from __future__ import annotations

import pytest
import torch

from torchrl_vla.execution.guard.finite import check_finite, describe_place
from torchrl_vla.schema import ExecutionError


def test_finite_numbers_pass_integers_too():
    check_finite("Demo", "action", torch.zeros(2, 3, 1))
    check_finite("Demo", "action", torch.zeros(0, 3, 1))
    check_finite("Demo", "action", torch.ones(3, 1, dtype=torch.int64))


def test_the_first_places_are_named_and_the_others_counted():
    chunk = torch.zeros(2, 6, 1)
    chunk[1, :5] = torch.nan
    chunk[1, 5] = -torch.inf
    with pytest.raises(
        ExecutionError, match=r"^Demo: expected finite.* at 'plan'"
    ) as e:
        check_finite("Demo", "plan", chunk)
    assert "nan at env index 1, step 0, dimension 0; nan at env index 1, st" in str(
        e.value
    )
    assert "-inf at env index 1, step 5, dimension 0. Look" in str(e.value)
    with pytest.raises(ExecutionError, match="dimension 1; 4 more"):
        check_finite("Demo", "plan", torch.full((6, 2), torch.nan))


def test_an_index_without_a_batch_has_no_environment():
    assert describe_place([4, 1]) == "step 4, dimension 1"
    assert describe_place([2, 3, 4, 1]) == "env index 2, 3, step 4, dimension 1"
