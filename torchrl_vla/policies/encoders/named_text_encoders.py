"""Text encoders by name, folder or repo id."""

from __future__ import annotations

from torchrl_vla.policies.encoders.frozen_text import TextFeature

_MINILM = TextFeature("minilm", width=384)
#: Put first, the end-of-text token takes the attention that gathers in a first token.
_FIRST = "<|im_end|>"
_SMOLLM2 = TextFeature("smollm2", 576, layer=8, prompt=_FIRST + "{}", skip=1)
_PROMPTS = (
    'Instruction: "{}". The color of the block in the instruction, in one word, is',
    "The blocks are red, green, blue, yellow, purple and orange.\nCommand: {}\n"
    "Which block is meant? The",
    "{}\n\nThe colour named above is a shade of",
)


def prompted_smollm2(prompts: tuple[str, ...] = _PROMPTS) -> tuple[TextFeature, ...]:
    """Return features of SmolLM2-135M that it has if it is asked.

    Without a prompt its states name little of a text; the last token of a prompt such
    as ``'Instruction: "{}". The color of the block is'`` holds the answer.

    Args:
        prompts: with ``{}`` for the text. The default asks for the colour of a block:
            write prompts that ask what your instructions are about.

    Source: ``docs/language.md`` compares these features with others.
    """
    asked = tuple(
        TextFeature("smollm2", 576, layer=28, pooling="last", prompt=_FIRST + prompt)
        for prompt in prompts
    )
    return (_SMOLLM2, *asked)


#: Features of the encoders that have a name.
TEXT_ENCODERS: dict[str, tuple[TextFeature, ...]] = {
    "minilm": (_MINILM,),
    "smollm2": prompted_smollm2(),
    "minilm+smollm2": (_MINILM, *prompted_smollm2()),
}
