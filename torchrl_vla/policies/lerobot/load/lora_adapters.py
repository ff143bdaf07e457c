"""LoRA adapters, by ``peft``, on policies of LeRobot's."""

from __future__ import annotations

import sys
from pathlib import Path

from torchrl_vla._internal.file_origin import Origin
from torchrl_vla.policies.lerobot.lerobot_types import Config, Policy
from torchrl_vla.policies.lerobot.load.weights import changed_weights, check_weights
from torchrl_vla.schema import SchemaError, import_extra

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
_READER = "LeRobotPolicyWrapper.from_pretrained"
_WRITER = "LeRobotPolicyWrapper.to_folder"


def is_adapted(policy: Policy) -> bool:
    """Return whether the policy is inside a peft adapter."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(policy, peft.PeftModel)


def without_adapter(policy: Policy) -> Policy:
    """Return the policy inside a peft adapter."""
    return policy.get_base_model() if is_adapted(policy) else policy


def base_of(folder: Path) -> str:
    """Return the checkpoint that the adapter in a folder was trained on.

    Raises:
        SchemaError: the adapter does not say.
    """
    peft = import_extra("peft", "lerobot", _READER)
    origin = Origin(_READER, repr(str(folder)), "Fetch the checkpoint again.")
    with origin.reading("the configuration of an adapter"):
        base = peft.PeftConfig.from_pretrained(str(folder)).base_model_name_or_path
    if not base:
        raise SchemaError(
            f"{_READER}: expected the adapter in {str(folder)!r} to name the "
            "checkpoint that it was trained on, got none. Write its folder or repo id "
            "to 'base_model_name_or_path' in adapter_config.json."
        )
    return base


def put_adapter_on(policy: Policy, folder: Path) -> Policy:
    """Return the policy with the adapter of a folder, which can be trained further.

    Raises:
        SchemaError: the adapter's weights do not fit the policy.
    """
    peft = import_extra("peft", "lerobot", _READER)
    try:
        policy = peft.PeftModel.from_pretrained(policy, str(folder), is_trainable=True)
    except Exception as error:  # safetensors' own, of a file that was cut off, too
        raise SchemaError(
            f"{_READER}: expected an adapter that fits {type(policy).__name__} in "
            f"{str(folder)!r}, got: {error}"
        ) from error
    weights = peft.get_peft_model_state_dict(policy)
    check_weights(weights, folder / ADAPTER, "the adapter")
    return policy.eval()


def save_policy(policy: Policy, config: Config, folder: Path) -> None:
    """Write weights and configuration; of an adapted policy the adapter alone.

    Args:
        policy: LeRobot's, or one inside an adapter.
        config: the policy's configuration.
        folder: is there.

    Raises:
        SchemaError: the checkpoint under the adapter is not on disk, or is another.
    """
    if not is_adapted(policy):
        policy.save_pretrained(folder)
        return
    for adapter in policy.peft_config.values():
        base = adapter.base_model_name_or_path
        adapter.base_model_name_or_path = _check_base(policy, base, config)
    config.use_peft = True
    policy.save_pretrained(folder)
    config.save_pretrained(folder)


def _check_base(policy: Policy, base: str | None, config: Config) -> str:
    path = Path(base or config.pretrained_path or "") / WEIGHTS
    if path.is_file():
        changed = changed_weights(without_adapter(policy).state_dict(), path)
        if not changed:
            return base or str(path.parent)
        got = f"others at {changed[:5]} ({len(changed)} in all)"
    elif base:
        return base  # a repo id
    else:
        got = f"no such folder at config.pretrained_path={config.pretrained_path!r}"
    raise SchemaError(
        f"{_WRITER}: expected the weights under the adapter, which is saved without "
        f"them, as they are on disk, got {got}. Save the policy before it is adapted, "
        "load it from there, and adapt that."
    )
