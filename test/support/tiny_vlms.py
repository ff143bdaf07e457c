"""Tiny vision-language models with random weights, as ``transformers`` saves them.

Each folder holds weights, configuration, processor and tokenizer of a model of the real
class, a few kilobytes large, so that loading takes the path that a download takes.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch

SENTENCES = [
    "pick up the red block and place it on the blue plate",
    "push the green block to the left",
    "Task: open the drawer. State: 0 1 2 3 4 5 6 7 8 9",
]
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SIGLIP = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
KINDS = ("smolvlm", "paligemma", "qwen2_5_vl", "causal")


@functools.cache
def tiny_vlm_folder(kind: str) -> str:
    """Return the folder of a tiny model: one of ``KINDS``, ``gemma3`` or ``causal``."""
    folder = Path(tempfile.mkdtemp(prefix=f"tiny_{kind}_"))
    rng = torch.get_rng_state()
    torch.manual_seed(0)
    with torch.no_grad():
        parts = MAKERS[kind]()
    torch.set_rng_state(rng)
    for part in parts:
        part.save_pretrained(folder)
    return str(folder)


@functools.cache
def make_tokenizer(*extra: str):
    """Train a byte-pair tokenizer on three sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[*SPECIAL, *extra],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", *extra],
        model_max_length=512,
    )


def _smolvlm():
    from transformers import (
        Idefics3ImageProcessorPil,
        Idefics3Processor,
        SmolVLMConfig,
        SmolVLMForConditionalGeneration,
    )

    extra = (
        "<fake_token_around_image>",
        "<end_of_utterance>",
        "<global-img>",
        *(f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)),
    )
    tokenizer = make_tokenizer(*extra)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 16},
        max_image_size={"longest_edge": 16},
        do_image_splitting=False,
    )
    processor = Idefics3Processor(images, tokenizer, image_seq_len=4)
    config = SmolVLMConfig(
        text_config={"model_type": "llama", **TEXT, "vocab_size": len(tokenizer) + 8},
        vision_config={**SIGLIP},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    return SmolVLMForConditionalGeneration(config), processor


def _paligemma():
    from transformers import (
        PaliGemmaConfig,
        PaliGemmaForConditionalGeneration,
        PaliGemmaProcessor,
        SiglipImageProcessorPil,
    )

    tokenizer = make_tokenizer(
        *(f"<loc{i:04d}>" for i in range(2)),
    )
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 16
    processor = PaliGemmaProcessor(images, tokenizer)
    config = PaliGemmaConfig(
        text_config={
            "model_type": "gemma",
            **TEXT,
            "vocab_size": len(processor.tokenizer) + 8,
            "num_image_tokens": 16,
        },
        vision_config={"model_type": "siglip_vision_model", **SIGLIP},
        projection_dim=32,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return PaliGemmaForConditionalGeneration(config), processor


def _qwen2_5_vl():
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2VLImageProcessorPil,
    )

    extra = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = make_tokenizer(*extra)
    images = Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, min_pixels=64, max_pixels=256
    )
    ids = tokenizer.convert_tokens_to_ids
    text = {
        **TEXT,
        "vocab_size": len(tokenizer) + 8,
        "rope_parameters": {
            "rope_type": "default",
            "mrope_section": [2, 1, 1],
            "rope_theta": 10_000.0,
        },
    }
    config = Qwen2_5_VLConfig(
        text_config=text,
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), images, tokenizer


def _gemma3():
    from transformers import (
        Gemma3Config,
        Gemma3ForConditionalGeneration,
        Gemma3ImageProcessorPil,
        Gemma3Processor,
    )

    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image>",
    }
    tokenizer = make_tokenizer("<start_of_image>", "<end_of_image>")
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer._tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )
    ids = tokenizer.convert_tokens_to_ids
    processor = Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer,
        image_seq_length=4,
    )
    config = Gemma3Config(
        text_config={**TEXT, "vocab_size": len(tokenizer) + 8},
        vision_config={**SIGLIP},
        mm_tokens_per_image=4,
        image_token_id=ids("<image>"),
        boi_token_id=ids("<start_of_image>"),
        eoi_token_id=ids("<end_of_image>"),
    )
    return Gemma3ForConditionalGeneration(config), processor


def _causal():
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    text = {**TEXT, "tie_word_embeddings": True}  # as small models do
    config = LlamaConfig(**text, vocab_size=len(tokenizer) + 8, pad_token_id=0)
    return LlamaForCausalLM(config), tokenizer


MAKERS = {
    "smolvlm": _smolvlm,
    "paligemma": _paligemma,
    "qwen2_5_vl": _qwen2_5_vl,
    "gemma3": _gemma3,
    "causal": _causal,
}


def tiny_trunk(kind: str, **options):
    """Load a tiny model as a trunk for two cameras."""
    import transformers

    from torchrl_vla.policies.vlm.trunk_config import TrunkConfig
    from torchrl_vla.policies.vlm.trunk_loading import load_trunk

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = TrunkConfig(**{**TRUNK, **options})
    encoder = make_image_encoder() if kind == "causal" else None
    return load_trunk(tiny_vlm_folder(kind), config, image_encoder=encoder)


def make_image_encoder():
    """Make a tiny image encoder, for a language model that has none."""
    from patch_encoder import PatchEncoder

    return PatchEncoder()


TRUNK = {
    "cameras": ("a", "b"),
    "image_sizes": ((3, 16, 16), (3, 16, 16)),
    "text_length": 24,
}


def make_observations(n: int, seed: int = 0):
    """Images of two cameras, a state and an instruction of another length per row."""
    from tensordict import NonTensorStack, TensorDict

    generator = torch.Generator().manual_seed(seed)
    texts = ["push the green block", "open it", "pick up the red block and place it"]

    def image():
        size = (n, 3, 16, 16)
        return torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)

    return TensorDict(
        {
            "observation": {
                "image": {"a": image(), "b": image()},
                "state": torch.randn(n, 3, generator=generator),
            },
            "language_instruction": NonTensorStack(*(texts[i % 3] for i in range(n))),
        },
        [n],
    )
