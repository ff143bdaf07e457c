"""A policy that speaks LeRobot's batch dictionaries, as a policy of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import Compose

from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import (
    Processor,
    read_checkpoint,
)
from torchrl_vla.policies.lerobot.load.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.lerobot.load.lora_adapters import save_policy
from torchrl_vla.policies.lerobot.load.registry import kind_of
from torchrl_vla.policies.lerobot.run.callable_policy import (
    ObjectPolicy,
    PredictFunction,
)
from torchrl_vla.policies.lerobot.run.input_reader import InputReader
from torchrl_vla.policies.lerobot.run.inputs import (
    PolicyInputs,
    in_history,
    read_size,
    what_to_do,
)
from torchrl_vla.policies.lerobot.run.outputs import (
    Boundary,
    check_chunk,
    pass_boundary,
)
from torchrl_vla.policies.lerobot.run.pretrained import (
    PLAN_KEY,
    PretrainedPolicy,
    find_config,
)
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ENVIRONMENT_STATE_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    IS_INIT_KEY,
    STATE_KEY,
    InstructionTable,
    ObservationKeys,
    RobotDatasetMetadata,
    SchemaError,
)


class LeRobotPolicyWrapper(ContinuousVLAWrapper):
    """Run a LeRobot policy with its own processors, one chunk for every row.

    A policy of LeRobot's comes with the pipelines that normalize, tokenize and
    denormalize for it; sizes, cameras and history are read from its configuration. The
    chunk is in robot space, and under ``MultiStepActorWrapper(policy,
    replan_interval=policy.n_action_steps)`` the actions are those of LeRobot's own
    loop, bit for bit. The surprise: ``select_action`` is never called. It serves
    actions from queues that all environments would share; here observations, history
    and plans come in the tensordict, so streams can be interleaved and reset one by
    one.

    Any other object that maps such a batch to a chunk is called as it is; give sizes.

    **Reads** image(s) uint8, or float in 0..1, ``[*B, C, h, w]``; state float
    ``[*B, S]``; ``("observation", "environment_state")`` where the policy wants it;
    the instruction, text or int64 ids ``[*B]``, unless the policy reads no text. A
    policy that looks back reads the same entries of ``observation_history``
    ``[*B, T, ...]``. TD-MPC also reads ``is_init`` and ``policy_plan``; a policy with
    an ``rtc_config`` ``guide_chunk`` (robot space) and ``guide_weight``, if there.

    **Writes** ``action_chunk`` float ``[*B, H, A]``, in robot space; TD-MPC also
    ``("next", "policy_plan")``.

    Args:
        policy: one of LeRobot's; or an object with ``predict_action_chunk(batch)``, or
            a callable on a batch.

    Keyword Args:
        preprocessor: robot space to model space; made with the policy by LeRobot's
            ``make_pre_post_processors``.
        postprocessor: model space to robot space; likewise.
        action_dim: ``A``; read from a LeRobot policy.
        chunk_size: ``H``; read from a LeRobot policy.
        predict_fn: ``(policy, batch) -> chunk [B, H, A]``, for another interface. The
            batch has ``observation.state``, images in 0..1 and ``task``, a list of
            texts, and passes no processors.
        rename_map: cameras of the robot to cameras of the policy; None = hidden from
            the policy.
        empty_cameras: the policy's cameras that the robot does not have.
        camera_name: for other objects, what one image at ``image_key`` is called.
        use_state: for other objects, False = the policy reads no state.
        dtype: to compute in, by autocast; see :meth:`from_pretrained`.
        instructions: table that gives instruction ids their texts.
        boundary: contract, or translator with its contract, that every chunk must
            satisfy before it leaves.
        chunk_key: where the chunk is written.
        image_key: image, or sub-tensordict of cameras; None = the policy does not look.
        state_key: proprioception.
        instruction_key: text, or ids.

    Raises:
        TypeError: the policy can neither predict a chunk nor be called.
        ValueError: sizes are missing, or not the policy's.
        SchemaError: a LeRobot policy without processors or statistics, of a type that
            was not exercised, or with temporal ensembling; it returned anything but a
            float ``[B, H, A]``; an input has another size, range or shape; cameras do
            not match.
        MissingKeyError: an input is missing.
        UnknownInstructionError: an id is not in ``instructions``.
        ActionBoundaryError: the chunk breaks the contract.

    Examples:
        >>> import torch
        >>> from tensordict import NonTensorStack, TensorDict
        >>> class DummyPolicy:
        ...     def predict_action_chunk(self, batch):
        ...         b = batch["observation.state"].shape[0]
        ...         return torch.zeros(b, 4, 7)
        >>> policy = LeRobotPolicyWrapper(DummyPolicy(), action_dim=7, chunk_size=4)
        >>> td = TensorDict(
        ...     {
        ...         "observation": {
        ...             "image": torch.zeros(2, 3, 16, 16),
        ...             "state": torch.zeros(2, 5),
        ...         },
        ...         "language_instruction": NonTensorStack("pick", "place"),
        ...     },
        ...     batch_size=[2],
        ... )
        >>> policy(td)["action_chunk"].shape
        torch.Size([2, 4, 7])
    """

    def __init__(
        self,
        policy: Any,
        *,
        preprocessor: Processor | None = None,
        postprocessor: Processor | None = None,
        action_dim: int | None = None,
        chunk_size: int | None = None,
        predict_fn: PredictFunction | None = None,
        rename_map: Mapping[str, str | None] | None = None,
        empty_cameras: Sequence[str] = (),
        camera_name: str = "image",
        use_state: bool = True,
        dtype: torch.dtype | None = None,
        instructions: InstructionTable | None = None,
        boundary: Boundary | None = None,
        chunk_key: NestedKey = ACTION_CHUNK_KEY,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey = STATE_KEY,
        instruction_key: NestedKey = INSTRUCTION_KEY,
    ) -> None:
        config = None if predict_fn is not None else find_config(policy)
        inputs, reads_text = None, True
        if config is not None:
            kind = kind_of(config.type)
            reads_text = kind.reads_text
            resizes = kind.resizes_images(config)
            inputs = PolicyInputs.from_config(config, resizes, tuple(empty_cameras))
            action_dim = read_size(
                "action_dim", action_dim, config.action_feature.shape[0]
            )
            chunk_size = read_size("chunk_size", chunk_size, kind.chunk_size(config))
            image_key = in_history(image_key, inputs) if inputs.images else None
            use_state = "observation.state" in inputs.states
            state_key = in_history(state_key, inputs)
        elif action_dim is None or chunk_size is None:
            raise ValueError(
                "LeRobotPolicyWrapper: expected action_dim and chunk_size for "
                f"{type(policy).__name__}, got action_dim={action_dim}, chunk_size="
                f"{chunk_size}. Only LeRobot's own policies say what they return."
            )
        super().__init__(
            action_dim=action_dim,
            chunk_size=chunk_size,
            chunk_key=chunk_key,
            keys=ObservationKeys(
                image_key, state_key if use_state else None, instruction_key
            ),
        )
        self.policy = policy
        self.boundary = boundary
        self.config = config
        self.environment_state_key: NestedKey | None = None
        if inputs is not None and "observation.environment_state" in inputs.states:
            self.environment_state_key = in_history(ENVIRONMENT_STATE_KEY, inputs)
            self.in_keys.append(self.environment_state_key)
        if not reads_text:
            self.in_keys.remove(self.keys.instruction)
        self._reader = InputReader(
            self.keys.image,
            self.keys.state,
            self.environment_state_key,
            self.keys.instruction,
            instructions,
            what_to_do(policy, inputs),
        )
        self._asked: ObjectPolicy | PretrainedPolicy
        if inputs is None:
            self._asked = ObjectPolicy(
                policy, predict_fn, reader=self._reader, camera_name=camera_name
            )
            return
        self._asked = PretrainedPolicy(
            policy,
            preprocessor,
            postprocessor,
            reader=self._reader,
            inputs=inputs,
            rename_map=rename_map or {},
            dtype=dtype,
        )
        self.optional_in_keys = self._asked.optional_in_keys
        if self._asked.plan_shape is not None:
            self.in_keys += [IS_INIT_KEY, PLAN_KEY]
            self.out_keys = [*self.out_keys, ("next", PLAN_KEY)]

    @classmethod
    def from_pretrained(
        cls,
        source: Path | str,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        overrides: Mapping[str, Any] | None = None,
        processor_overrides: Mapping[str, Mapping[str, Any]] | None = None,
        statistics: Mapping[str, Mapping[str, Any]] | None = None,
        cache_folder: Path | str | None = None,
        **options: Any,
    ) -> LeRobotPolicyWrapper:
        """Load a checkpoint of LeRobot's, policy and processors, and wrap it.

        Args:
            source: a folder that LeRobot saved, or a repo id of the Hugging Face Hub.
            revision: of the repo.
            device: where the policy runs; None = where it was trained, or the CPU.
            dtype: to compute in, by autocast as LeRobot's ``use_amp`` does; the weights
                and the chunk stay float32. None = as the weights are.
            overrides: fields of the configuration, e.g. ``{"n_action_steps": 8}``.
            processor_overrides: arguments of the preprocessor's steps, by step, e.g.
                ``{"device_processor": {"device": "cpu"}}``.
            statistics: replace the checkpoint's, by LeRobot's names, in both pipelines.
            cache_folder: of the Hub's files; None = the Hub's own.
            options: of :class:`LeRobotPolicyWrapper`, such as ``rename_map``.

        Raises:
            MissingExtraError: ``lerobot`` is not installed.
            FileNotFoundError: there is no such folder or repo.
            SchemaError: the checkpoint lacks files, statistics or weights, or names
                files that are gone.
        """
        policy, preprocessor, postprocessor = read_checkpoint(
            source,
            revision=revision,
            device=device,
            overrides=overrides,
            processor_overrides=processor_overrides,
            statistics=statistics,
            cache_folder=cache_folder,
        )
        return cls(
            policy,
            preprocessor=preprocessor,
            postprocessor=postprocessor,
            dtype=dtype,
            **options,
        )

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str] | None = None, **options: Any
    ) -> LeRobotPolicyWrapper:
        """Load the checkpoint that the process's ``LEROBOT_*`` variables name.

        See :class:`LeRobotSettings` for the variables.

        Args:
            environment: variables by name; None = those of the process.
            options: of :meth:`from_pretrained`.

        Raises:
            ValueError: they name no checkpoint, or contradict each other or the
                checkpoint's type.
        """
        settings = LeRobotSettings.from_environment(environment)
        if settings.path is None:
            raise ValueError(
                "LeRobotPolicyWrapper.from_environment: expected a folder or repo id "
                "in LEROBOT_POLICY_PATH, got none. Set it."
            )
        policy = cls.from_pretrained(
            settings.path,
            device=settings.device,
            cache_folder=settings.cache_folder,
            **options,
        )
        contract = getattr(policy.boundary, "contract", policy.boundary)
        settings.check(
            policy_type=policy.config.type,
            embodiment_tag=None if contract is None else contract.embodiment_tag,
        )
        return policy

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write policy and processors to a folder that LeRobot itself loads.

        Raises:
            SchemaError: it wraps no policy of LeRobot's, or a baseless adapter.
        """
        own = self._own("save_pretrained")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_policy(self.policy, self.config, folder)
        own.preprocessor.save_pretrained(folder)
        own.postprocessor.save_pretrained(folder)
        return folder

    @property
    def n_action_steps(self) -> int:
        """How many actions of a chunk LeRobot executes before it asks again."""
        if self.config is None:
            return self.chunk_size
        return self._asked.kind.n_action_steps(self.config)

    @property
    def target_steps(self) -> range:
        """The steps of its training targets, from the current frame.

        ``ActionChunkTransform(len(steps), storage=..., first_step=steps[0])`` makes
        them. Diffusion's begin in the past, with its first observation.
        """
        if self.config is None:
            return range(self.chunk_size)
        steps = self.config.action_delta_indices
        return range(steps[0], steps[0] + len(steps))

    @property
    def masks_padding(self) -> bool:
        """True = LeRobot's loss of this policy leaves padded actions out."""
        return self.config is not None and self._asked.kind.masks_padding(self.config)

    @property
    def history_size(self) -> int:
        """How many observations the policy reads, the current one included."""
        return 1 if self.config is None else self._asked.inputs.history_size

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self._reader.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self._reader.instructions = table

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """What the checkpoint says about its robot: sizes and cameras."""
        if self.config is None:
            name = type(self.policy).__name__
            return RobotDatasetMetadata(name, action_dim=self.action_dim)
        return self._asked.metadata

    def make_environment_transform(self) -> Compose:
        """Return what an environment has to carry for this policy.

        ``TransformedEnv(env, policy.make_environment_transform())`` gives a policy
        that looks back its history, and TD-MPC its last plan; for others it is empty.
        """
        transforms = [] if self.config is None else self._asked.carried()
        return Compose(*transforms)

    def make_training_batch(self, tensordict: TensorDictBase) -> dict[str, Any]:
        """Return the preprocessed batch that LeRobot's own training step would see.

        **Reads** what the policy reads, ``action_chunk`` float ``[*B, H, A]`` in robot
        space and ``action_is_pad`` bool ``[*B, H]``.

        Raises:
            SchemaError: it is no policy of LeRobot's; the targets have another shape.
        """
        return self._own("make_training_batch").make_training_batch(
            tensordict, self.chunk_key
        )

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the chunk, and the plan behind it where the policy makes one."""
        chunk, plan = self._predict(tensordict)
        tensordict.set(self.chunk_key, chunk)
        if plan is not None:
            tensordict.set(("next", PLAN_KEY), plan)
        return tensordict

    def predict_chunk(self, tensordict: TensorDictBase) -> Tensor:
        """Return the policy's chunk for a batch of any leading dimensions."""
        return self._predict(tensordict)[0]

    def _predict(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        batch, (chunk, plan) = tensordict.batch_size, self._asked.ask(tensordict)
        name, sizes = type(self.policy).__name__, (self.chunk_size, self.action_dim)
        chunk = check_chunk(chunk, (batch.numel(), *sizes), name).view(*batch, *sizes)
        chunk = chunk.to(self._reader.device_of(tensordict) or chunk.device)
        chunk = pass_boundary(chunk, self.boundary)
        if plan is not None:
            plan = plan.reshape(*batch, *plan.shape[1:]).to(chunk.device)
        return chunk, plan

    def _own(self, method: str) -> PretrainedPolicy:
        if self.config is None:
            raise SchemaError(
                f"LeRobotPolicyWrapper.{method}: expected a policy of LeRobot's with "
                f"its processors, got {type(self.policy).__name__}. Wrap one without "
                "predict_fn."
            )
        return self._asked

    def _apply(self, fn: Any, recurse: bool = True) -> LeRobotPolicyWrapper:
        super()._apply(fn, recurse)
        if self.config is not None:
            self.config.device = str(self._asked.device)
        return self
