"""How good a policy is, and how sure we are."""

from torchrl_vla.evaluation.controls import (
    EditedObservation,
    blank_images,
    shuffle_instructions,
    zero_state,
)
from torchrl_vla.evaluation.evaluate import evaluate
from torchrl_vla.evaluation.film import (
    Recorder,
    film_strip,
    write_png,
    write_video,
)
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.statistics import wilson_interval

__all__ = [
    "EditedObservation",
    "EpisodeRecord",
    "EvaluationResult",
    "Recorder",
    "blank_images",
    "evaluate",
    "film_strip",
    "shuffle_instructions",
    "wilson_interval",
    "write_png",
    "write_video",
    "zero_state",
]
