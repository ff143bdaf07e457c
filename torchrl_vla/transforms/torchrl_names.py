"""Renaming between our keys and those of TorchRL's own VLA classes."""

from __future__ import annotations

from collections.abc import Mapping

from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Composite
from torchrl.envs import EnvBase, Transform

from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_TOKENS_KEY,
    LOG_PROBS_KEY,
    MissingKeyError,
    mark_space,
    space_of,
)
from torchrl_vla.transforms.placement import acts_in_environment

#: Our key to the one that TorchRL's ``VLAWrapperBase`` and its transforms use. All
#: other keys of the two schemas are the same.
TORCHRL_NAMES: Mapping[NestedKey, NestedKey] = {
    ACTION_CHUNK_KEY: ("vla_action", "chunk"),
    ACTION_TOKENS_KEY: ("vla_action", "tokens"),
    LOG_PROBS_KEY: ("vla_action", "log_probs"),
}


class _Names(Transform):
    """Rename keys in data; rename them back on the way into an environment."""

    def __init__(self, names: Mapping[NestedKey, NestedKey]) -> None:
        before, after = list(names), list(names.values())
        super().__init__(
            in_keys=before, out_keys=after, in_keys_inv=before, out_keys_inv=after
        )
        self._acting: list[tuple[NestedKey, NestedKey]] | None = None

    def _renamed(
        self, tensordict: TensorDictBase, pairs: list[tuple[NestedKey, NestedKey]]
    ) -> TensorDictBase:
        for before, after in pairs:
            value = tensordict.get(before, None)
            if value is not None:
                _remove(tensordict, before)
                tensordict.set(after, value)
        return tensordict

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Rename the keys of sampled data, or of a policy's output."""
        pairs = list(zip(self.in_keys, self.out_keys, strict=True))
        if all(tensordict.get(key, None) is None for key in self.in_keys):
            raise MissingKeyError(
                f"{type(self).__name__}: expected one of {self.in_keys} in the data, "
                f"got {sorted(map(str, tensordict.keys(True, True)))}."
            )
        # buffer[:] hands out the storage itself
        return self._renamed(tensordict.copy(), pairs)

    def around(self, policy: TensorDictModuleBase) -> TensorDictModuleBase:
        """Return a policy that writes what this one writes, renamed.

        Args:
            policy: for an executor, or for a collector.
        """
        return _RenamedPolicy(policy, self)

    def empty_cache(self) -> None:
        """Forget what is known of the environment, which has another transform now."""
        self._acting = None
        super().empty_cache()

    def set_container(self, container: Transform | EnvBase) -> None:
        """Attach to a ``Compose`` or an environment."""
        self._acting = None
        super().set_container(container)

    def _inv_call(self, tensordict: TensorDictBase) -> TensorDictBase:
        if not acts_in_environment(self):
            return tensordict  # written to a buffer: data keep their names
        if self._acting is None:
            self.container.input_spec  # noqa: B018 (transform_action_spec finds them)
        for before, after in self._acting or ():
            if tensordict.get(after, None) is None:
                raise MissingKeyError(
                    f"{type(self).__name__}: expected an action at {after!r}, got only "
                    f"{sorted(map(str, tensordict.keys(True, True)))}."
                )
            tensordict.set(before, tensordict.get(after))
        return tensordict

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict  # an environment's output has no action

    def transform_output_spec(self, output_spec: Composite) -> Composite:
        """Leave the environment's outputs as they are."""
        return output_spec

    def transform_input_spec(self, input_spec: Composite) -> Composite:
        """Describe the action under the name that the policy writes."""
        input_spec = input_spec.clone()
        actions = input_spec["full_action_spec"]
        known = set(actions.keys(True, True))
        pairs = zip(self.in_keys_inv, self.out_keys_inv, strict=True)
        self._acting = [pair for pair in pairs if unravel_key(pair[0]) in known]
        if not self._acting:
            raise MissingKeyError(
                f"{type(self).__name__}: expected one of {self.in_keys_inv} in the "
                f"environment's action spec, got {sorted(map(str, known))}. Put it "
                "after the transform that takes chunks or tokens."
            )
        for before, after in self._acting:
            actions[after] = actions[before]
            _remove(actions, before)
        return input_spec


class ToTorchRLNames(_Names):
    """Hand our data and environments to TorchRL's own VLA classes.

    On data, ours become theirs: a batch for their policies and losses. In an
    environment that takes our ``action_chunk`` (such as one with ``MultiAction``),
    their policy acts. ``ToTorchRLNames().around(policy)`` is our policy for their
    executors.

    **Reads** ``action_chunk``, ``action_tokens`` and ``log_probs``, whichever are
    there; **writes** them at ``("vla_action", "chunk")``, ``("vla_action", "tokens")``
    and ``("vla_action", "log_probs")`` in their place. In an environment it reads
    theirs and writes ours. All other keys of the two schemas are the same.

    Raises:
        MissingKeyError: there is none of them.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> data = TensorDict({"action_chunk": torch.zeros(2, 4, 7)}, [2])
        >>> theirs = ToTorchRLNames()(data)
        >>> theirs["vla_action", "chunk"].shape
        torch.Size([2, 4, 7])
        >>> list(FromTorchRLNames()(theirs).keys())
        ['action_chunk']
    """

    def __init__(self) -> None:
        super().__init__(TORCHRL_NAMES)


class FromTorchRLNames(_Names):
    """Hand data and environments of TorchRL's own VLA classes to ours.

    Undoes :class:`ToTorchRLNames`: on data, theirs become ours; in an environment that
    takes their ``("vla_action", "chunk")``, our policy acts.
    ``FromTorchRLNames().around(policy)`` is their policy, whose structured
    ``VLAAction`` it opens, for our executors.

    **Reads** ``("vla_action", "chunk")``, ``("vla_action", "tokens")`` and
    ``("vla_action", "log_probs")``, whichever are there; **writes** ``action_chunk``,
    ``action_tokens`` and ``log_probs`` in their place. In an environment it reads ours
    and writes theirs.

    Raises:
        MissingKeyError: there is none of them.
    """

    def __init__(self) -> None:
        super().__init__({after: before for before, after in TORCHRL_NAMES.items()})


class _RenamedPolicy(TensorDictModuleBase):
    def __init__(self, policy: TensorDictModuleBase, names: _Names) -> None:
        super().__init__()
        self.policy, self.names = policy, names
        renamed = dict(zip(names.in_keys, names.out_keys, strict=True))
        self.in_keys = [unravel_key(key) for key in policy.in_keys]
        written = map(unravel_key, policy.out_keys)
        self.out_keys = [renamed.get(key, key) for key in written]
        space = space_of(policy)
        if space is not None:
            mark_space(self, space)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        inputs = tensordict.select(*self.in_keys)
        answer = self.names(self.policy(inputs))
        return tensordict.update(answer.select(*self.out_keys))


def _remove(container: TensorDictBase | Composite, key: NestedKey) -> None:
    """Delete an entry, and what it leaves empty."""
    group, *names = (key,) if isinstance(key, str) else key
    if names:
        inside = container[group]  # a VLAAction knows no deletion
        rest = inside if isinstance(inside, Composite) else inside.to_tensordict()
        del rest[names[0]]
        if not rest.is_empty():
            container[group] = rest
            return
    del container[group]
