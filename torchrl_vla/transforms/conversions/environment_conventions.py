"""Conventions of an environment, with its conversions."""

from __future__ import annotations

from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.schema import RobotDatasetMetadata
from torchrl_vla.transforms.conversions.conversion_chain import declared_metadata
from torchrl_vla.transforms.conversions.robot_conversion import RobotConversion
from torchrl_vla.transforms.placement import chain_of


def environment_metadata(env: EnvBase) -> RobotDatasetMetadata | None:
    """Return what an environment's policy has to agree with; None = undeclared.

    That is the environment's ``metadata``, after the conversions that are attached.

    Examples:
        >>> from dataclasses import replace
        >>> from torchrl_vla.envs import ToyVLAEnv
        >>> base = ToyVLAEnv(2, 2)
        >>> meters = replace(base.metadata, action_units=("m", "m"))
        >>> source = replace(base.metadata, action_units=("cm", "cm"))
        >>> env = TransformedEnv(base, source.conversion_to(meters))
        >>> environment_metadata(env).action_units
        ('m', 'm')
    """
    metadata = declared_metadata(env)
    if isinstance(env, TransformedEnv):
        for transform in chain_of(env.transform):
            if isinstance(transform, RobotConversion):
                metadata = transform.metadata
    return metadata
