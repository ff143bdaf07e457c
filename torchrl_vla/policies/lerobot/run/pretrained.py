"""A policy of LeRobot's between the two pipelines that it was trained with."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer, Transform

from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import (
    Processor,
    check_statistics,
)
from torchrl_vla.policies.lerobot.load.lora_adapters import without_adapter
from torchrl_vla.policies.lerobot.load.registry import PolicyKind, kind_of
from torchrl_vla.policies.lerobot.run.guided_chunk import GuidedCall
from torchrl_vla.policies.lerobot.run.input_reader import InputReader
from torchrl_vla.policies.lerobot.run.inputs import (
    PolicyInputs,
    cameras_of,
    match_cameras,
    to_policy_image,
    to_policy_state,
)
from torchrl_vla.schema import (
    ACTION_IS_PAD_KEY,
    ACTION_KEY,
    IS_INIT_KEY,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.transforms import ObservationHistory

#: Where TD-MPC's last plan travels from decision to decision, ``[*B, horizon, A]``.
PLAN_KEY: NestedKey = "policy_plan"


def find_config(policy: Any) -> Any | None:
    """Return the configuration of a policy of LeRobot's; None for other objects."""
    module = sys.modules.get("lerobot.policies.pretrained")
    policy = without_adapter(policy)
    if module is None or not isinstance(policy, module.PreTrainedPolicy):
        return None
    return policy.config


