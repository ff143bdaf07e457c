"""Place of a conversion among the transforms that data pass together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tensordict import unravel_key
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.schema import RobotDatasetMetadata, SpaceError
from torchrl_vla.schema.compatibility import differences
from torchrl_vla.transforms.affine_scaling import AffineScaling
from torchrl_vla.transforms.placement import acts_in_environment, chain_of

if TYPE_CHECKING:
    from torchrl_vla.transforms.conversions.robot_conversion import RobotConversion


def check_place(conversion: RobotConversion) -> None:
    """Refuse a conversion of data that are not what its source says.

    Raises:
        SpaceError: data reach it normalized, converted to other conventions, or from
            an environment of other metadata.
    """
    chain = chain_of(conversion)
    before = chain[: chain.index(conversion)]
    converted = {unravel_key(key) for key in conversion.in_keys}
    for scaling in before:
        if not isinstance(scaling, AffineScaling):
            continue
        shared = converted & {unravel_key(key) for key in scaling.in_keys}
        if shared:
            raise SpaceError(
                f"{conversion}: expected {min(shared, key=str)!r} in robot space, got "
                f"it normalized by {scaling}. Put the conversion before the scalings, "
                "and make them from conversion.metadata."
            )
    # The other conversions in the chain, the last one first.
    given = [t.metadata for t in before if type(t) is type(conversion)]
    if not given and acts_in_environment(conversion):
        declared = declared_metadata(conversion.container)
        given = [declared] if declared is not None else []
    found = differences(conversion.plan.source, given[-1]) if given else []
    if found:
        raise SpaceError(
            f"{conversion}: expected data of {conversion.plan.source.dataset_id!r}, "
            f"got data of {given[-1].dataset_id!r} that differ:\n  - "
            + "\n  - ".join(found)
            + "\nMake each conversion from the metadata of what reaches it: "
            "metadata.conversion_to(...), then conversion.metadata.conversion_to(...)."
        )


def declared_metadata(env: EnvBase) -> RobotDatasetMetadata | None:
    """Return the metadata of the base environment; None = undeclared."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    metadata = env.__dict__.get("metadata")
    return metadata if isinstance(metadata, RobotDatasetMetadata) else None
