"""Number of clients that a policy may serve at once."""

from __future__ import annotations

from typing import Literal

from tensordict import unravel_key
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.policies.module_policy import declared
from torchrl_vla.schema import ACTION_CHUNK_KEY, check_robot_space

#: ``"shared"`` = any number of clients; ``"exclusive"`` = one, since the policy
#: remembers; ``"refused"`` = none, since it writes no chunk.
ServingMode = Literal["shared", "exclusive", "refused"]


def serving_mode(policy: TensorDictModuleBase) -> ServingMode:
    """Return how many clients a policy may serve at once.

    Policies of this library remember nothing: history, plans and noise travel in the
    tensordict. A policy that does remember says so, ``keeps_state = True``.

    Args:
        policy: of robot space.

    Raises:
        SpaceError: the policy is of model space; serve ``space.robot_policy(policy)``.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(lambda s: s, ["state"], ["action_chunk"])
        >>> serving_mode(policy)
        'shared'
        >>> policy.keeps_state = True
        >>> serving_mode(policy)
        'exclusive'
        >>> serving_mode(TensorDictModule(lambda s: s, ["state"], ["action"]))
        'refused'
    """
    check_robot_space("serving_mode", policy)
    if ACTION_CHUNK_KEY not in [unravel_key(key) for key in policy.out_keys]:
        return "refused"
    return "exclusive" if declared(policy, "keeps_state", False) else "shared"
