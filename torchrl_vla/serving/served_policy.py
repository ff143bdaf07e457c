"""Calls of a served policy with the rows of several clients."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from tensordict.nn import InteractionType, TensorDictModuleBase, set_interaction_type

from torchrl_vla.errors import ServingError, VLAError, WireError
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.schema import NOISE_SEED_KEY
from torchrl_vla.serving.message_fields import Failure
from torchrl_vla.serving.observation_leaves import (
    Leaves,
    concatenated,
    path_of,
    split_rows,
)
from torchrl_vla.serving.server_manifest import ServerManifest

_log = logging.getLogger("torchrl_vla.serving")


class ServedPolicy:
    """Call a policy as an evaluation does, for the rows of one request or of several.

    In evaluation mode, without gradients and without sampling. A row's answer does not
    depend on who else asks, up to rounding where rows share a call.

    Args:
        policy: of robot space.
        manifest: what it reads and writes.

    Raises:
        ServingError: the policy can't be served.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl_vla.serving import describe_policy
        >>> policy = TensorDictModule(
        ...     lambda s: s.unsqueeze(-2).repeat(1, 2, 1), ["state"], ["action_chunk"]
        ... )
        >>> policy.chunk_size, policy.action_dim = 2, 1
        >>> served = ServedPolicy(policy, describe_policy(policy))
        >>> numbers = [torch.tensor([[value]]) for value in (1.0, 2.0)]
        >>> asked = [Leaves((1,), {("state",): number}) for number in numbers]
        >>> [a.tensors["action_chunk",].tolist() for a in served.answer(asked)]
        [[[[1.0], [1.0]]], [[[2.0], [2.0]]]]
    """

    def __init__(self, policy: TensorDictModuleBase, manifest: ServerManifest) -> None:
        if manifest.mode == "refused":
            raise ServingError(
                "PolicyServer: expected a policy that writes 'action_chunk', got "
                f"{type(policy).__name__} with out_keys {policy.out_keys}. Serve the "
                "policy inside the executor, executor.policy: clients have their own "
                "executors."
            )
        self.policy = policy.eval()
        self.manifest = manifest
        known = (*manifest.in_keys, *manifest.optional_in_keys, path_of(NOISE_SEED_KEY))
        self._known = known

    def reset(self) -> None:
        """Let a policy that keeps a state begin anew, where it has a ``reset``."""
        reset = declared(self.policy, "reset", None)
        if self.manifest.mode == "exclusive" and reset is not None:
            reset()

    def check(self, leaves: Leaves) -> None:
        """Refuse a request that lacks an input, or has one that is none.

        Raises:
            WireError: names the paths.
        """
        there = (*leaves.tensors, *leaves.texts)
        missing = [
            k for k in self.manifest.in_keys if not any(_below(k, p) for p in there)
        ]
        foreign = [p for p in there if not any(_below(k, p) for k in self._known)]
        if missing or foreign:
            raise WireError(
                f"PolicyServer: expected the inputs {list(self.manifest.in_keys)} of "
                f"{self.manifest.policy}, got {missing} missing and {foreign} that it "
                "does not read. Send what the manifest names."
            )

    def answer(self, requests: Sequence[Leaves]) -> list[Leaves | Failure]:
        """Return the answer of each request of one signature.

        If the policy refuses a batch, each request is tried alone, so that the fault
        of one client is not another's.
        """
        try:
            answers = split_rows(self._call(concatenated(requests)), requests)
            return list(answers)
        except Exception as error:
            if len(requests) > 1:
                return [answer for one in requests for answer in self.answer([one])]
            return [_failure(error)]

    def _call(self, leaves: Leaves) -> Leaves:
        inputs = leaves.to_tensordict()
        if self.manifest.device != "cpu":
            inputs = inputs.to(self.manifest.device)
        with torch.no_grad(), set_interaction_type(InteractionType.DETERMINISTIC):
            written = self.policy(inputs)
        answer = Leaves.from_tensordict(written, self.policy.out_keys)
        wanted = (leaves.rows, self.manifest.chunk_size, self.manifest.action_dim)
        chunk = answer.tensors.get(("action_chunk",))
        if chunk is None or tuple(chunk.shape) != wanted:
            got = "none" if chunk is None else list(chunk.shape)
            raise ServingError(
                f"PolicyServer: expected a chunk {list(wanted)} of "
                f"{self.manifest.policy}, got {got}. Correct the manifest."
            )
        answer.tensors = {path: value.cpu() for path, value in answer.tensors.items()}
        return answer


def _below(key: tuple[str, ...], path: tuple[str, ...]) -> bool:
    return path[: len(key)] == key


def _failure(error: Exception) -> Failure:
    """Return what a client is told: our own errors, and no detail of others."""
    match error:
        case VLAError():
            return Failure("policy", str(error))
    _log.exception("The policy failed.")
    return Failure(
        "internal",
        f"PolicyServer: expected the policy to answer, got a {type(error).__name__}. "
        "The server's log has the details.",
    )
