"""How good a policy is, which of two is better, and how sure we are."""

from torchrl_vla.evaluation.betting import (
    betting_evidence,
    betting_interval,
    betting_rate_interval,
)
from torchrl_vla.evaluation.comparability import ComparisonError
from torchrl_vla.evaluation.comparison import Comparison, compare
from torchrl_vla.evaluation.controls import (
    ControlName,
    EditedObservation,
    blank_images,
    make_control,
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
from torchrl_vla.evaluation.provenance import (
    describe_environment,
    hash_folder,
    hash_weights,
    package_versions,
)
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.sequential import compare_policies, evaluate_until
from torchrl_vla.evaluation.statistics import (
    fisher_test,
    mcnemar_test,
    newcombe_interval,
    newcombe_paired_interval,
    wilson_interval,
)
from torchrl_vla.evaluation.tables import (
    OutcomeTable,
    PairedTable,
    SequentialTable,
    UnpairedTable,
)

__all__ = [
    "Comparison",
    "ComparisonError",
    "ControlName",
    "EditedObservation",
    "EpisodeRecord",
    "EvaluationResult",
    "OutcomeTable",
    "PairedTable",
    "Recorder",
    "SequentialTable",
    "UnpairedTable",
    "betting_evidence",
    "betting_interval",
    "betting_rate_interval",
    "blank_images",
    "compare",
    "compare_policies",
    "describe_environment",
    "evaluate",
    "evaluate_until",
    "film_strip",
    "fisher_test",
    "hash_folder",
    "hash_weights",
    "make_control",
    "mcnemar_test",
    "newcombe_interval",
    "newcombe_paired_interval",
    "package_versions",
    "shuffle_instructions",
    "wilson_interval",
    "write_png",
    "write_video",
    "zero_state",
]
