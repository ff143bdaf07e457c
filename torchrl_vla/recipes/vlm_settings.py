"""Settings of a policy on a vision-language model."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torchrl_vla._internal.option_names import Attention, Precision, StateInput


@dataclass(frozen=True)
class VLMSettings:
    """Settings of a policy on a vision-language model of ``transformers``.

    Args:
        backbone: Vision-language model: a folder with weights, configuration, processor
            and tokenizer, a repo id of the Hugging Face Hub, or a language model: a
            ``.gguf`` file, or smollm2, whose weights are a package. One that reads text
            alone needs an image encoder.
        prompt: Text around the instruction, with one {instruction}.
        text_length: Tokens kept for the text; longer prompts are refused.
        state_input: Where the state goes: to the head, as one token behind the prompt,
            or written out as text.
        num_steps: Denoising steps of a flow head.
        expert_hidden: Width of a flow head's action expert.
        insulate: Knowledge insulation: the flow's gradient ends before the model, which
            learns action tokens instead.
        max_delay: Committed actions that a flow head learns to continue, for real-time
            chunking.
        lora_rank: Rank of adapters that are trained in place of the model; 0 trains the
            model.
        freeze: Train the head alone.
        checkpoint_layers: Compute the model's layers again in the backward pass, which
            takes less memory.
        precision: Precision that the model computes in; head and log-probabilities
            are float32.
        attention: Implementation of attention.

    Examples:
        >>> VLMSettings(backbone="folder", lora_rank=8).given()
        {'backbone': 'folder', 'lora_rank': 8}
    """

    backbone: str | None = None
    prompt: str = "{instruction}"
    text_length: int = 48
    state_input: StateInput = "head"
    num_steps: int = 10
    expert_hidden: int = 256
    insulate: bool = False
    max_delay: int = 0
    lora_rank: int = 0
    freeze: bool = False
    checkpoint_layers: bool = False
    precision: Precision = "float32"
    attention: Attention = "sdpa"

    def given(self) -> dict[str, object]:
        """Return the settings that are not their defaults."""
        return {
            field.name: value
            for field in fields(self)
            if (value := vars(self)[field.name]) != field.default
        }


NO_VLM_SETTINGS = VLMSettings()
