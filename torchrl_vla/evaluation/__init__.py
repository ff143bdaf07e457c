"""Success rates of policies, comparisons of two, and their statistics."""

from torchrl_vla.evaluation.ablations import (
    AblationName,
    EditedObservation,
    blank_images,
    make_ablation,
    reword_instructions,
    shuffle_instructions,
    zero_state,
)
from torchrl_vla.evaluation.comparison import Comparison, compare
from torchrl_vla.evaluation.comparison_checks import ComparisonError
from torchrl_vla.evaluation.confidence_sequence import (
    confidence_sequence,
    e_value,
    rate_confidence_sequence,
)
from torchrl_vla.evaluation.episode_journal import EpisodeJournal, JournalError
from torchrl_vla.evaluation.evaluate import evaluate
from torchrl_vla.evaluation.provenance import (
    describe_environment,
    hash_folder,
    hash_weights,
    package_versions,
)
from torchrl_vla.evaluation.regression_gate import (
    RegressionGate,
    TaskVerdict,
    regression_gate,
)
from torchrl_vla.evaluation.result import EpisodeRecord, EvaluationResult
from torchrl_vla.evaluation.sequential import compare_policies, evaluate_until
from torchrl_vla.evaluation.shards import Shard, ShardError, merge_shards
from torchrl_vla.evaluation.success_statistics import (
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
from torchrl_vla.evaluation.video_export import (
    Recorder,
    contact_sheet,
    write_png,
    write_video,
)
from torchrl_vla.evaluation.video_grid import video_grid

__all__ = [
    "AblationName",
    "Comparison",
    "ComparisonError",
    "EditedObservation",
    "EpisodeJournal",
    "EpisodeRecord",
    "EvaluationResult",
    "JournalError",
    "OutcomeTable",
    "PairedTable",
    "Recorder",
    "RegressionGate",
    "SequentialTable",
    "Shard",
    "ShardError",
    "TaskVerdict",
    "UnpairedTable",
    "blank_images",
    "compare",
    "compare_policies",
    "confidence_sequence",
    "contact_sheet",
    "describe_environment",
    "e_value",
    "evaluate",
    "evaluate_until",
    "fisher_test",
    "hash_folder",
    "hash_weights",
    "make_ablation",
    "mcnemar_test",
    "merge_shards",
    "newcombe_interval",
    "newcombe_paired_interval",
    "package_versions",
    "rate_confidence_sequence",
    "regression_gate",
    "reword_instructions",
    "shuffle_instructions",
    "video_grid",
    "wilson_interval",
    "write_png",
    "write_video",
    "zero_state",
]
