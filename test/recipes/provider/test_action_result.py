from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from torchrl_vla.recipes import summarize_actions


def test_tensors_arrays_and_lists_are_described_alike():
    values = [[1.0, 2.5], [3.0, 4.0]]
    kinds = {
        "Tensor": torch.tensor(values),
        "ndarray": np.array(values),
        "list": values,
    }
    for name, actions in kinds.items():
        summary = summarize_actions(actions)
        assert summary.type == name
        assert (summary.shape, summary.preview) == ((2, 2), (1.0, 2.5, 3.0, 4.0))


@pytest.mark.parametrize("make", [torch.arange, lambda n: list(range(n))])
def test_the_preview_of_many_numbers_is_bounded(make):
    summary = summarize_actions(make(10_000))
    assert summary.preview == tuple(range(8))
    assert summary.count == 10_000
    assert len(json.dumps(asdict(summary))) < 200


def test_a_ragged_list_has_no_shape():
    summary = summarize_actions([[1.0], [2.0, 3.0]])
    assert (summary.shape, summary.count) == (None, None)
    assert summary.preview == (1.0, 2.0, 3.0)
