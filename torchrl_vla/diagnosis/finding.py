"""Finding of the parity doctor: where training and acting part, with numbers."""

from __future__ import annotations

import re
from dataclasses import dataclass

#: The stages of the chain, in the order of the data, with what to do about a
#: difference there.
STAGES: dict[str, str] = {
    "cameras": "Give the policy the cameras that it was trained with, by their names.",
    "image size": "Resize (torchrl.envs.Resize) or set the camera to the size of the "
    "training data.",
    "image range": "Send uint8 images, or float images in 0..1, as in training.",
    "channel order": "Reverse the channels before the policy: images are RGB.",
    "image orientation": "Turn the image as it is in the training data.",
    "image content": "Find what crops, compresses or overwrites the image on its way.",
    "normalization": "Act with the ModelSpace, or the processors, of the training.",
    "action tokens": "Decode with the tokenizer that made the training's tokens.",
    "observation history": "Wrap the environment with prepare_environment(env, "
    "executor), and train and act with one history_size.",
    "instruction text": "Send an instruction as it is written in the training data.",
    "action representation": "Convert the actions on one side (absolute, delta or "
    "relative; names and order), or correct the metadata.",
    "units": "Convert the unit on one side, or correct the metadata.",
    "action bounds": "Train on actions that the robot takes, or correct action_low "
    "and action_high.",
    "control rate": "Act at the rate of the training data, or resample the chunks.",
    "chunk length": "Act with the chunk_size of the training, and a replan_interval "
    "within it.",
    "policy call": "Read the error; it is the policy's or the executor's own.",
}

#: Words of an error message that tell which stage refused.
_REFUSALS = {
    "cameras": r"camera[s']*\b.*(partner|expected cameras)|expected cameras",
    "image size": r"\[(\*B, )?C, h, w\]",
    "image range": r"0\.\.1|\[0, 1\]|0\.\.255",
    "observation history": r"history|observations: append",
    "instruction text": r"[Ii]nstruction|ByteTextEncoder",
    "action tokens": r"[Tt]oken",
    "action bounds": r"ActionGuard",
    "chunk length": r"n_steps|replan_interval|\[\*B, H, A\]",
    "units": r"units",
}


@dataclass(frozen=True)
class Finding:
    """One difference between training and acting.

    Args:
        stage: one of :data:`STAGES`.
        message: what differs, with both sides' numbers.
        source: which two sides were compared.

    Examples:
        >>> print(Finding("control rate", "10 Hz against 20 Hz", "dataset, env"))
        control rate (dataset, env): 10 Hz against 20 Hz. Act at the rate of the \
training data, or resample the chunks.
    """

    stage: str
    message: str
    source: str = "training, acting"

    @property
    def remedy(self) -> str:
        """What to do."""
        return STAGES[self.stage]

    def is_of_actions(self, stage: str) -> bool:
        """Return whether it is about the actions at a stage."""
        return self.stage == stage and self.message.startswith("actions")

    def __str__(self) -> str:
        return f"{self.stage} ({self.source}): {self.message}. {self.remedy}"


def refusal(error: Exception, source: str) -> Finding:
    """Return the finding of an error that stopped one of the two paths."""
    text = " ".join(str(error).split())
    stages = (stage for stage, words in _REFUSALS.items() if re.search(words, text))
    stage = next(stages, "policy call")
    return Finding(stage, f"{type(error).__name__}: {text.rstrip('.')}", source)


def in_order(findings: list[Finding]) -> tuple[Finding, ...]:
    """Return findings by stage, each once."""
    order = list(STAGES)
    unique = dict.fromkeys(findings)
    return tuple(sorted(unique, key=lambda finding: order.index(finding.stage)))
