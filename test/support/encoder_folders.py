"""Folders of tiny transformers models with random weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch

WORDS = ("reach", "touch", "the", "red", "green", "blue", "block", "one", "go", "to")
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def write_language_model(
    folder: Path, *, causal: bool = False, tokenizer: bool = True
) -> Path:
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    special = ["[PAD]", "[UNK]", "[EOS]"]
    words = {word: i for i, word in enumerate([*special, *WORDS])}
    kind = transformers.LlamaConfig if causal else transformers.BertConfig
    config = kind(vocab_size=len(words), max_position_embeddings=32, **SIZES)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(folder)
    if tokenizer:
        inside = Tokenizer(WordLevel(words, unk_token="[UNK]"))
        inside.pre_tokenizer = Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=inside,
            pad_token="[PAD]",
            unk_token="[UNK]",
            eos_token="[EOS]",
        ).save_pretrained(folder)
    return folder


def write_vision_model(
    folder: Path, kind: str = "vit", *, size: int = 16, processor: bool = True
) -> Path:
    import transformers

    vision = {**SIZES, "image_size": 16, "patch_size": 8}
    text = {**SIZES, "vocab_size": 8, "max_position_embeddings": 8}
    configs = {
        "vit": lambda: transformers.ViTConfig(**vision),
        "dinov2": lambda: transformers.Dinov2Config(**vision),
        "resnet": lambda: transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"
        ),
        "clip": lambda: transformers.CLIPConfig(
            text_config=text, vision_config=vision, projection_dim=8
        ),
        "siglip": lambda: transformers.SiglipConfig(
            text_config=text, vision_config=vision
        ),
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.AutoModel.from_config(configs[kind]())
    model.save_pretrained(folder)
    if processor:
        values = {
            "image_processor_type": "ViTImageProcessor",
            "size": {"height": size, "width": size},
            "image_mean": [0.5, 0.25, 0.0],
            "image_std": [0.5, 0.25, 1.0],
        }
        (folder / "preprocessor_config.json").write_text(json.dumps(values))
    return folder
