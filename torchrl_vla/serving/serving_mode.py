"""Manifest of a policy that is served, and how many clients it may serve."""

from __future__ import annotations

from itertools import chain

import torch
from tensordict import unravel_key
from tensordict.nn import TensorDictModuleBase

from torchrl_vla.policies import as_policy
from torchrl_vla.policies.module_policy import declared
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    RobotDatasetMetadata,
    check_robot_space,
    metadata_of,
)
from torchrl_vla.serving.observation_leaves import path_of
from torchrl_vla.serving.server_manifest import ServerManifest, ServingMode


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


def describe_policy(
    policy: TensorDictModuleBase,
    *,
    metadata: RobotDatasetMetadata | None = None,
    revision: str = "",
    name: str | None = None,
) -> ServerManifest:
    """Return the manifest of a policy.

    Args:
        policy: of robot space.

    Keyword Args:
        metadata: of the robot; None = those of the policy's training data.
        revision: of the weights.
        name: of the policy; None = its class.

    Raises:
        SpaceError: the policy is of model space.
        SchemaError: its sizes are unknown.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(lambda s: s, ["state"], ["action_chunk"])
        >>> policy.chunk_size, policy.action_dim = 4, 2
        >>> describe_policy(policy, revision="3f2a").in_keys
        (('state',),)
    """
    mode = serving_mode(policy)
    optional = declared(policy, "optional_in_keys", ())
    known = [declared(policy, size, None) for size in ("chunk_size", "action_dim")]
    sizes = as_policy(policy) if None in known and mode != "refused" else policy
    tensors = chain(policy.parameters(), policy.buffers())
    return ServerManifest(
        policy=name or type(policy).__name__,
        chunk_size=declared(sizes, "chunk_size", 1),
        action_dim=declared(sizes, "action_dim", 1),
        in_keys=tuple(path_of(key) for key in policy.in_keys),
        out_keys=tuple(path_of(key) for key in policy.out_keys),
        optional_in_keys=tuple(path_of(key) for key in optional),
        mode=mode,
        metadata=metadata_of(policy) if metadata is None else metadata,
        replan_interval=declared(policy, "n_action_steps", None),
        revision=revision,
        device=str(next((t.device for t in tensors), torch.device("cpu"))),
    )
