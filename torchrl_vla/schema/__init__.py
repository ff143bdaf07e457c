"""Keys, metadata, instructions, checks and errors: what every layer shares."""

from torchrl_vla.schema.arguments import check_positive_int
from torchrl_vla.schema.conventions import GripperConvention, RotationConvention
from torchrl_vla.schema.errors import (
    ExecutionError,
    IncompatibleMetadataError,
    MetadataError,
    MissingExtraError,
    MissingKeyError,
    SchemaError,
    TokenError,
    UnknownInstructionError,
    VLAError,
)
from torchrl_vla.schema.extras import import_extra
from torchrl_vla.schema.instructions import (
    InstructionTable,
    instruction_texts,
    is_text,
)
from torchrl_vla.schema.keys import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    ACTION_TOKENS_KEY,
    DECISION_INDEX_KEY,
    EPISODE_KEY,
    EPISODE_SEED_KEY,
    EXECUTED_STEPS_KEY,
    EXPERT_ACTION_KEY,
    FRAME_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    IS_DECISION_KEY,
    IS_EXECUTED_KEY,
    IS_INIT_KEY,
    LOG_PROBS_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    SUCCESS_KEY,
)
from torchrl_vla.schema.metadata import RobotDatasetMetadata
from torchrl_vla.schema.statistics import FeatureStatistics
from torchrl_vla.schema.validation import validate_vla_tensordict

__all__ = [
    "ACTION_CHUNK_KEY",
    "ACTION_IS_PAD_KEY",
    "ACTION_KEY",
    "ACTION_TOKENS_KEY",
    "DECISION_INDEX_KEY",
    "EPISODE_KEY",
    "EPISODE_SEED_KEY",
    "EXECUTED_STEPS_KEY",
    "EXPERT_ACTION_KEY",
    "FRAME_KEY",
    "IMAGE_KEY",
    "INSTRUCTION_KEY",
    "IS_DECISION_KEY",
    "IS_EXECUTED_KEY",
    "IS_INIT_KEY",
    "LOG_PROBS_KEY",
    "OBSERVATION_KEY",
    "STATE_KEY",
    "SUCCESS_KEY",
    "ExecutionError",
    "FeatureStatistics",
    "GripperConvention",
    "IncompatibleMetadataError",
    "InstructionTable",
    "MetadataError",
    "MissingExtraError",
    "MissingKeyError",
    "RobotDatasetMetadata",
    "RotationConvention",
    "SchemaError",
    "TokenError",
    "UnknownInstructionError",
    "VLAError",
    "check_positive_int",
    "import_extra",
    "instruction_texts",
    "is_text",
    "validate_vla_tensordict",
]
