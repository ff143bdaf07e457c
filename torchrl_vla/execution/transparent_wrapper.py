"""Base class of modules that wrap a policy and forward its members."""

from __future__ import annotations

import copy
from typing import Any

from tensordict import TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from typing_extensions import Self


class PolicyWrapper(TensorDictModuleBase):
    """Wrap a policy, or an executor, and forward every member that is not redefined.

    ``optional_in_keys``, ``chunk_size``, ``get_dist``, ``sample_key``, ``reset``,
    ``make_environment_transform`` and every other public member of the policy are found
    on the wrapper, so that it can stand wherever the policy can. A member that the
    policy lacks is missing here too.

    **Reads** and **writes** what the policy does.

    Args:
        policy: to wrap.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(lambda x: x, ["state"], ["action"])
        >>> policy.chunk_size = 4
        >>> PolicyWrapper(policy).chunk_size
        4
    """

    policy: TensorDictModuleBase

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys = [unravel_key(key) for key in policy.in_keys]
        self.out_keys = [unravel_key(key) for key in policy.out_keys]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Call the policy."""
        return self.policy(tensordict)

    def for_stream(self, name: str) -> Self:
        """Return the wrapper around the executor of one stream of steps.

        See :meth:`Executor.for_stream`; an executor is what has to be wrapped.
        """
        streams = self.__dict__.setdefault("_streams", {})
        if name not in streams:
            inside = self.policy.for_stream(name)
            streams[name] = made = copy.copy(self)
            made._modules = {**self._modules, "policy": inside}
            made.__dict__["_streams"] = {}
        return streams[name]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            modules = self.__dict__.get("_modules", {})
            if name.startswith("_") or "policy" not in modules:
                raise
            return getattr(modules["policy"], name)
