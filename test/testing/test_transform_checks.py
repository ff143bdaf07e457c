from __future__ import annotations

import pytest
import torch
from tensordict import NonTensorStack, TensorDict
from torchrl.envs import Compose, Transform
from torchrl.envs.transforms import ActionScaling as TorchRLActionScaling

from torchrl_vla.envs import ToyVLAEnv
from torchrl_vla.testing import check_transform
from torchrl_vla.tokenizers import UniformActionTokenizer
from torchrl_vla.transforms import (
    ActionChunkTransform,
    ActionScaling,
    ActionTokenizerTransform,
    StateScaling,
    SuccessReward,
)

A, S, T = 2, 4, 5
STATE = ("observation", "state")
BOUNDS = {"low": torch.tensor([-1.0, -2.0]), "high": torch.tensor([3.0, 2.0])}


def frames(n: int = 6, *time: int) -> TensorDict:
    """Frames in robot space; with a time dimension, windows."""
    shape = (n, *time)
    success = torch.rand(*shape, 1) < 0.5
    return TensorDict(
        {
            "observation": {"state": torch.randn(*shape, S)},
            "action": 2 * torch.rand(*shape, A) - 1,
            "action_chunk": 2 * torch.rand(*shape, 3, A) - 1,
            "language_instruction": NonTensorStack.from_list(
                ["pick"] * n if not time else [["pick"] * time[0]] * n
            ),
            "next": {
                "observation": {"state": torch.randn(*shape, S)},
                "reward": torch.randn(*shape, 1),
                "done": torch.zeros(*shape, 1, dtype=torch.bool),
                "success": success,
            },
        },
        shape,
    )


def toy() -> ToyVLAEnv:
    return ToyVLAEnv(action_dim=A, state_dim=S, success_steps=2, batch_size=[3])


@pytest.mark.parametrize("mask", [None, [True, False]])
def test_action_scaling_passes(mask):
    check_transform(
        ActionScaling.from_stats(**BOUNDS, mask=mask),
        frames(),
        reads=["action", "action_chunk"],
        writes=["action", "action_chunk"],
        env=toy(),
    )


def test_state_scaling_passes():
    check_transform(
        StateScaling.from_stats(mean=torch.ones(S), std=torch.arange(S) + 0.5),
        frames(),
        reads=[STATE, ("next", *STATE)],
        writes=[STATE, ("next", *STATE)],
        env=toy(),
    )


@pytest.mark.parametrize("key", ["action", "action_chunk"])
def test_the_tokenizer_transform_passes(key):
    tokenizer = UniformActionTokenizer(64, low=-1.0, high=1.0, action_dim=A)
    check_transform(
        ActionTokenizerTransform(tokenizer, in_key=key),
        frames(),
        reads=[key],
        writes=["action_tokens"],
        env=toy() if key == "action" else None,
        tolerance=1 / 64 + 1e-6,  # half a bin
    )


def test_success_reward_passes():
    check_transform(
        SuccessReward(scale=2.0),
        frames(),
        reads=[("next", "success")],
        writes=[("next", "reward")],
        env=toy(),
    )


def test_chunks_of_windows_pass():
    check_transform(
        ActionChunkTransform(3),
        frames(6, T).exclude("action_chunk"),
        reads=["action", ("next", "done")],
        writes=["action_chunk", "action_is_pad"],
        env=toy(),
    )


def test_a_composition_of_transforms_passes():
    tokenizer = UniformActionTokenizer(64, low=-1.0, high=1.0, action_dim=A)
    scaling = ActionScaling(0.5, 2.0, in_keys=["action"])
    check_transform(
        Compose(scaling, ActionTokenizerTransform(tokenizer)),
        frames(),
        reads=["action"],
        writes=["action", "action_tokens"],
    )


class Shift(Transform):
    """A right transform, for the wrong ones below to inherit from."""

    def __init__(self):
        keys = ["action"]
        super().__init__(in_keys_inv=keys, out_keys_inv=keys)

    def forward(self, tensordict):
        return tensordict.copy().set("action", tensordict["action"] + 1.0)

    def _call(self, next_tensordict):
        return next_tensordict

    def _inv_call(self, tensordict):
        if self.parent is None:
            return tensordict
        return tensordict.set("action", tensordict["action"] - 1.0)


