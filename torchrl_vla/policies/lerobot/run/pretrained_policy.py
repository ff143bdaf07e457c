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
    optional_field,
)
from torchrl_vla.policies.lerobot.load.lora_adapters import without_adapter
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.registry import PolicyKind, kind_of
from torchrl_vla.policies.lerobot.run.guided_chunk import GuidedCall
from torchrl_vla.policies.lerobot.run.invocation import CALLS
from torchrl_vla.policies.lerobot.run.observation_batch import (
    ObservationReader,
    match_cameras,
    to_policy_image,
    to_policy_state,
)
from torchrl_vla.policies.lerobot.run.policy_adapter import PolicyAdapter
from torchrl_vla.policies.lerobot.run.policy_inputs import PolicyInputs
from torchrl_vla.schema import (
    IS_INIT_KEY,
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

    Raises:
        SchemaError: the policy has no pipeline, is of an unsupported type or averages
            its chunks; the cameras that the robot lacks are not the policy's.
        ValueError: a key is given for an input that it does not read.
    """

    config: Config
    pipeline: LeRobotPipeline

    def __init__(
        self,
        policy: Policy,
        pipeline: LeRobotPipeline | None,
        keys: ObservationKeys,
        instructions: InstructionTable | None = None,
    ) -> None:
        config: Config = find_config(policy)
        name = type(policy).__name__
        self.policy, self.config = policy, config
        self.pipeline = _check(name, config, pipeline)
        absent = self.pipeline.empty_cameras
        self.inputs = PolicyInputs.from_config(config, self.kind, absent)
        reader = ObservationReader(
            self.inputs.keys_from(keys, name),
            self.inputs.missing_input_hint(name),
            self.inputs.environment_state_key,
            instructions,
        )
        action_dim = config.action_feature.shape[0]
        super().__init__(name, action_dim, self.kind.chunk_size(config), reader)
        self._call = CALLS[self.kind.call]
        self._guided: GuidedCall | None = None
        if self.kind.continues_chunks(config):
            self._guided = GuidedCall(config)
            self.optional_in_keys = list(GuidedCall.keys)
        self._describe(self.kind, config)

    def _describe(self, kind: PolicyKind, config: Config) -> None:
        steps = config.action_delta_indices
        self.n_action_steps = kind.n_action_steps(config)
        self.target_steps = range(steps[0], steps[0] + len(steps))
        self.masks_padding = kind.masks_padding(config)
        self.history_size = self.inputs.history_size
        if self.reader.environment_state_key is not None:
            self.in_keys.append(self.reader.environment_state_key)
        if kind.call == "planner":
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
        return kind_of(self.config.type)  # whose functions cannot be pickled

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
        plan = None if self.plan_shape is None else self._read_plan(tensordict)
        guide = None if self._guided is None else self._guided.read(tensordict)
        frames = self.make_frames(tensordict)
        if guide is not None:
            frames[-1]["action"] = guide[0]  # normalized as a training target is
        frames = [self.preprocess(frame) for frame in frames]
        for frame in frames:
            old_chunk = frame.pop("action", None)  # the pipelines add one that is None
        with self.inference() as policy:
            if self._guided is None or guide is None:
                chunk, plan = self._call(policy, frames, plan)
            else:
                weight = guide[1].to(self.device)
                chunk = self._guided(policy, frames[-1], old_chunk, weight)
        # At once: relative actions are anchored to what was preprocessed last.
        return self.pipeline.postprocessor(chunk.float()), plan

    @contextmanager
    def inference(self) -> Iterator[Policy]:
        """Yield the policy in evaluation mode and in the precision it computes in.

        The recording of gradients is not changed.
        """
        dtype = self.pipeline.dtype
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
            "LeRobot's make_pre_post_processors(policy.config, dataset_stats=...)."
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


@contextmanager
def _training_flags_kept(policy: nn.Module) -> Iterator[None]:
    """Undo the switch to evaluation mode that LeRobot's predictions make."""
    flags = [(m, m.training) for m in policy.modules()] if policy.training else []
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
