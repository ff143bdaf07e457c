"""Folder of a policy on a vision-language trunk."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar, cast

from torch import Tensor

from torchrl_vla._internal.durable_files import (
    remove,
    write_json,
    write_text,
    writing_folder,
)
from torchrl_vla._internal.extras import import_extra
from torchrl_vla._internal.file_origin import Origin
from torchrl_vla._internal.json_source import read_json
from torchrl_vla.policies.module_description import (
    Describer,
    Json,
    decode,
    reference_to,
    resolve,
)
from torchrl_vla.policies.vlm.adaptation import LOW_RANK, base_weights
from torchrl_vla.policies.vlm.causal_trunk import CausalTrunk
from torchrl_vla.policies.vlm.image_text_trunk import ImageTextTrunk
from torchrl_vla.policies.vlm.processors import Family, PromptProcessor
from torchrl_vla.policies.vlm.trunk import VLATrunk
from torchrl_vla.policies.vlm.trunk_loading import (
    load_model,
    load_processor,
    load_tokenizer,
    quiet,
)
from torchrl_vla.schema import InstructionTable, PolicySpace, SchemaError, space_of

if TYPE_CHECKING:
    from torchrl_vla.policies.vlm.vlm_policy import VLMPolicy

_CONFIG, _TRUNK, _HEAD = "config.json", "trunk", "head.safetensors"
_INSTRUCTIONS = "instructions.json"
_REMEDY = "Pass a whole folder that save_policy wrote, or write the policy again."

#: Weights that lie in the trunk's own files.
_MODEL = "trunk.model."

Policy = TypeVar("Policy", bound="VLMPolicy")


class _StoredTrunk(TypedDict):
    sees: bool
    config: dict[str, object]
    keys: dict[str, object]
    image_encoder: dict[str, object] | None


class _StoredPolicy(TypedDict):
    policy: str
    transformers: str
    arguments: dict[str, object]
    trunk: _StoredTrunk
    space: PolicySpace | None


def is_vlm_folder(folder: str | Path) -> bool:
    """Return whether a folder holds a policy on a vision-language trunk."""
    return (Path(folder) / _TRUNK).is_dir() and (Path(folder) / _HEAD).is_file()


def write_vlm_policy(folder: str | Path, policy: VLMPolicy) -> None:
    """Write a policy's folder whole or not at all, ``config.json`` last.

    ``trunk/`` is what ``transformers`` writes and reads: weights, configuration,
    processor and tokenizer. The head's weights are in ``head.safetensors``.

    Raises:
        SchemaError: an argument of the policy can't be written as JSON.
    """
    name = type(policy).__name__
    transformers = import_extra("transformers", "vlm", name)
    safetensors = import_extra("safetensors.torch", "vlm", name)
    describer, trunk = Describer(f"save_policy({name})"), policy.trunk
    space = space_of(policy)
    config = {
        "policy": reference_to(type(policy), describer.caller),
        "transformers": transformers.__version__,
        "arguments": describer.encode(policy.config, name),
        "trunk": {
            "sees": trunk.sees,
            "config": describer.encode(trunk.config, "trunk.config"),
            "keys": describer.encode(trunk.keys, "trunk.keys"),
            "image_encoder": describer.encode(trunk.image_encoder, "image_encoder"),
        },
        "space": None if space is None else asdict(space),
    }
    json.dumps(config)
    head = {
        key: value.detach().cpu().contiguous().clone()
        for key, value in policy.state_dict().items()
        if is_of_head(key)
    }
    folder = Path(folder)
    with writing_folder(folder, _CONFIG) as partial, quiet():
        weights = base_weights(trunk.model)
        trunk.model.save_pretrained(partial / _TRUNK, state_dict=weights)
        trunk.processor.save_pretrained(partial / _TRUNK)
        safetensors.save_file(head, partial / _HEAD)
        table = policy.instructions
        if table is not None:
            write_text(partial / _INSTRUCTIONS, table.to_json())
        else:
            remove(folder / _INSTRUCTIONS)
        write_json(partial / _CONFIG, config)


def read_vlm_policy(folder: str | Path, cls: type[Policy] | None = None) -> Policy:
    """Rebuild a policy from its folder, on the CPU; nothing is downloaded.

    Args:
        folder: written by :func:`write_vlm_policy`.
        cls: the class that is expected; None = any.

    Raises:
        FileNotFoundError: the folder holds no complete policy.
        SchemaError: it holds a policy of another class, or of another major version of
            ``transformers``; the weights do not fit, or a file is damaged.
    """
    folder = Path(folder)
    caller = "load_policy" if cls is None else f"{cls.__name__}.from_folder"
    for name in (_CONFIG, _HEAD):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{caller}: expected {name} in {folder}, got none. Write the policy "
                "with save_policy; an interrupted write leaves none either."
            )
    config = read_json(caller, folder / _CONFIG, _StoredPolicy, remedy=_REMEDY)
    _check_version(caller, config["transformers"])
    found = cast("type[Policy]", resolve(config["policy"], caller))
    if cls is not None and found is not cls:
        raise SchemaError(
            f"{caller}: expected a {cls.__name__} in {folder}, got a "
            f"{found.__name__}. Read it with {found.__name__}.from_folder, or any "
            "policy with load_policy."
        )
    table = None
    if (folder / _INSTRUCTIONS).is_file():
        table = InstructionTable.from_json(folder / _INSTRUCTIONS)
    origin = Origin.of_file(caller, folder / _CONFIG, _REMEDY)
    with origin.reading("the arguments of the policy", "arguments"):
        arguments: Any = decode(cast(Json, config["arguments"]), table)
    trunk = _read_trunk(folder / _TRUNK, config["trunk"])
    policy = cast("Any", found)(trunk, **arguments)
    _load_head(caller, folder / _HEAD, policy)
    policy.instructions = table
    policy.policy_space = config["space"]
    return policy.eval()


def _read_trunk(folder: Path, stored: _StoredTrunk) -> VLATrunk:
    transformers = import_extra("transformers", "vlm", "load_policy")
    config: Any = decode(cast(Json, stored["config"]), None)
    keys: Any = decode(cast(Json, stored["keys"]), None)
    source = str(folder)
    if stored["sees"]:
        settings = transformers.AutoConfig.from_pretrained(source)
        processor = load_processor(source, settings.model_type)
        auto = transformers.AutoModelForImageTextToText
        return ImageTextTrunk(load_model(auto, source, config), processor, config, keys)
    tokenizer = load_tokenizer(source)
    processor = PromptProcessor(tokenizer, tokenizer, None, Family())
    model = load_model(transformers.AutoModelForCausalLM, source, config)
    encoder: Any = decode(cast(Json, stored["image_encoder"]), None)
    return CausalTrunk(model, processor, config, keys, encoder)


def _load_head(caller: str, path: Path, policy: VLMPolicy) -> None:
    safetensors = import_extra("safetensors.torch", "vlm", caller)
    with Origin.of_file(caller, path, _REMEDY).reading("safetensors"):
        weights: dict[str, Tensor] = safetensors.load_file(path)
    own = {k: v for k, v in policy.state_dict().items() if is_of_head(k)}
    different = set(own) ^ set(weights) | {
        name
        for name, value in own.items()
        if name in weights and weights[name].shape != value.shape
    }
    if different:
        raise SchemaError(
            f"{caller}: expected the weights of the head that {_CONFIG} describes, "
            f"got others in {path}: {sorted(different)[:5]}. {_REMEDY}"
        )
    policy.load_state_dict(weights, strict=False)


def is_of_head(name: str) -> bool:
    """Return whether a weight is not one of the model's own: adapters are not."""
    return not name.startswith(_MODEL) or LOW_RANK in name


def _check_version(caller: str, written: str) -> None:
    transformers = import_extra("transformers", "vlm", caller)
    here = transformers.__version__
    if written.split(".")[0] != here.split(".")[0]:
        raise SchemaError(
            f"{caller}: expected a policy written with transformers "
            f"{here.split('.')[0]}.x, the version that is installed ({here}), got "
            f"{written}. Weights and processors changed their names in between: "
            f"install 'transformers=={written}', or train again."
        )
