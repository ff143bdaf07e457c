"""Transform that adds the last observations of an episode."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from torch import Tensor
from torchrl.data import Binary, Composite
from torchrl.data.replay_buffers import Storage
from torchrl.envs import Transform

from torchrl_vla._internal.env_masks import env_mask, where_env
from torchrl_vla.schema import (
    EPISODE_KEY,
    FRAME_KEY,
    HISTORY_IS_PAD_KEY,
    HISTORY_KEY,
    OBSERVATION_KEY,
    MissingKeyError,
    SchemaError,
    check_images_are_fresh,
    check_positive_int,
)
from torchrl_vla.transforms.gather.storage_episodes import StorageEpisodes


class ObservationHistory(Transform):
    """Give every frame the last ``T`` observations of its episode, itself included.

    In an environment the history travels in the tensordict, so every environment of a
    batch has its own, a reset restarts the rows that it resets, and a policy that
    reads it remembers nothing. With the ``storage`` of a replay buffer it is gathered
    by episode and frame when a batch is sampled, and is the same. Before the episode's
    first frame that frame is repeated, as LeRobot's queues do. A rollout then stores
    each image ``T`` times; drop ``observation_history`` from what you keep and sample
    with a storage.

    **Reads** every entry of ``observation`` ``[*B, ...]``; with a storage also
    ``episode_index`` and ``frame_index`` int64 ``[*B]``. Any space.

    **Writes** ``observation_history``, the same entries ``[*B, T, ...]``, the oldest
    first and the current one last; ``history_is_pad`` bool ``[*B, T]``, True = before
    the episode's first frame.

    Args:
        n_steps: ``T``, LeRobot's ``n_obs_steps``.

    Keyword Args:
        storage: the storage of the buffer that this transform samples from.
        observation_key: the sub-tensordict of the current observation.
        history_key: that of the last ``T``.
        pad_key: the mask.
        episode_key: the episode of a frame.
        frame_key: the step of a frame within its episode.

    Raises:
        ValueError: ``n_steps < 1``.
        MissingKeyError: there is no observation, or no history to go on with; or data
            are transformed without a storage.
        SchemaError: an environment that draws on demand did not draw a frame.

    Examples:
        >>> from torchrl.envs import TransformedEnv
        >>> from torchrl_vla.envs import ToyVLAEnv
        >>> env = TransformedEnv(ToyVLAEnv(batch_size=[2]), ObservationHistory(3))
        >>> rollout = env.rollout(4)
        >>> rollout["observation_history", "state"].shape[:3]
        torch.Size([2, 4, 3])
        >>> rollout["history_is_pad"][0]
        tensor([[ True,  True, False],
                [ True, False, False],
                [False, False, False],
                [False, False, False]])
    """

    def __init__(
        self,
        n_steps: int,
        *,
        storage: Storage | None = None,
        observation_key: NestedKey = OBSERVATION_KEY,
        history_key: NestedKey = HISTORY_KEY,
        pad_key: NestedKey = HISTORY_IS_PAD_KEY,
        episode_key: NestedKey = EPISODE_KEY,
        frame_key: NestedKey = FRAME_KEY,
    ) -> None:
        check_positive_int("ObservationHistory", "n_steps", n_steps)
        super().__init__(in_keys=[observation_key], out_keys=[history_key, pad_key])
        self.n_steps = n_steps
        self.observation_key = unravel_key(observation_key)
        self.history_key = unravel_key(history_key)
        self.pad_key = unravel_key(pad_key)
        self.episode_key = unravel_key(episode_key)
        self.frame_key = unravel_key(frame_key)
        self._stored = None
        if storage is not None:
            self._stored = StorageEpisodes(
                storage,
                caller="ObservationHistory",
                episode_key=self.episode_key,
                frame_key=self.frame_key,
                done_key=None,
            )

    def begin(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the history of a first frame: that frame, ``T`` times."""
        return self._write(tensordict, *self._fresh(tensordict))

    def follow(
        self, tensordict: TensorDictBase, previous: TensorDictBase
    ) -> TensorDictBase:
        """Write the history of the frame that follows ``previous``.

        For loops without a TorchRL environment, such as a robot's.

        Args:
            tensordict: the current observation.
            previous: the tensordict of the step before, with its history.
        """
        history, is_pad = (
            self._read(previous, key) for key in (self.history_key, self.pad_key)
        )
        dim = tensordict.batch_dims
        now = self._now(tensordict)

        def push(old: Tensor, new: Tensor) -> Tensor:
            kept = old.narrow(dim, 1, self.n_steps - 1)
            return torch.cat([kept, new.unsqueeze(dim)], dim)

        is_pad = push(is_pad, torch.zeros_like(is_pad.select(dim, 0)))
        size = [*tensordict.batch_size, self.n_steps]
        history = history.apply(push, now, batch_size=size)
        return self._write(tensordict, history, is_pad)

    def _fresh(self, tensordict: TensorDictBase) -> tuple[TensorDictBase, Tensor]:
        now = self._now(tensordict)
        dim, size = tensordict.batch_dims, [*tensordict.batch_size, self.n_steps]

        def repeat(value: Tensor) -> Tensor:
            shape = [*value.shape[:dim], self.n_steps, *value.shape[dim:]]
            return value.unsqueeze(dim).expand(shape).clone()

        history = now.apply(repeat, batch_size=size)
        is_pad = torch.ones(size, dtype=torch.bool, device=tensordict.device)
        is_pad[..., -1] = False
        return history, is_pad

    def _write(
        self, tensordict: TensorDictBase, history: TensorDictBase, is_pad: Tensor
    ) -> TensorDictBase:
        tensordict.set(self.history_key, history)
        return tensordict.set(self.pad_key, is_pad)

    def _now(self, tensordict: TensorDictBase) -> TensorDictBase:
        now = self._read(tensordict, self.observation_key)
        # Later steps look back at this one, whether or not anyone looks at it now.
        check_images_are_fresh("ObservationHistory", tensordict)
        return now

    def _read(self, tensordict: TensorDictBase, key: NestedKey) -> TensorDictBase:
        value = tensordict.get(key, None)
        if value is None:
            raise MissingKeyError(
                f"ObservationHistory: expected {key!r} in the tensordict, got only "
                f"{sorted(map(str, tensordict.keys()))}. It travels from step to step: "
                "begin(first step), then follow(step, previous step)."
            )
        return value

    # In an environment.

    def _reset(
        self, tensordict: TensorDictBase | None, tensordict_reset: TensorDictBase
    ) -> TensorDictBase:
        # EnvBase keeps the rows that are not reset as they were.
        return self.begin(tensordict_reset)

    def _step(
        self, tensordict: TensorDictBase, next_tensordict: TensorDictBase
    ) -> TensorDictBase:
        self.follow(next_tensordict, tensordict)
        moved = tensordict.get("_step", None)
        if moved is None or moved.all():
            return next_tensordict
        choose = partial(where_env, env_mask(moved, tensordict.batch_size))
        for key in (self.history_key, self.pad_key):
            new, old = next_tensordict.get(key), tensordict.get(key)
            is_mask = isinstance(new, Tensor)
            kept = choose(new, old) if is_mask else new.apply(choose, old)
            next_tensordict.set(key, kept)
        return next_tensordict

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        """Add the history of every entry of the observation."""
        observation = observation_spec.get(self.observation_key, None)
        if observation is None:
            raise MissingKeyError(
                f"ObservationHistory: expected {self.observation_key!r} among the "
                f"environment's observations, got {sorted(observation_spec.keys())}."
            )
        size, dim = observation_spec.shape, len(observation_spec.shape)
        history = Composite(shape=torch.Size([*size, self.n_steps]))
        for key, spec in observation.items(True, True):
            shape = torch.Size([*size, self.n_steps, *spec.shape[dim:]])
            history[key] = spec.unsqueeze(dim).expand(shape).clone()
        observation_spec[self.history_key] = history
        observation_spec[self.pad_key] = Binary(
            shape=torch.Size([*size, self.n_steps]),
            dtype=torch.bool,
            device=observation_spec.device,
        )
        return observation_spec

    # On a buffer.

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the history into sampled data."""
        if self._stored is None:
            raise MissingKeyError(
                "ObservationHistory: expected storage=buffer.storage, which the frames "
                "before a sampled one are gathered from, got none."
            )
        episode = self._read(tensordict, self.episode_key)
        frame = self._read(tensordict, self.frame_key)
        snapshot, size = self._stored.current(), self.n_steps
        rows, is_pad = snapshot.index.window(episode, frame, 1 - size, size)
        stored = snapshot.frames.get(self.observation_key, None)
        if stored is None:
            raise SchemaError(
                f"ObservationHistory: expected {self.observation_key!r} in the storage,"
                f" got {sorted(map(str, snapshot.frames.keys()))}."
            )
        stored = stored.reshape(-1)
        history = TensorDict(
            {
                key: value.as_subclass(Tensor)[rows]
                for key, value in stored.items(True, True)
            },
            batch_size=rows.shape,
        ).to(episode.device)
        return self._write(tensordict.copy(), history, is_pad.to(episode.device))

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return next_tensordict

    def __repr__(self) -> str:
        source = "" if self._stored is None else f", from={type(self._stored.storage)}"
        return f"ObservationHistory(n_steps={self.n_steps}{source})"
