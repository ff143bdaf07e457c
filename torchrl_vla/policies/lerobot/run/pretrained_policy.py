"""Adapter of a LeRobot policy between the processors that it was trained with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer, Transform

from torchrl_vla.policies.lerobot.lerobot_types import (
    Batch,
    Config,
    Policy,
    PredictFunction,
    optional_field,
)
from torchrl_vla.policies.lerobot.load.lora_adapters import without_adapter
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.processor_checks import check_processors
from torchrl_vla.policies.lerobot.registry import (
    KINDS,
    PolicyKind,
    horizon_problems,
    kind_of,
)
from torchrl_vla.policies.lerobot.run.guided_chunk import GuidedCall
from torchrl_vla.policies.lerobot.run.invocation import CALLS, stack_frames
from torchrl_vla.policies.lerobot.run.observation_batch import (
    ObservationReader,
    match_cameras,
    to_policy_image,
    to_policy_state,
)
from torchrl_vla.policies.lerobot.run.policy_adapter import PolicyAdapter
from torchrl_vla.policies.lerobot.run.policy_inputs import PolicyInputs
from torchrl_vla.policies.lerobot.run.seeded_noise import SeededNoise, takes_noise
from torchrl_vla.policies.lerobot.run.wrapper_arguments import check_chunk
from torchrl_vla.schema import (
    IS_INIT_KEY,
    NOISE_SEED_KEY,
    InstructionTable,
    MissingKeyError,
    ObservationKeys,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ObservationHistory

#: Where TD-MPC's last plan travels from decision to decision, ``[*B, horizon, A]``.
PLAN_KEY: NestedKey = "policy_plan"


def find_config(policy: Policy) -> Config | None:
    """Return the configuration of a policy of LeRobot's; None for other objects."""
    module = sys.modules.get("lerobot.policies.pretrained")
    policy = without_adapter(policy)
    if module is None or not isinstance(policy, module.PreTrainedPolicy):
        return None
    return policy.config