class InPlace(Shift):
    def forward(self, tensordict):
        return tensordict.set("action", tensordict["action"].add_(1.0))


class AddsToItsInput(Shift):
    def forward(self, tensordict):
        return super().forward(tensordict.set("scratch", tensordict["action"]))


class ReplacesItsInput(Shift):
    """Rescales the storage when it is read with ``buffer[:]``."""

    def forward(self, tensordict):
        return tensordict.set("action", tensordict["action"] + 1.0)


class Scratch(Shift):
    def forward(self, tensordict):
        return super().forward(tensordict).set("scratch", tensordict["action"])


class Removes(Shift):
    def forward(self, tensordict):
        return super().forward(tensordict).exclude("language_instruction")


class WritesNothing(Shift):
    def forward(self, tensordict):
        return tensordict.exclude("action")


class ReadsMore(Shift):
    def forward(self, tensordict):
        if STATE in tensordict.keys(True):
            moved = tensordict["action"] + tensordict[STATE][..., :A]
            tensordict = tensordict.copy().set("action", moved)
        return super().forward(tensordict)


class Remembers(Shift):
    last = 0.0

    def forward(self, tensordict):
        before, self.last = self.last, tensordict["action"][0]
        if torch.is_tensor(before) and not torch.equal(before, self.last):
            tensordict = tensordict.copy().set("action", tensordict["action"] + before)
        return super().forward(tensordict)


class UndoesAnywhere(Shift):
    """TorchRL's own habit: extend on a buffer undoes what was never done."""

    def _inv_call(self, tensordict):
        return tensordict.set("action", tensordict["action"] - 1.0)


class UndoesInBuffers(Shift):
    def _inv_call(self, tensordict):
        if self._container is None:
            return tensordict
        return tensordict.set("action", tensordict["action"] - 1.0)


class UndoesAnother(Shift):
    def _inv_call(self, tensordict):
        if self.parent is None:
            return tensordict
        return tensordict.set("action", tensordict["action"] - 0.75)


@pytest.mark.parametrize(
    ("transform", "complaint"),
    [
        (
            InPlace,
            "^InPlace: expected its input at 'action' to keep its values, got oth",
        ),
        (
            ReplacesItsInput,
            "expected its input at 'action' to keep its values, got oth",
        ),
        (
            AddsToItsInput,
            r"expected its input to keep its keys, got \['scratch'\] added",
        ),
        (Scratch, r"write \['action'\] and nothing else, got \['action', 'scratch'\]"),
        (Removes, r"got \['action'\] written, \['language_instruction'\] removed"),
        (
            WritesNothing,
            r"write \['action'\] and nothing else, got \[\] written, \['act",
        ),
        (ReadsMore, "expected 'action' to depend on what it reads alone, got others"),
        (Remembers, "expected 'action' to be the same after another batch, got others"),
        (UndoesAnywhere, "expected no inverse of 'action' outside an env, got others"),
        (
            UndoesInBuffers,
            "expected a buffer to store 'action' as it was given, got oth",
        ),
        (
            UndoesAnother,
            "inverse to give back 'action' within 1e-05, got a difference of",
        ),
    ],
)
def test_a_broken_transform_is_found(transform, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_transform(
            transform(), frames(), reads=["action"], writes=["action"], env=toy()
        )


def test_a_right_transform_is_not_called_broken():
    check_transform(Shift(), frames(), reads=["action"], writes=["action"], env=toy())


def test_torchrls_own_scaling_is_found():
    transform = TorchRLActionScaling(
        loc=torch.ones(A), scale=torch.full((A,), 2.0), in_keys=["action"]
    )
    with pytest.raises(AssertionError, match="ActionScaling: expected its input at"):
        check_transform(transform, frames(), reads=["action"], writes=["action"])


def test_the_data_are_left_as_they_were():
    data = frames()
    before = data.clone()
    with pytest.raises(AssertionError, match="to keep its values"):
        check_transform(InPlace(), data, reads=["action"], writes=["action"])
    assert torch.equal(data["action"], before["action"])
