"""A policy that speaks LeRobot's batch dictionaries, as a policy of ours."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import Compose, TensorDictPrimer, Transform

from torchrl_vla.policies.action_boundary import EmbodimentActionTranslator
from torchrl_vla.policies.base import ContinuousVLAWrapper
from torchrl_vla.policies.embodiment_contract import EmbodimentContract
from torchrl_vla.policies.lerobot.checkpoint import (
    Processor,
    check_statistics,
    read_checkpoint,
)
from torchrl_vla.policies.lerobot.inputs import (
    PolicyInputs,
    cameras_of,
    match_cameras,
    to_policy_image,
    to_policy_state,
)
from torchrl_vla.policies.lerobot.kinds import PolicyKind, kind_of
from torchrl_vla.policies.lerobot_settings import LeRobotSettings
from torchrl_vla.schema import (
    ACTION_CHUNK_KEY,
    ACTION_IS_PAD_KEY,
    ENVIRONMENT_STATE_KEY,
    HISTORY_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    IS_INIT_KEY,
    OBSERVATION_KEY,
    STATE_KEY,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    UnknownInstructionError,
    instruction_texts,
    is_text,
)
from torchrl_vla.transforms import ObservationHistory

#: Where TD-MPC's last plan travels from decision to decision, ``[*B, horizon, A]``.
PLAN_KEY: NestedKey = "policy_plan"

Boundary = EmbodimentContract | EmbodimentActionTranslator
PredictFunction = Callable[[Any, dict[str, Any]], Tensor]


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

    Any other object that maps such a batch to a chunk is wrapped by giving its sizes;
    it is called as it is.

    **Reads** image(s) uint8, or float in 0..1, ``[*B, C, h, w]``; state float
    ``[*B, S]``; ``("observation", "environment_state")`` where the policy wants it;
    the instruction, text or int64 ids ``[*B]``, unless the policy reads no text. A
    policy that looks back reads the same entries of ``observation_history``
    ``[*B, T, ...]``. TD-MPC also reads ``is_init`` and ``policy_plan``.

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
        ValueError: sizes are missing, or are not those of the policy.
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
        config = None if predict_fn is not None else _lerobot_config(policy)
        kind, inputs = None, None
        if config is not None:
            kind = kind_of(config.type)
            _check_policy(policy, config, preprocessor, postprocessor)
            resizes = kind.resizes_images(config)
            inputs = PolicyInputs.from_config(config, resizes, tuple(empty_cameras))
            action_dim = _agree(
                "action_dim", action_dim, config.action_feature.shape[0]
            )
            chunk_size = _agree("chunk_size", chunk_size, kind.chunk_size(config))
            image_key = _in_history(image_key, inputs) if inputs.images else None
            has_state = "observation.state" in inputs.states
            state_key = _in_history(state_key, inputs) if has_state else None
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
            image_key=image_key,
            state_key=state_key if use_state else None,
            instruction_key=instruction_key,
        )
        self.policy = policy
        self.preprocessor = preprocessor
        self.postprocessor = postprocessor
        self.predict_fn = predict_fn
        self.rename_map = dict(rename_map or {})
        self.camera_name = camera_name
        self.dtype = dtype
        self.instructions = instructions
        self.boundary = boundary
        self.config = config
        self.kind: PolicyKind | None = kind
        self.inputs: PolicyInputs | None = inputs
        self.environment_state_key: NestedKey | None = None
        if config is None:
            self.predict_fn = predict_fn or _default_predict_fn(policy)
            return
        self._call = kind.call(config)
        if "observation.environment_state" in inputs.states:
            self.environment_state_key = _in_history(ENVIRONMENT_STATE_KEY, inputs)
            self.in_keys.append(self.environment_state_key)
        if not kind.reads_text:
            self.in_keys.remove(self.instruction_key)
        if self._call.carries_plan:
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
        cache_folder: Path | str | None = None,
        **options: Any,
    ) -> LeRobotPolicyWrapper:
        """Load a checkpoint of LeRobot's, policy and processors, and wrap it.

        Args:
            source: a folder that LeRobot saved, or a repo id of the Hugging Face Hub.
            revision: of the repo.
            device: where the policy runs; None = where it was trained, if that is
                there.
            dtype: to compute in, by autocast as LeRobot's ``use_amp`` does; the weights
                and the chunk stay float32. None = as the weights are.
            overrides: fields of the policy's configuration, e.g.
                ``{"n_action_steps": 8}``.
            processor_overrides: arguments of the preprocessor's steps, by step, e.g.
                ``{"normalizer_processor": {"stats": stats}}``.
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
        if settings.policy_type not in (None, policy.config.type):
            raise ValueError(
                "LeRobotPolicyWrapper.from_environment: expected a policy of "
                f"LEROBOT_POLICY_TYPE={settings.policy_type!r}, got "
                f"{policy.config.type!r} at {settings.path!r}."
            )
        tag, boundary = settings.embodiment_tag, policy.boundary
        contract = getattr(boundary, "contract", boundary)
        if tag is not None and contract is not None and tag != contract.embodiment_tag:
            raise ValueError(
                "LeRobotPolicyWrapper.from_environment: expected "
                f"LEROBOT_EMBODIMENT_TAG={tag!r}, got a boundary for "
                f"{contract.embodiment_tag!r}."
            )
        return policy

    def save_pretrained(self, folder: Path | str) -> Path:
        """Write policy and processors to a folder that LeRobot itself loads.

        Raises:
            SchemaError: it does not wrap a policy of LeRobot's.
        """
        if self.config is None:
            raise SchemaError(
                "LeRobotPolicyWrapper.save_pretrained: expected a policy of LeRobot's, "
                f"got {type(self.policy).__name__}."
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy.save_pretrained(folder)
        self.config.save_pretrained(folder)  # an adapter does not save it
        self.preprocessor.save_pretrained(folder)
        self.postprocessor.save_pretrained(folder)
        return folder

    @property
    def n_action_steps(self) -> int:
        """How many actions of a chunk LeRobot executes before it asks again."""
        if self.config is None:
            return self.chunk_size
        return self.kind.n_action_steps(self.config)

    @property
    def history_size(self) -> int:
        """How many observations the policy reads, the current one included."""
        return 1 if self.inputs is None else self.inputs.history_size

    @property
    def metadata(self) -> RobotDatasetMetadata:
        """What the checkpoint says about its robot: sizes and cameras."""
        inputs = self.inputs or PolicyInputs()
        names = (name.removeprefix("observation.images.") for name in inputs.images)
        name = type(self.policy).__name__ if self.config is None else self.config.type
        return RobotDatasetMetadata(
            f"lerobot {name}",
            action_dim=self.action_dim,
            state_dim=inputs.states.get("observation.state"),
            cameras=tuple(name for name in names if name != "observation.image"),
        )

    def make_environment_transform(self) -> Compose:
        """Return what an environment has to carry for this policy.

        ``TransformedEnv(env, policy.make_environment_transform())`` gives a policy
        that looks back its history, and TD-MPC its last plan; for others it is empty.
        """
        transforms: list[Transform] = []
        if self.history_size > 1:
            transforms.append(ObservationHistory(self.history_size))
        if self.config is not None and self._call.carries_plan:
            shape = (self._call.plan_size, self.action_dim)
            transforms.append(TensorDictPrimer({PLAN_KEY: Unbounded(shape)}))
        return Compose(*transforms)

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
        batch, plan = tensordict.batch_size, None
        if self.config is None:
            chunk = self.predict_fn(self.policy, self.make_batch(tensordict))
            chunk = self._check_chunk(chunk, batch)
        else:
            chunk, plan = self._ask(tensordict)
            chunk = self._check_chunk(chunk, batch)
            # At once: relative actions are anchored to what the preprocessor saw last.
            chunk = self.postprocessor(chunk.float())
            chunk = self._check_chunk(chunk, batch).to(self._device_of(tensordict))
        chunk = chunk.reshape(*batch, self.chunk_size, self.action_dim)
        if self.boundary is not None:
            check = self.boundary
            chunk = (check.check if isinstance(check, EmbodimentContract) else check)(
                chunk
            )
        if plan is not None:
            plan = plan.reshape(*batch, *plan.shape[1:])
        return chunk, plan

    def _ask(self, tensordict: TensorDictBase) -> tuple[Tensor, Tensor | None]:
        plan = self._read_plan(tensordict) if self._call.carries_plan else None
        frames = [
            self._to_policy(self.preprocessor(frame))
            for frame in self.make_frames(tensordict)
        ]
        for frame in frames:
            frame.pop("action", None)  # the pipelines add one that is None
        device = self._policy_device().type
        autocast = torch.autocast(device, self.dtype, enabled=self.dtype is not None)
        with _training_flags_kept(self.policy), autocast:
            return self._call(_unwrapped(self.policy), frames, plan)

    def _read_plan(self, tensordict: TensorDictBase) -> Tensor:
        is_init = self._read(tensordict, IS_INIT_KEY).reshape(-1)
        plan = tensordict.get(PLAN_KEY, None)
        if plan is None:
            if not is_init.all():
                raise MissingKeyError(
                    f"LeRobotPolicyWrapper: expected {PLAN_KEY!r}, the plan that the "
                    "policy's search begins with, in mid-episode, got only "
                    f"{sorted(map(str, tensordict.keys(True, True)))}. Append "
                    "policy.make_environment_transform() to the environment."
                )
            shape = (len(is_init), self._call.plan_size, self.action_dim)
            return torch.zeros(shape, device=self._policy_device())
        plan = plan.reshape(len(is_init), *plan.shape[-2:])
        plan = torch.where(is_init[:, None, None], 0.0, plan)
        return plan.to(self._policy_device())

    def make_frames(self, tensordict: TensorDictBase) -> list[dict[str, Any]]:
        """Return the observations that the policy reads as LeRobot batches.

        Args:
            tensordict: ``[*B]``, in robot space.

        Returns:
            One batch of ``N = numel(B)`` rows per observation step, the oldest first,
            before the preprocessor.
        """
        size, inputs = tensordict.batch_size, self.inputs
        steps = range(inputs.history_size)
        if inputs.history_size > 1:
            size = torch.Size([*size, inputs.history_size])
        stacked: dict[str, Tensor] = {}
        for name, key in (
            ("observation.state", self.state_key),
            ("observation.environment_state", self.environment_state_key),
        ):
            if key is not None:
                state = self._read(tensordict, key)
                width = inputs.states[name]
                stacked[name] = to_policy_state(state, name, width, size)
        if self.image_key is not None:
            given = cameras_of(self._read(tensordict, self.image_key))
            pairs = match_cameras(list(given), list(inputs.images), self.rename_map)
            for name, shape in inputs.images.items():
                image = given[pairs[name]]
                shape = None if inputs.resizes_images else shape
                stacked[name] = to_policy_image(image, pairs[name], shape, size)
        extra = {"task": self._texts(tensordict)} if self.kind.reads_text else {}
        if inputs.history_size == 1:
            return [{**stacked, **extra}]
        rows = tensordict.batch_size.numel()
        stacked = {
            name: value.view(rows, -1, *value.shape[1:])
            for name, value in stacked.items()
        }
        return [
            {**{name: value[:, t] for name, value in stacked.items()}, **extra}
            for t in steps
        ]

    def make_training_batch(self, tensordict: TensorDictBase) -> dict[str, Any]:
        """Return the preprocessed batch that LeRobot's training would see.

        **Reads** what the policy reads, ``action_chunk`` float ``[*B, H, A]`` in robot
        space and ``action_is_pad`` bool ``[*B, H]``.

        Args:
            tensordict: ``[*B]``, in robot space.
        """
        frames = self.make_frames(tensordict)
        batch = dict(frames[-1])
        if self.config.observation_delta_indices is not None:
            for name, value in batch.items():
                if isinstance(value, Tensor):
                    batch[name] = torch.stack([frame[name] for frame in frames], 1)
        size, target = tensordict.batch_size, len(self.config.action_delta_indices)
        chunk = self._read(tensordict, self.chunk_key)
        is_pad = self._read(tensordict, ACTION_IS_PAD_KEY)
        expected = (*size, target, self.action_dim)
        if chunk.shape != expected or is_pad.shape != expected[:-1]:
            first = self.config.action_delta_indices[0]
            raise SchemaError(
                f"LeRobotPolicyWrapper: expected targets [*B, H, A] = {list(expected)} "
                f"at {self.chunk_key!r} and a mask [*B, H], got {list(chunk.shape)} and "
                f"{list(is_pad.shape)}. Make them with ActionChunkTransform({target}, "
                f"storage=..., first_step={first})."
            )
        batch["action"] = chunk.reshape(-1, target, self.action_dim)
        batch["action_is_pad"] = is_pad.reshape(-1, target)
        return self._to_policy(self.preprocessor(batch))

    def make_batch(self, tensordict: TensorDictBase) -> dict[str, Any]:
        """Return the batch for an object that is not LeRobot's, dimensions flattened."""
        batch: dict[str, Any] = {}
        size = tensordict.batch_size
        if self.state_key is not None:
            state = self._read(tensordict, self.state_key)
            batch["observation.state"] = to_policy_state(
                state, "observation.state", None, size
            )
        if self.image_key is not None:
            for name, image in cameras_of(
                self._read(tensordict, self.image_key)
            ).items():
                if name == "observation.image":
                    name = f"observation.images.{self.camera_name}"
                batch[name] = to_policy_image(image, name, None, size)
        batch["task"] = self._texts(tensordict)
        return batch

    def _texts(self, tensordict: TensorDictBase) -> list[str]:
        value = self._read(tensordict, self.instruction_key)
        if not is_text(value):
            if self.instructions is None:
                raise UnknownInstructionError(
                    "LeRobotPolicyWrapper: expected a table for the instruction ids at "
                    f"{self.instruction_key!r}, got none. Pass instructions="
                    "env.instructions (or the dataset's)."
                )
            value = self.instructions.decode(value.flatten())
        texts = instruction_texts(value)
        if len(texts) != tensordict.batch_size.numel():
            raise SchemaError(
                "LeRobotPolicyWrapper: expected one instruction per row at "
                f"{self.instruction_key!r}, got {len(texts)} for a batch "
                f"{list(tensordict.batch_size)}."
            )
        return texts

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> Any:
        value = tensordict.get(key, None)
        if value is not None:
            return value
        hint = "Name another key"
        if self.config is None:
            hint += ", or build the wrapper with image_key=None or use_state=False."
        elif isinstance(key, tuple) and key[0] == HISTORY_KEY:
            hint = (
                f"The policy looks back on {self.history_size} observations: append "
                "policy.make_environment_transform() to the environment, or "
                f"ObservationHistory({self.history_size}, storage=...) to the buffer."
            )
        else:
            hint += f": {type(self.policy).__name__} was trained with this input."
        raise MissingKeyError(
            f"LeRobotPolicyWrapper: expected an input at {key!r}, got only "
            f"{sorted(map(str, tensordict.keys(True, True)))}. {hint}"
        )

    def _check_chunk(self, chunk: Any, batch: torch.Size) -> Tensor:
        expected = (batch.numel(), self.chunk_size, self.action_dim)
        if not isinstance(chunk, Tensor):
            got = type(chunk).__name__
        elif chunk.shape != expected or not chunk.is_floating_point():
            got = f"{chunk.dtype} {list(chunk.shape)}"
        else:
            return chunk
        raise SchemaError(
            "LeRobotPolicyWrapper: expected a float chunk [B, H, A] = "
            f"{list(expected)} from {type(self.policy).__name__}, got {got}. Pass "
            "predict_fn=lambda policy, batch: ... to call it another way, or build the "
            "wrapper with its chunk_size and action_dim."
        )

    def _to_policy(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Bring a preprocessed batch to where the weights are."""
        device = self._policy_device()
        return {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in batch.items()
        }

    def _policy_device(self) -> torch.device:
        return next(self.policy.parameters()).device

    def _device_of(self, tensordict: TensorDictBase) -> torch.device:
        for key in (self.state_key, self.environment_state_key, self.image_key):
            if key is not None:
                value = self._read(tensordict, key)
                while not isinstance(value, Tensor):
                    value = next(iter(value.values()))
                return value.device
        return self._policy_device()

    def _apply(self, fn: Any, recurse: bool = True) -> LeRobotPolicyWrapper:
        super()._apply(fn, recurse)
        if self.config is not None:
            self.config.device = str(self._policy_device())
        return self


def _lerobot_config(policy: Any) -> Any | None:
    """Return the configuration of a policy of LeRobot's, None for other objects."""
    module = sys.modules.get("lerobot.policies.pretrained")
    unwrapped = _unwrapped(policy)
    if module is None or not isinstance(unwrapped, module.PreTrainedPolicy):
        return None
    return unwrapped.config


def _unwrapped(policy: Any) -> Any:
    """Return the policy inside a peft adapter."""
    peft = sys.modules.get("peft")
    if peft is not None and isinstance(policy, peft.PeftModel):
        return policy.get_base_model()
    return policy


def _check_policy(
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
            "LeRobot averages overlapping chunks in select_action. Execute chunks with "
            "overrides={'temporal_ensemble_coeff': None, 'n_action_steps': "
            f"{config.chunk_size}}}."
        )


def _agree(name: str, given: int | None, read: int) -> int:
    if given is not None and given != read:
        raise ValueError(
            f"LeRobotPolicyWrapper: expected {name}={read}, as the policy's "
            f"configuration says, got {given}. Leave it out."
        )
    return read


def _in_history(key: NestedKey | None, inputs: PolicyInputs) -> NestedKey | None:
    """Return where the key's history lies, for a policy that looks back."""
    if key is None or inputs.history_size == 1:
        return key
    path = (key,) if isinstance(key, str) else key
    return (HISTORY_KEY, *path[1:]) if path[0] == OBSERVATION_KEY else key


@contextmanager
def _training_flags_kept(policy: nn.Module) -> Any:
    """Undo the switch to evaluation mode that LeRobot's predictions make."""
    flags = [(m, m.training) for m in policy.modules()] if policy.training else []
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _default_predict_fn(policy: Any) -> PredictFunction:
    if callable(getattr(policy, "predict_action_chunk", None)):
        return _predict_action_chunk
    if callable(policy):
        return _call
    raise TypeError(
        "LeRobotPolicyWrapper: expected a policy with predict_action_chunk(batch), or "
        f"a callable, got {type(policy).__name__}. Pass predict_fn=lambda policy, "
        "batch: ..., which returns the chunk [B, H, A]. (select_action serves single "
        "actions from a queue that all environments would share.)"
    )


def _predict_action_chunk(policy: Any, batch: dict[str, Any]) -> Tensor:
    return policy.predict_action_chunk(batch)


def _call(policy: Any, batch: dict[str, Any]) -> Tensor:
    return policy(batch)
