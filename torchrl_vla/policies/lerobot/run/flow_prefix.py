"""Encoded observation of a LeRobot flow policy, made once per decision."""

from __future__ import annotations

import inspect
from types import MethodType
from typing import Any

import torch
from torch import Tensor

from torchrl_vla.policies.lerobot.lerobot_types import Batch, Policy


class FlowPrefix:
    """Encoded observations, the condition of each step of the flow.

    Holds the cache of keys and values of images, text and state that LeRobot's model
    passes to its own ``denoise_step``. Time runs as in LeRobot, from 1 (noise) to 0
    (data); the velocity is ours, ``data - noise``.

    Args:
        model: the policy's ``model``.
        arguments: of its ``denoise_step``, without ``x_t`` and ``timestep``.
        features: the normalized states, ``[N, F]``, which a learned noise reads.
    """

    def __init__(self, model: Policy, arguments: Batch, features: Tensor) -> None:
        self._model, self._arguments = model, arguments
        self.features = features

    def velocity(self, x: Tensor, time: Tensor) -> Tensor:
        """Return ``data - noise`` as expected at ``x``, ``[N, H, D]``.

        Args:
            x: point of the flow, padded to the model's size ``D``.
            time: LeRobot's, ``[N]``.
        """
        return -self._model.denoise_step(x_t=x, timestep=time, **self._arguments)


def encode_prefix(policy: Policy, frame: Batch, features: Tensor) -> FlowPrefix:
    """Encode a batch of observations as the policy does before its first step.

    LeRobot's own ``predict_action_chunk`` runs, with a ``denoise_step`` that records
    its arguments and returns zeros. So a policy treats images, text and state as it
    does in any version.

    Note:
        Unlike in LeRobot, gradients are recorded, also where the policy is not frozen
        before its action expert.

    Args:
        policy: LeRobot's, with a ``model`` that flows.
        frame: preprocessed observations, on the policy's device.
        features: the normalized states, ``[N, F]``.
    """
    recorded: Batch = {}

    def record(x_t: Tensor, timestep: Tensor, **arguments: Any) -> Tensor:
        recorded.update(arguments)
        return torch.zeros_like(x_t)

    model, config = policy.model, policy.config
    device = next(model.parameters()).device
    size = (len(features), config.chunk_size, config.max_action_dim)
    stand_in = _StandIn(
        policy,
        eval=lambda: None,  # it would switch the policy's modules
        model=_StandIn(
            model,
            denoise_step=record,
            rtc_processor=None,
            _rtc_enabled=lambda: False,
        ),
    )
    stand_in.predict_action_chunk(frame, noise=torch.zeros(size, device=device))
    return FlowPrefix(model, recorded, features)


class _StandIn:
    """Run an object's methods with some of its attributes replaced.

    Attributes that they set are set here and not on the object. Their decorators, which
    turn gradients off, are left out.
    """

    def __init__(self, original: object, **replaced: object) -> None:
        self.__dict__.update(replaced, _original=original)

    def __getattr__(self, name: str) -> Any:
        original = self.__dict__["_original"]
        method = inspect.getattr_static(type(original), name, None)
        if inspect.isfunction(method):
            return MethodType(inspect.unwrap(method), self)
        return getattr(original, name)