class PretrainedPolicy:
    """Ask a policy of LeRobot's for chunks in robot space, and make its training data.

    Args:
        policy: LeRobot's ``PreTrainedPolicy``, or one inside a peft adapter.
        preprocessor: robot space to model space.
        postprocessor: model space to robot space.

    Keyword Args:
        reader: looks the inputs up.
        inputs: which there are.
        rename_map: cameras of the robot to cameras of the policy.
        dtype: to compute in, by autocast; None = as the weights are.

    Raises:
        SchemaError: no processors, no statistics, or temporal ensembling.
    """

    def __init__(
        self,
        policy: Any,
        preprocessor: Processor | None,
        postprocessor: Processor | None,
        *,
        reader: InputReader,
        inputs: PolicyInputs,
        rename_map: Mapping[str, str | None],
        dtype: torch.dtype | None,
    ) -> None:
        self.policy = policy
        self.config = find_config(policy)
        _check(policy, self.config, preprocessor, postprocessor)
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor
        self.reader = reader
        self.inputs = inputs
        self.rename_map = dict(rename_map)
        self.dtype = dtype
        self._call = self.kind.call(self.config)
        self._guided_call: GuidedCall | None = None
        if self.kind.continues_chunks(self.config):
            self._guided_call = GuidedCall(self.config)

    @property
    def kind(self) -> PolicyKind:
        """What is known about the policy's type."""
        return kind_of(self.config.type)

    @property
    def plan_shape(self) -> tuple[int, int] | None:
        """``(horizon, A)`` of the plan that it carries; None = it carries none."""
        if not self._call.carries_plan:
            return None
        return self.config.horizon, self.config.action_feature.shape[0]

    @property
    def optional_in_keys(self) -> list[NestedKey]:
        """What it reads where it is: a guide, if the policy's ``rtc_config`` is on."""
        return [] if self._guided_call is None else list(self._guided_call.keys)

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """What the checkpoint says about its robot: sizes and cameras."""
        images, states = self.inputs.images, self.inputs.states
        names = [name.removeprefix("observation.images.") for name in images]
        return RobotDatasetMetadata(
            f"lerobot {self.config.type}",
            action_dim=self.config.action_feature.shape[0],
            state_dim=states.get("observation.state"),
            cameras=tuple(name for name in names if name != "observation.image"),
        )

    def carried(self) -> list[Transform]:
        """Return what an environment has to carry from step to step."""
        transforms: list[Transform] = []
        if self.inputs.history_size > 1:
            transforms.append(ObservationHistory(self.inputs.history_size))
        if self.plan_shape is not None:
            plan = {PLAN_KEY: Unbounded(self.plan_shape)}
            transforms.append(TensorDictPrimer(plan, expand_specs=True))
        return transforms

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.policy.parameters()).device

    def ask(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        """Return chunks ``[N, H, A]`` in robot space, and plans ``[N, horizon, A]``."""
        plan = None if self.plan_shape is None else self._read_plan(tensordict)
        guided = (
            None if self._guided_call is None else self._guided_call.read(tensordict)
        )
        frames = self.make_frames(tensordict)
        if guided is not None:
            frames[-1]["action"] = guided[0]  # normalized as a training target is
        frames = [self.preprocess(frame) for frame in frames]
        for frame in frames:
            guide = frame.pop("action", None)  # the pipelines add one that is None
        with self.inference() as policy:
            if guided is None:
                chunk, plan = self._call(policy, frames, plan)
            else:
                weight = guided[1].to(self.device)
                chunk = self._guided_call(policy, frames[-1], guide, weight)
        if isinstance(chunk, Tensor):
            # At once: relative actions are anchored to what was preprocessed last.
            chunk = self.postprocessor(chunk.float())
        return chunk, plan

    @contextmanager
    def inference(self) -> Iterator[Any]:
        """Give out the policy in evaluation mode and in the precision it computes in.

        Gradients are recorded as they were.
        """
        enabled = self.dtype is not None
        autocast = torch.autocast(self.device.type, self.dtype, enabled=enabled)
        with _training_flags_kept(self.policy), autocast:
            self.policy.eval()
            yield without_adapter(self.policy)

    def preprocess(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Bring a batch to model space, and to where the weights are."""
        return {
            name: value.to(self.device) if isinstance(value, Tensor) else value
            for name, value in self.preprocessor(batch).items()
        }

    def make_frames(self, tensordict: TensorDictBase) -> list[dict[str, Any]]:
        """Return the observations that the policy reads as LeRobot batches.

        Args:
            tensordict: ``[*B]``, in robot space.

        Returns:
            One batch of ``N = numel(B)`` rows per observation step, the oldest first,
            before the preprocessor.
        """
        history, size = self.inputs.history_size, tensordict.batch_size
        if history > 1:
            size = torch.Size([*size, history])
        stacked = self._states(tensordict, size) | self._images(tensordict, size)
        extra = {"task": self.reader.texts(tensordict)} if self.kind.reads_text else {}
        if history == 1:
            return [{**stacked, **extra}]
        rows = tensordict.batch_size.numel()
        stacked = {
            name: value.view(rows, history, *value.shape[1:])
            for name, value in stacked.items()
        }
        return [
            {**{name: value[:, t] for name, value in stacked.items()}, **extra}
            for t in range(history)
        ]

    def make_training_batch(
        self, tensordict: TensorDictBase, chunk_key: NestedKey
    ) -> dict[str, Any]:
        """Return the preprocessed batch that LeRobot's own training step would see.

        Args:
            tensordict: ``[*B]``, in robot space, with targets and their mask.
            chunk_key: of the targets ``[*B, H, A]``.
        """
        frames = self.make_frames(tensordict)
        batch = dict(frames[-1])
        if self.config.observation_delta_indices is not None:
            for name, value in batch.items():
                if isinstance(value, Tensor):
                    batch[name] = torch.stack([frame[name] for frame in frames], 1)
        steps, dim = self.config.action_delta_indices, self.config.action_feature.shape
        chunk = self.reader.read(tensordict, chunk_key)
        is_pad = self.reader.read(tensordict, ACTION_IS_PAD_KEY)
        expected = (*tensordict.batch_size, len(steps), *dim)
        if chunk.shape != expected or is_pad.shape != expected[:-1]:
            raise SchemaError(
                f"LeRobotPolicyWrapper: expected targets [*B, H, A] = {list(expected)} "
                f"at {chunk_key!r} and a mask [*B, H], got {list(chunk.shape)} and "
                f"{list(is_pad.shape)}. Make them with ActionChunkTransform("
                f"{len(steps)}, storage=..., first_step={steps[0]})."
            )
        self._check_alignment(tensordict, chunk, steps[0])
        batch["action"] = chunk.reshape(-1, *expected[-2:])
        is_pad = is_pad.reshape(-1, len(steps))
        batch = self.preprocess({**batch, "action_is_pad": is_pad})
        # LeRobot 0.4.4's SmolVLA looks for the mask under the second name.
        is_pad = is_pad.to(self.device)
        return {**batch, "action_is_pad": is_pad, "actions_id_pad": is_pad}

    def _check_alignment(
        self, tensordict: TensorDictBase, chunk: Tensor, first_step: int
    ) -> None:
        """Refuse targets that begin at another step than the policy's do."""
        action = tensordict.get(ACTION_KEY, None)
        if action is None or torch.equal(chunk[..., -first_step, :], action):
            return
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected targets that begin at step {first_step} "
            f"from the frame, got others: their element {-first_step} is not the "
            f"frame's own {ACTION_KEY!r}. Make them with first_step={first_step}, in "
            "robot space: the policy's preprocessor normalizes."
        )

    def _states(
        self, tensordict: TensorDictBase, size: torch.Size
    ) -> dict[str, Tensor]:
        reader, states = self.reader, {}
        keys = {
            "observation.state": reader.state_key,
            "observation.environment_state": reader.environment_state_key,
        }
        for name, key in keys.items():
            if key is not None:
                value, width = reader.read(tensordict, key), self.inputs.states[name]
                states[name] = to_policy_state(value, name, width, size)
        return states

    def _images(
        self, tensordict: TensorDictBase, size: torch.Size
    ) -> dict[str, Tensor]:
        if self.reader.image_key is None:
            return {}
        given = cameras_of(self.reader.read(tensordict, self.reader.image_key))
        wanted = self.inputs.images
        pairs = match_cameras(list(given), list(wanted), self.rename_map)
        any_size = self.inputs.resizes_images
        return {
            name: to_policy_image(
                given[pairs[name]], pairs[name], None if any_size else shape, size
            )
            for name, shape in wanted.items()
        }

    def _read_plan(self, tensordict: TensorDictBase) -> Tensor:
        is_init = self.reader.read(tensordict, IS_INIT_KEY).reshape(-1)
        plan = tensordict.get(PLAN_KEY, None)
        if plan is None:
            if not is_init.all():
                raise MissingKeyError(
                    f"LeRobotPolicyWrapper: expected {PLAN_KEY!r}, the plan that the "
                    "policy's search begins with, in mid-episode, got only "
                    f"{sorted(map(str, tensordict.keys(True, True)))}. Append "
                    "policy.make_environment_transform() to the environment."
                )
            return torch.zeros((len(is_init), *self.plan_shape), device=self.device)
        plan = plan.reshape(len(is_init), *self.plan_shape)
        return torch.where(is_init[:, None, None], 0.0, plan).to(self.device)


def _check(
    policy: Any,
    config: Any,
    preprocessor: Processor | None,
    postprocessor: Processor | None,
) -> None:
    if preprocessor is None or postprocessor is None:
        raise SchemaError(
            f"LeRobotPolicyWrapper: expected {type(policy).__name__} with its "
            "preprocessor and postprocessor, which normalize, tokenize and "
            "denormalize for it, got none. Load all three with LeRobotPolicyWrapper."
            "from_pretrained(folder), or make the two with LeRobot's "
            "make_pre_post_processors(policy.config, dataset_stats=...)."
        )
    check_statistics(preprocessor, postprocessor)
    if getattr(config, "temporal_ensemble_coeff", None) is not None:
        raise SchemaError(
            "LeRobotPolicyWrapper: expected a policy whose chunks are executed as they "
            f"are, got temporal_ensemble_coeff={config.temporal_ensemble_coeff}: "
            "LeRobot averages overlapping chunks in select_action. Load it with "
            "torchrl_vla.recipes.load_executor(source, ...), which gives the same "
            "actions with TemporalEnsemble; or execute whole chunks with overrides={"
            "'temporal_ensemble_coeff': None, 'n_action_steps': "
            f"{config.chunk_size}}}."
        )


@contextmanager
def _training_flags_kept(policy: nn.Module) -> Iterator[None]:
    """Undo the switch to evaluation mode that LeRobot's predictions make."""
    flags = [(m, m.training) for m in policy.modules()] if policy.training else []
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
