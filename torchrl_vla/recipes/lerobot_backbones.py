"""LeRobot's SmolVLA and pi0 on narrow, untrained backbones, which need no download.

For profiles of cases: each patches LeRobot while it builds a model, in a process of its
own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchrl_vla._internal.durable_files import write_json
from torchrl_vla._internal.extras import import_extra
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.recipes.dataset_opening import Demonstrations
from torchrl_vla.recipes.lerobot_training import fit_lerobot_policy

_NARROW = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
_SMOLVLA = {
    "chunk_size": 10,
    "n_action_steps": 5,
    "num_steps": 3,
    "max_state_dim": 16,
    "max_action_dim": 16,
    "resize_imgs_with_padding": (128, 128),
    "load_vlm_weights": False,
    "num_vlm_layers": 2,
    "tokenizer_max_length": 24,
}
_PI0 = {
    "chunk_size": 8,
    "n_action_steps": 4,
    "num_inference_steps": 2,
    "max_state_dim": 8,
    "max_action_dim": 8,
    "image_resolution": (28, 28),
    "tokenizer_max_length": 16,
}
_VOCABULARY = 320


def make_tiny_smolvla(dataset: Demonstrations) -> LeRobotPolicyWrapper:
    """Make a SmolVLA of two narrow layers for a dataset."""
    folder = Path(tempfile.mkdtemp()) / "smolvlm-tiny"
    _write_smolvlm(folder, dataset.instructions.texts)
    config = {**_SMOLVLA, "vlm_model_name": str(folder)}
    return fit_lerobot_policy("smolvla", dataset, config=config)


def make_tiny_pi0(dataset: Demonstrations) -> LeRobotPolicyWrapper:
    """Make a pi0 whose PaliGemma and action expert have two narrow layers."""
    folder = Path(tempfile.mkdtemp()) / "tokenizer"
    _write_tokenizer(folder, dataset.instructions.texts, ["<pad>", "<s>", "</s>"], {})
    _narrow_pi0(folder)
    return fit_lerobot_policy("pi0", dataset, config=_PI0)


def _write_tokenizer(
    folder: Path, texts: Iterable[str], special: list[str], extra: dict[str, Any]
) -> Any:
    """Write a byte-level tokenizer whose first three tokens pad, begin and end."""
    tokenizers = import_extra("tokenizers", "lerobot", "make_tiny_smolvla")
    transformers = import_extra("transformers", "lerobot", "make_tiny_smolvla")
    raw = tokenizers.Tokenizer(tokenizers.models.BPE())
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=_VOCABULARY - 20,
        special_tokens=special,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(texts, trainer)
    made = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token=special[0],
        bos_token=special[min(1, len(special) - 1)],
        eos_token=special[min(2, len(special) - 1)],
        **extra,
    )
    made.save_pretrained(folder)
    return made


def _write_smolvlm(folder: Path, texts: Iterable[str]) -> None:
    transformers = import_extra("transformers", "lerobot", "make_tiny_smolvla")
    marks = ("<fake_token_around_image>", "<image>", "<global-img>")
    end = "<end_of_utterance>"
    names = ("fake_image_token", "image_token", "global_image_token")
    extra = dict(zip(names, marks, strict=True)) | {"end_of_utterance_token": end}
    tokenizer = _write_tokenizer(
        folder,
        texts,
        ["<|endoftext|>", "<s>", "</s>", *marks, end],
        {"extra_special_tokens": extra},
    )
    text = {**_NARROW, "model_type": "llama", "hidden_size": 64, "head_dim": 16}
    text |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "pad_token_id": 0}
    config = transformers.SmolVLMConfig(
        text_config=text,
        vision_config={**_NARROW, "image_size": 128, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    transformers.SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    transformers.SmolVLMImageProcessor().save_pretrained(folder)
    processor = {"processor_class": "SmolVLMProcessor", "image_seq_len": 16}
    write_json(folder / "processor_config.json", processor)


@dataclass
class _NarrowGemma:
    width: int = 32
    depth: int = 2
    mlp_dim: int = 32
    num_heads: int = 8  # written into the training forward
    num_kv_heads: int = 1
    head_dim: int = 8


def _narrow_pi0(tokenizer: Path) -> None:
    """Let LeRobot build a narrow pi0, with a tokenizer of ours, in this process."""
    caller = "make_tiny_pi0"
    model = import_extra("lerobot.policies.pi0.modeling_pi0", "lerobot", caller)
    steps = import_extra("lerobot.policies.pi0.processor_pi0", "lerobot", caller)
    parts = vars(model)
    parts["get_gemma_config"] = lambda variant: _NarrowGemma()
    for name in (
        "PaliGemmaForConditionalGenerationWithPiGemma",
        "PiGemmaForCausalLM",
    ):
        parts[name] = _narrowed(parts[name])
    step = steps.TokenizerProcessorStep

    def make(**options: Any) -> Any:
        return step(**{**options, "tokenizer_name": str(tokenizer)})

    vars(steps)["TokenizerProcessorStep"] = make


def _narrowed(build: Any) -> Any:
    def make(config: Any) -> Any:
        parts = vars(config)
        text = parts.get("text_config", config)
        text.vocab_size = _VOCABULARY
        if text is not config:
            config._vocab_size = config.image_token_index = _VOCABULARY
            vision = {**_NARROW, "hidden_size": 16, "projection_dim": 32}
            config.vision_config.update(vision)
        return build(config)

    return make
