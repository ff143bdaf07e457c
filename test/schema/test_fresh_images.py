from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from torchrl_vla.schema import SchemaError, check_images_are_fresh


def test_a_stale_image_is_refused_and_counted():
    frames = TensorDict(image_is_stale=torch.tensor([[True], [False], [True]]))
    message = r"^Recorder: expected images .* True in 2 of 3 frames\..*render_on_demand"
    with pytest.raises(SchemaError, match=message):
        check_images_are_fresh("Recorder", frames)


@pytest.mark.parametrize(
    "entries", [{}, {"image_is_stale": torch.zeros(3, 1, dtype=torch.bool)}]
)
def test_fresh_images_and_images_of_which_nothing_is_said_pass(entries):
    check_images_are_fresh("Recorder", TensorDict(entries, [3]))
