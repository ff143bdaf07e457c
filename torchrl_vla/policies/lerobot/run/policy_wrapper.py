"""LeRobot policies, and other policies on LeRobot's batches, as VLA policies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.envs import Compose

from torchrl_vla.policies.denoising.flow_noise import FlowSDENoise
from torchrl_vla.policies.lerobot.lerobot_types import Batch, Config, PredictFunction
from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import (
    read_checkpoint,
    write_checkpoint,
)
from torchrl_vla.policies.lerobot.load.lerobot_settings import LeRobotSettings
from torchrl_vla.policies.lerobot.load.pipeline import LeRobotPipeline
from torchrl_vla.policies.lerobot.load.robot_fit import RobotFit
from torchrl_vla.policies.lerobot.run.callable_policy import CallablePolicy
from torchrl_vla.policies.lerobot.run.policy_adapter import PolicyAdapter
from torchrl_vla.policies.lerobot.run.pretrained_policy import (
    PLAN_KEY,
    PretrainedPolicy,
    find_config,
)
from torchrl_vla.policies.lerobot.run.training_batch import make_training_batch
from torchrl_vla.policies.lerobot.run.wrapper_arguments import (
    check_callable_arguments,
    check_chunk,
    check_loading_arguments,
    check_predict_fn,
    check_pretrained_arguments,
    takes_torchrls_arguments,
)
from torchrl_vla.policies.vla_policy import ContinuousVLAWrapper, VLAWrapperBase
from torchrl_vla.schema import (
    IMAGE_KEY,
    INSTRUCTION_KEY,
    ROBOT_SPACE,
    STATE_KEY,
    InstructionTable,
    ObservationKeys,
)


@takes_torchrls_arguments
class LeRobotPolicyWrapper(ContinuousVLAWrapper):
    """Run a LeRobot policy with its own processors, in robot space.

    A policy of LeRobot's comes with the pipelines that normalize, tokenize and
    denormalize for it; sizes, cameras and history are read from its configuration.
    Under ``MultiStepActorWrapper(policy, replan_interval=policy.n_action_steps)`` the
    actions are those of LeRobot's own loop, bit for bit. Any other object that maps
    LeRobot's batch to a chunk is called as it is; its sizes are arguments.

    **Reads** image(s) uint8, or float in 0..1, ``[*B, C, h, w]``; state float
    ``[*B, S]``; ``("observation", "environment_state")`` where the policy reads it;
    the instruction, text or int64 ids ``[*B]``, unless the policy reads no text. A
    policy with a history reads the same entries of ``observation_history``
    ``[*B, T, ...]``. TD-MPC also reads ``is_init`` and ``policy_plan``; a policy with
    an ``rtc_config`` ``guide_chunk`` (robot space) and ``guide_weight``, if there.
    SmolVLA, pi0, pi0.5 and Diffusion Policy also ``noise_seed`` int64 ``[*B]``, if
    there: their chunk is then a function of it, whatever runs beside it.

    **Writes** ``action_chunk`` float ``[*B, H, A]``; TD-MPC also
    ``("next", "policy_plan")``.

    Note:
        ``select_action`` is never called. It serves actions from queues that all
        environments would share; here observations, history and plans come in the
        tensordict, so streams can be interleaved and reset one by one.

        Multi-task DiT, VQ-BeT, TD-MPC and X-VLA take no noise: they draw from PyTorch's
        global generator, so that their results change with the number of environments.

    Args:
        policy: one of LeRobot's; or an object with ``predict_action_chunk(batch)``, or
            a callable on a batch.

    Attributes:
        config: LeRobot's configuration; None = the policy is none of LeRobot's.
        n_action_steps: actions of a chunk that LeRobot executes per call.
        target_steps: steps of the training targets, from the current frame, made by
            ``ActionChunkTransform(len(steps), storage=..., first_step=steps[0])``.
        masks_padding: True = LeRobot's loss leaves padded actions out.
        history_size: observations that it reads, the current one included.
        metadata: sizes and cameras of the robot that the checkpoint declares.
        noise_source: of its random numbers: ``"noise_seed"``, ``"torch"`` (the global
            generator) or ``"none"``; None = unknown.
        ensemble_coefficient: ``temporal_ensemble_coeff`` of an ACT of
            :func:`load_lerobot_policy`, whose chunks an executor averages.

    Keyword Args:
        action_dim: ``A``; read from a LeRobot policy.
        chunk_size: ``H``; read from a LeRobot policy without ``predict_fn``.
        predict_fn: ``(policy, batch) -> chunk [B, H, A]``, for another interface. The
            batch has ``observation.state``, images in 0..1 and ``task``, a list of
            texts. For a policy of LeRobot's or of a plugin's, of any type, it is what
            the preprocessor made of them, ``[B, T, ...]`` where the policy has a
            history, and the postprocessor takes the chunk.
        camera_name: for other objects, name of one image at ``image_key``.
        use_state: for other objects, False = the policy reads no state.
        image_key: image, or sub-tensordict of cameras; None = not read.
        state_key: proprioception.
        instruction_key: text, or ids; None = not read.
        instructions: table that gives instruction ids their texts.
        pipeline: of a LeRobot policy; :meth:`from_pretrained` loads it.

    Raises:
        TypeError: the policy can neither predict a chunk nor be called.
        ValueError: sizes are missing, or not the policy's; an argument has no effect.
        SchemaError: a LeRobot policy without pipeline or with another policy's, of an
            unsupported type, with impossible horizons or with temporal ensembling; it
            returned anything but finite ``[B, H, A]``; an input has another size, range
            or shape, or is not finite; cameras do not match.
        MetadataError: statistics of the pipeline cannot be true.
        MissingKeyError: an input is missing.
        UnknownInstructionError: an id is not in ``instructions``.

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

    ensemble_coefficient: float | None = None
    stochastic_options = ("flow_noise",)

    def __init__(
        self,
        policy: Any,
        *,
        action_dim: int | None = None,
        chunk_size: int | None = None,
        predict_fn: PredictFunction | None = None,
        camera_name: str = "image",
        use_state: bool = True,
        image_key: NestedKey | None = IMAGE_KEY,
        state_key: NestedKey | None = STATE_KEY,
        instruction_key: NestedKey | None = INSTRUCTION_KEY,
        instructions: InstructionTable | None = None,
        pipeline: LeRobotPipeline | None = None,
    ) -> None:
        keys = ObservationKeys(image_key, state_key, instruction_key)
        sizes = (chunk_size, action_dim)
        check_predict_fn(predict_fn)
        adapter: PolicyAdapter
        if find_config(policy) is not None:
            adapter = PretrainedPolicy(
                policy, pipeline, keys, instructions, predict_fn, chunk_size
            )
            check_pretrained_arguments(adapter, sizes, camera_name, use_state)
        else:
            check_callable_arguments(policy, pipeline, keys, camera_name, use_state)
            keys = keys if use_state else replace(keys, state=None)
            adapter = CallablePolicy(
                policy, predict_fn, sizes, keys, camera_name, instructions
            )
        keys = adapter.reader.keys
        super().__init__(
            action_dim=adapter.action_dim,
            chunk_size=adapter.chunk_size,
            keys=keys,
        )
        self.keys = keys
        self.policy = policy
        self.adapter = adapter
        self._describe(adapter)

    def _describe(self, adapter: PolicyAdapter) -> None:
        self.in_keys = adapter.in_keys
        self.optional_in_keys = adapter.optional_in_keys
        self.config: Config | None = adapter.config
        self.pipeline = adapter.pipeline
        self.n_action_steps = adapter.n_action_steps
        self.target_steps = adapter.target_steps
        self.masks_padding = adapter.masks_padding
        self.history_size = adapter.history_size
        self.metadata = adapter.metadata
        self.noise_source = adapter.noise_source
        self.cloning_loss = "chunk"
        if adapter.config is not None:
            self.policy_space = ROBOT_SPACE
            self.cloning_loss = "lerobot"
            self.folder_format = "lerobot"
            own = adapter.as_pretrained(type(self).__name__)
            self.likelihood_advice = own.kind.likelihood_advice
            names = dict(self.named_parameters())
            self.without_gradient = own.kind.without_gradient(names)
        if adapter.plan_shape is not None:
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
        fit: RobotFit | None = None,
        **options: Any,
    ) -> LeRobotPolicyWrapper:
        """Load a checkpoint of LeRobot's, policy and processors, and wrap it.

        Args:
            source: a folder that LeRobot saved, or a repo id of the Hugging Face Hub.
            revision: of the repo.
            device: where the policy runs; None = where it was trained, or the CPU.
            dtype: to compute in; see :class:`LeRobotPipeline`.
            overrides: fields of the configuration, e.g. ``{"n_action_steps": 8}``.
            processor_overrides: arguments of the preprocessor's steps, by step, e.g.
                ``{"device_processor": {"device": "cpu"}}``.
            statistics: replace the checkpoint's, by LeRobot's names, in both pipelines.
            cache_folder: of the Hub's files; None = the Hub's own.
            fit: robot whose sizes and statistics policy and processors take.
            options: ``rename_map`` and ``empty_cameras`` of :class:`LeRobotPipeline`;
                ``instructions``, ``predict_fn``, sizes and keys of
                :class:`LeRobotPolicyWrapper`.

        Raises:
            MissingExtraError: ``lerobot`` is not installed.
            FileNotFoundError: there is no such folder or repo.
            ValueError: an option has no effect on a checkpoint.
            SchemaError: files, statistics or weights are missing or damaged; the
                processors are another policy's; the configuration cannot act.
            MetadataError: statistics cannot be true.
        """
        check_loading_arguments(options)
        policy, pipeline = read_checkpoint(
            source,
            revision=revision,
            device=device,
            overrides=overrides,
            processor_overrides=processor_overrides,
            statistics=statistics,
            cache_folder=cache_folder,
            fit=fit,
            any_type=options.get("predict_fn") is not None,
        )
        pipeline = replace(
            pipeline,
            dtype=dtype,
            rename_map=options.pop("rename_map", None) or {},
            empty_cameras=options.pop("empty_cameras", None) or (),
        )
        return cls(policy, pipeline=pipeline, **options)

    @classmethod
    def from_environment(
        cls,
        environment: Mapping[str, str] | None = None,
        *,
        embodiment_tag: str | None = None,
        **options: Any,
    ) -> LeRobotPolicyWrapper:
        """Load the checkpoint that the process's ``LEROBOT_*`` variables name.

        See :class:`LeRobotSettings` for the variables.

        Args:
            environment: variables by name; None = those of the process.
            embodiment_tag: of the robot's contract, compared with the variable.
            options: of :meth:`from_pretrained`.

        Raises:
            ValueError: they name no checkpoint, or contradict each other, the contract
                or the checkpoint's type.
        """
        settings = LeRobotSettings.from_environment(environment)
        policy = cls.from_pretrained(
            settings.checked_path,
            device=settings.device,
            cache_folder=settings.cache_folder,
            **options,
        )
        config = policy.adapter.as_pretrained(cls.__name__).config
        settings.check(policy_type=config.type, embodiment_tag=embodiment_tag)
        return policy

    @classmethod
    def from_folder(cls, folder: Path | str) -> LeRobotPolicyWrapper:
        """Load a folder that :meth:`to_folder` or LeRobot wrote."""
        return cls.from_pretrained(folder)

    def to_folder(self, folder: Path | str) -> None:
        """Write policy and processors to a folder that LeRobot itself loads.

        A ``predict_fn`` is not written: pass it again to :meth:`from_pretrained`.

        Raises:
            SchemaError: it wraps no policy of LeRobot's, or a baseless adapter.
        """
        own = self.adapter.as_pretrained("LeRobotPolicyWrapper.to_folder")
        coefficient = self.ensemble_coefficient
        write_checkpoint(folder, self.policy, own.config, own.pipeline, coefficient)

    @property
    def wrapper(self) -> LeRobotPolicyWrapper:
        """Itself, as ``LeRobotFlowPolicy.wrapper`` is the wrapper inside it."""
        return self

    @property
    def instructions(self) -> InstructionTable | None:
        """The table that gives instruction ids their texts."""
        return self.adapter.reader.instructions

    @instructions.setter
    def instructions(self, table: InstructionTable | None) -> None:
        self.adapter.reader.instructions = table

    def make_environment_transform(self) -> Compose:
        """Return what the policy needs in its environment from step to step.

        ``TransformedEnv(env, policy.make_environment_transform())`` gives a policy with
        a history its observations, and TD-MPC its last plan; for others it is empty.
        """
        return Compose(*self.adapter.environment_transforms())

    def to_stochastic(
        self, *, initial_std: float = 0.2, flow_noise: float = 0.5
    ) -> VLAWrapperBase | None:
        """Return SmolVLA, pi0 or pi0.5 with log-probabilities; None for others."""
        # The class is built from this one.
        from torchrl_vla.policies.lerobot.run.flow_policy import LeRobotFlowPolicy

        if self.config is None:
            return None
        pretrained = self.adapter.as_pretrained("LeRobotPolicyWrapper.to_stochastic")
        if pretrained.predict_fn is not None or pretrained.kind.flow_steps is None:
            return None
        return LeRobotFlowPolicy(self, noise=FlowSDENoise(flow_noise))

    def make_training_batch(self, tensordict: TensorDictBase) -> Batch:
        """Return the preprocessed batch of LeRobot's own training step.

        **Reads** what the policy reads, ``action_chunk`` float ``[*B, H, A]`` in robot
        space and ``action_is_pad`` bool ``[*B, H]``.

        Raises:
            SchemaError: it is no policy of LeRobot's; the targets have another shape.
        """
        own = self.adapter.as_pretrained("LeRobotPolicyWrapper.make_training_batch")
        return make_training_batch(own, tensordict, self.chunk_key)

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
        batch, sizes = tensordict.batch_size, (self.chunk_size, self.action_dim)
        returned, plan = self.adapter.predict(tensordict)
        chunk = check_chunk(returned, (batch.numel(), *sizes), self.adapter.name)
        chunk = chunk.view(*batch, *sizes)
        chunk = chunk.to(self.adapter.reader.device_of(tensordict) or chunk.device)
        if plan is not None:
            plan = plan.reshape(*batch, *plan.shape[1:]).to(chunk.device)
        return chunk, plan

    def _apply(self, fn: Any, recurse: bool = True) -> LeRobotPolicyWrapper:
        super()._apply(fn, recurse)
        if self.config is not None:
            device = self.adapter.as_pretrained("LeRobotPolicyWrapper.to").device
            self.config.device = str(device)
        return self
