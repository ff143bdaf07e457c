"""Base class of the executors that wrap a policy of action chunks."""

from __future__ import annotations

import itertools

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import Transform

from torchrl_vla.execution.chunk_cache import Outputs, take_envs
from torchrl_vla.execution.executor import Executor, transforms_of
from torchrl_vla.execution.executor_keys import ExecutorKeys
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    IMAGE_IS_STALE_KEY,
    IMAGE_KEY,
    NOISE_SEED_KEY,
    OBSERVATION_NEEDED_KEY,
    ExecutionError,
    MissingKeyError,
    RobotDatasetMetadata,
    check_actions,
    check_image_sizes,
    check_robot_space,
    metadata_of,
)

_serials = itertools.count(1)


def new_serial() -> int:
    """Return the number of a new decision, unique in this process."""
    return next(_serials)


class ChunkExecutor(Executor):
    """Execute the chunks of a policy, one action per control step (abstract).

    The subclasses differ in when they call the policy and in how its chunks become
    actions. This class checks what the policy writes, and keeps in a rollout the
    policy's outputs of the chunk *in execution*. A subclass implements
    :meth:`_serve`, with :meth:`_call_policy` and :meth:`_write`.

    **Reads** the policy's ``in_keys`` and what :class:`Executor` reads.

    **Writes** what :class:`Executor` writes, and every other out_key of the policy.

    Args:
        policy: writes a chunk ``[*B, H, A]`` in robot space.

    Keyword Args:
        keys: of what is read and written; None = ``ExecutorKeys()``.

    Raises:
        ValueError: the chunk key is ambiguous or not among the policy's out_keys.
        SpaceError: the policy is of model space; ``ModelSpace.executor`` wraps it.
        MissingKeyError: the policy did not write one of its out_keys, and as
            :class:`Executor`.
        ExecutionError: the chunk is not a finite ``[*B, H, A]``; the policy would read
            an image that an environment rendering on demand did not render; and as
            :class:`Executor`.
    """

    def __init__(
        self, policy: TensorDictModuleBase, *, keys: ExecutorKeys | None = None
    ) -> None:
        super().__init__(keys)
        check_robot_space(self._name, policy)
        self.policy = policy
        self._reads_images = any(
            unravel_key(key)[: len(IMAGE_KEY)] == IMAGE_KEY for key in policy.in_keys
        )
        self.chunk_key = self._find_chunk_key(policy)
        self._output_keys = [
            key
            for key in map(unravel_key, policy.out_keys)
            if key not in (self.chunk_key, self.keys.action)
        ]
        self.in_keys = list(dict.fromkeys([*policy.in_keys, self.keys.is_init]))
        self.out_keys = [
            self.keys.action,
            self.keys.is_decision,
            self.keys.decision_index,
            OBSERVATION_NEEDED_KEY,
            *self._output_keys,
        ]

    @property
    def training_metadata(self) -> RobotDatasetMetadata | None:
        """Metadata of the data that the policy was trained on; None = unknown."""
        return metadata_of(self.policy)

    def _policy_transforms(self) -> list[Transform]:
        return transforms_of(self.policy)

    def _call_policy(
        self, tensordict: TensorDictBase, envs: Tensor | None
    ) -> tuple[Tensor, Outputs, int]:
        """Call the policy for some environments (bool ``[*B]``); None = all.

        Returns the chunks ``[*B, H, A]``, or ``[N, H, A]`` of the ``N`` environments,
        the policy's other outputs, and the decision's number.
        """
        inputs = self._inputs(tensordict, envs)
        batch_size = inputs.batch_size
        return self._read_answer(self.policy(inputs), batch_size)

    def _inputs(
        self, tensordict: TensorDictBase, envs: Tensor | None
    ) -> TensorDictBase:
        """Return the policy's inputs, ``[*B]`` or ``[N]``, in a new tensordict."""
        self._check_images(tensordict, envs)
        optional = getattr(self.policy, "optional_in_keys", ())
        keys = [*self.policy.in_keys, *optional, NOISE_SEED_KEY]
        inputs = tensordict.select(*keys, strict=False)
        check_image_sizes(self._name, inputs, self.training_metadata)
        return inputs if envs is None else take_envs(inputs, envs)

    def _check_images(self, tensordict: TensorDictBase, envs: Tensor | None) -> None:
        """Refuse to plan from images of an earlier step."""
        is_stale = tensordict.get(IMAGE_IS_STALE_KEY, None)
        if is_stale is None or not self._reads_images or torch.compiler.is_compiling():
            return
        is_stale = is_stale.squeeze(-1)
        if envs is not None:
            is_stale = is_stale & envs
        if is_stale.any():
            raise ExecutionError(
                f"{self._name}: expected images of this step where it calls "
                f"{type(self.policy).__name__}, got {IMAGE_IS_STALE_KEY!r} True in "
                f"{int(is_stale.sum())} environments. The environment renders on "
                "demand and was told that no image is needed: reset it together with "
                f"the executor, hand it the executor's {OBSERVATION_NEEDED_KEY!r}, or "
                "make it with render_on_demand=False."
            )

    def _read_answer(
        self, answer: TensorDictBase, batch_size: torch.Size
    ) -> tuple[Tensor, Outputs, int]:
        """Return chunks, the other outputs and a new decision's number."""
        chunk = self._read(answer, self.chunk_key)
        self._check_chunk(chunk, batch_size)
        outputs = {key: self._read(answer, key) for key in self._output_keys}
        return chunk, outputs, new_serial()

    def _read(self, answer: TensorDictBase, key: NestedKey) -> Tensor:
        value = answer.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"{self._name}: expected {type(self.policy).__name__} to write "
                f"{key!r}, one of its out_keys, got "
                f"{sorted(map(str, answer.keys(True, True)))}. No action was sent."
            )
        return value

    def _check_chunk(self, chunk: Tensor, batch_size: torch.Size) -> None:
        check_actions(
            self._name,
            self.chunk_key,
            chunk,
            batch_size,
            (None, None),
            error=ExecutionError,
        )

    def _find_chunk_key(self, policy: TensorDictModuleBase) -> NestedKey:
        out_keys = [unravel_key(key) for key in policy.out_keys]
        if self.keys.chunk is not None:
            found = [key for key in out_keys if key == self.keys.chunk]
            wanted = f"{self.keys.chunk!r}, of keys.chunk,"
        else:
            likely = (ACTION_CHUNK_KEY, self.keys.action)
            found = [key for key in out_keys if key in likely]
            wanted = f"exactly one of {ACTION_CHUNK_KEY!r} and {self.keys.action!r}"
        if len(found) != 1:
            raise ValueError(
                f"{self._name}: expected {wanted} among the out_keys of "
                f"{type(policy).__name__}, got {out_keys}. Name the key that holds the "
                "chunk [*B, H, A] with keys=ExecutorKeys(chunk=...)."
            )
        return found[0]

    def extra_repr(self) -> str:
        """Show where the chunk and the action are."""
        return f"chunk_key={self.chunk_key!r}, action_key={self.keys.action!r}"