class PretrainedPolicy(PolicyAdapter):
    """Predict chunks in robot space with a policy of LeRobot's.

    Args:
        policy: LeRobot's ``PreTrainedPolicy``, or one inside a peft adapter.
        pipeline: its processors, cameras and precision.
        keys: of the inputs, as the user gave them.
        instructions: table that gives instruction ids their texts.
        predict_fn: ``(policy, batch) -> chunk``, called between the processors instead
            of ``predict_action_chunk``; None = that.
        chunk_size: of ``predict_fn``; None = the configuration's.

    Raises:
        SchemaError: the policy has no pipeline or another policy's, is of an
            unsupported type, or averages its chunks; its horizons contradict each
            other; the cameras that the robot lacks are not the policy's.
        MetadataError: statistics of the processors cannot be true.
        ValueError: an argument is given for an input that it does not read.
    """

    config: Config
    pipeline: LeRobotPipeline

    def __init__(
        self,
        policy: Policy,
        pipeline: LeRobotPipeline | None,
        keys: ObservationKeys,
        instructions: InstructionTable | None = None,
        predict_fn: PredictFunction | None = None,
        chunk_size: int | None = None,
    ) -> None:
        config: Config = find_config(policy)
        name = type(policy).__name__
        self.policy, self.config, self.predict_fn = policy, config, predict_fn
        self._reads_text = keys.instruction is not None
        kind = self.kind
        self.pipeline = _check(name, config, pipeline)
        check_processors(name, config, self.pipeline)
        self.inputs = PolicyInputs.from_config(config, kind, self.pipeline)
        reader = ObservationReader(
            self.inputs.keys_from(keys, name),
            self.inputs.missing_input_hint(name),
            self.inputs.environment_state_key,
            instructions,
        )
        if predict_fn is None or chunk_size is None:
            chunk_size = _checked_chunk_size(config, kind)
        action_dim = config.action_feature.shape[0]
        super().__init__(name, action_dim, chunk_size, reader)
        self._guided: GuidedCall | None = None
        if predict_fn is None and kind.continues_chunks(config):
            self._guided = GuidedCall(config)
            self.optional_in_keys = list(GuidedCall.keys)
        self.noise_shape = None
        if predict_fn is None and takes_noise(without_adapter(policy), kind):
            self.noise_shape = kind.noise_shape(config) if kind.noise_shape else None
            self.optional_in_keys = [*self.optional_in_keys, NOISE_SEED_KEY]
            self.noise_source = "noise_seed"
        elif predict_fn is None:
            self.noise_source = "torch" if kind.samples else "none"
        self._describe(kind, config)

    def _describe(self, kind: PolicyKind, config: Config) -> None:
        steps = config.action_delta_indices
        self.n_action_steps = self.chunk_size
        if self.predict_fn is None:
            self.n_action_steps = kind.n_action_steps(config)
        self.target_steps = range(steps[0], steps[0] + len(steps))
        self.masks_padding = kind.masks_padding(config)
        self.history_size = self.inputs.history_size
        if self.reader.environment_state_key is not None:
            self.in_keys.append(self.reader.environment_state_key)
        if kind.call == "planner" and self.predict_fn is None:
            self.plan_shape = (config.horizon, self.action_dim)
            self.in_keys += [IS_INIT_KEY, PLAN_KEY]
        names = [n.removeprefix("observation.images.") for n in self.inputs.images]
        self.metadata = RobotDatasetMetadata(
            f"lerobot {config.type}",
            action_dim=self.action_dim,
            state_dim=self.inputs.states.get("observation.state"),
            cameras=tuple(name for name in names if name != "observation.image"),
        )

    @property
    def kind(self) -> PolicyKind:
        """The facts about the policy's type."""
        # Read anew at each use: its functions cannot be pickled.
        if self.predict_fn is None or self.config.type in KINDS:
            return kind_of(self.config.type)
        return PolicyKind(reads_text=self._reads_text)

    def as_pretrained(self, caller: str) -> PretrainedPolicy:
        """Return itself."""
        return self

    def environment_transforms(self) -> list[Transform]:
        """Return what the environment carries from step to step for the policy."""
        transforms: list[Transform] = []
        if self.history_size > 1:
            transforms.append(ObservationHistory(self.history_size))
        if self.plan_shape is not None:
            plan = {PLAN_KEY: Unbounded(self.plan_shape)}
            transforms.append(TensorDictPrimer(plan, expand_specs=True))
        return transforms

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.policy.parameters()).device

    def predict(self, tensordict: TensorDictBase) -> tuple[object, Tensor | None]:
        """Return chunks ``[N, H, A]`` in robot space, and plans ``[N, horizon, A]``."""
        size = tensordict.batch_size.numel()
        plan = None if self.plan_shape is None else self._read_plan(tensordict)
        guide = None if self._guided is None else self._guided.read(tensordict)
        frames = self.make_frames(tensordict)
        if guide is not None:
            frames[-1]["action"] = guide[0]  # normalized as a training target is
        frames = [self.preprocess(frame) for frame in frames]
        for frame in frames:
            old_chunk = frame.pop("action", None)  # the pipelines add one that is None
        noise = self._read_noise(tensordict)
        with self.inference() as policy:
            if self.predict_fn is not None:
                chunk = self.predict_fn(policy, stack_frames(frames))
                check_chunk(chunk, (size, self.chunk_size, self.action_dim), self.name)
            elif self._guided is None or guide is None:
                chunk, plan = CALLS[self.kind.call](policy, frames, plan, noise)
            else:
                weight = guide[1].to(self.device)
                chunk = self._guided(policy, frames[-1], old_chunk, weight, noise)
        # At once: relative actions are anchored to what was preprocessed last.
        return self.pipeline.postprocessor(chunk.float()), plan

    @contextmanager
    def inference(self) -> Iterator[Policy]:
        """Yield the policy in evaluation mode and in the precision it computes in.

        The recording of gradients is not changed.
        """
        dtype = self.pipeline.dtype
        if dtype is None and self.config.use_amp:  # as lerobot-eval
            dtype = torch.get_autocast_dtype(self.device.type)
        autocast = torch.autocast(self.device.type, dtype, enabled=dtype is not None)
        with _training_flags_kept(self.policy), autocast:
            self.policy.eval()
            yield without_adapter(self.policy)

    def preprocess(self, batch: Batch) -> Batch:
        """Bring a batch to model space, and to the device of the weights."""
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in self.pipeline.preprocessor(batch).items()
        }

    def make_frames(self, tensordict: TensorDictBase) -> list[Batch]:
        """Return the observations that the policy reads as LeRobot batches.

        Args:
            tensordict: ``[*B]``, in robot space.

        Returns:
            One batch of ``N = numel(B)`` elements per observation step, the oldest
            first, before the preprocessor.
        """
        history, size = self.history_size, tensordict.batch_size
        if history > 1:
            size = torch.Size([*size, history])
        stacked = self._states(tensordict, size) | self._images(tensordict, size)
        extra = {"task": self.reader.texts(tensordict)} if self.kind.reads_text else {}
        if history == 1:
            return [{**stacked, **extra}]
        n = tensordict.batch_size.numel()
        stacked = {
            name: value.view(n, history, *value.shape[1:])
            for name, value in stacked.items()
        }
        return [
            {**{name: value[:, t] for name, value in stacked.items()}, **extra}
            for t in range(history)
        ]

    def _states(
        self, tensordict: TensorDictBase, size: torch.Size
    ) -> dict[str, Tensor]:
        return {
            name: to_policy_state(value, name, self.inputs.states[name], size)
            for name, value in self.reader.states(tensordict).items()
        }

    def _images(
        self, tensordict: TensorDictBase, size: torch.Size
    ) -> dict[str, Tensor]:
        wanted = self.inputs.images
        if not wanted:
            return {}
        given = self.reader.images(tensordict)
        rename_map = self.pipeline.rename_map or {}
        pairs = match_cameras(list(given), list(wanted), rename_map)
        any_size = self.inputs.resizes_images
        return {
            name: to_policy_image(
                given[pairs[name]], pairs[name], None if any_size else shape, size
            )
            for name, shape in wanted.items()
        }

    def _read_noise(self, tensordict: TensorDictBase) -> SeededNoise | None:
        seeds = tensordict.get(NOISE_SEED_KEY, None)
        if seeds is None or self.noise_shape is None:
            return None
        return SeededNoise(seeds.reshape(-1), self.noise_shape, self.device)

    def _read_plan(self, tensordict: TensorDictBase) -> Tensor:
        is_init = self.reader.read(tensordict, IS_INIT_KEY).reshape(-1)
        plan, shape = tensordict.get(PLAN_KEY, None), self.plan_shape or ()
        if plan is None:
            if not is_init.all():
                raise MissingKeyError(
                    f"LeRobotPolicyWrapper: expected {PLAN_KEY!r}, the plan that the "
                    "policy's search begins with, in mid-episode, got only "
                    f"{sorted(map(str, tensordict.keys(True, True)))}. Append "
                    "policy.make_environment_transform() to the environment."
                )
            return torch.zeros((len(is_init), *shape), device=self.device)
        plan = plan.reshape(len(is_init), *shape)
        return torch.where(is_init[:, None, None], 0.0, plan).to(self.device)


def _check(
    name: str, config: Config, pipeline: LeRobotPipeline | None
) -> LeRobotPipeline:
    if pipeline is None:
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected {name} with its preprocessor and "
            "postprocessor, which normalize, tokenize and denormalize for it, got "
            "none. Load all three with LeRobotPolicyWrapper.from_pretrained(folder), "
            "or pass pipeline=LeRobotPipeline(preprocessor, postprocessor), the two of "
            "LeRobot's make_pre_post_processors(policy.config, dataset_stats=...). "
            "What calls processors of its own goes in as a function of LeRobot's batch."
        )
    coefficient = optional_field(config, "temporal_ensemble_coeff")
    if coefficient is not None:
        raise SchemaError(
            "LeRobotPolicyWrapper: expected a policy whose chunks are executed as they "
            f"are, got temporal_ensemble_coeff={coefficient}: LeRobot averages "
            "overlapping chunks in select_action. Load it with torchrl_vla.recipes."
            "load_executor(source, ...), which gives the same actions with "
            "TemporalEnsemble; or execute whole chunks with overrides={"
            f"'temporal_ensemble_coeff': None, 'n_action_steps': {config.chunk_size}}}."
        )
    return pipeline


def _checked_chunk_size(config: Config, kind: PolicyKind) -> int:
    try:
        problems = [*horizon_problems(config, kind)]
        size = kind.chunk_size(config)
    except AttributeError as error:
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected the chunk's size in the configuration of "
            f"a policy of type {config.type!r}, got none ({error}). Pass chunk_size= "
            "beside predict_fn, or register the type with KINDS and its own chunk_size."
        ) from error
    if problems:
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected {'; '.join(problems)}, in the "
            f"configuration of a policy of type {config.type!r}. Correct it with "
            "overrides={...} of from_pretrained, or config={...} of a new policy."
        )
    return size


@contextmanager
def _training_flags_kept(policy: nn.Module) -> Iterator[None]:
    """Undo the switch to evaluation mode that LeRobot's predictions make."""
    flags = [(m, m.training) for m in policy.modules()] if policy.training else []
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
