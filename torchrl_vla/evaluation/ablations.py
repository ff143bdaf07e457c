"""Control arms: the same policy with one of its inputs taken away.

A success rate says little until it is known what the policy used. A policy that
succeeds as often with the wrong instruction does not listen; one that succeeds
without images does not look.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from torchrl_vla._internal.option_names import AblationName as AblationName
from torchrl_vla.schema import (
    EPISODE_SEED_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
    MissingKeyError,
)

# Multiplier of a 64-bit linear congruential generator (Knuth, MMIX); its high bits
# are well mixed, so neighbouring seeds give unrelated draws.
_MIX = 6364136223846793005


class EditedObservation(TensorDictModuleBase):
    """Ask an actor about an observation that was edited first.

    The tensordict keeps the true observation, so that records and per-task tables
    speak of what happened and not of what the actor was told.

    **Reads** the actor's ``in_keys`` and ``reads``; **writes** its ``out_keys``.

    Args:
        actor: the policy, with its executor.
        edit: changes a shallow copy of the tensordict in place.
        reads: keys that ``edit`` needs beyond the actor's own.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> actor = TensorDictModule(
        ...     lambda state: state + 1, [("observation", "state")], ["action"]
        ... )
        >>> data = TensorDict({"observation": {"state": torch.ones(1, 2)}}, [1])
        >>> zero_state(actor)(data)["action"]
        tensor([[1., 1.]])
        >>> data["observation", "state"]
        tensor([[1., 1.]])
    """

    def __init__(
        self,
        actor: TensorDictModuleBase,
        edit: Callable[[TensorDictBase], None],
        reads: tuple = (),
    ) -> None:
        super().__init__()
        self.actor = actor
        self.edit = edit
        self.in_keys = list(dict.fromkeys([*actor.in_keys, *reads]))
        self.out_keys = list(actor.out_keys)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the actor's answer to the edited observation."""
        edited = tensordict.copy()
        self.edit(edited)
        answer = self.actor(edited)
        return tensordict.update(answer.select(*self.out_keys))


def shuffle_instructions(
    actor: TensorDictModuleBase,
    table: InstructionTable,
    *,
    instruction_key: str = INSTRUCTION_KEY,
) -> EditedObservation:
    """Tell the actor a random instruction of the table, one per episode.

    The draw is a function of the episode's seed, so it holds for the whole episode
    and repeats with it. It may by chance be the right one, as a shuffle's may.
    **Reads** ``episode_seed`` int64 ``[*B]``.

    Raises:
        MissingKeyError: the environment does not write ``episode_seed``.
    """
    ids = table.ids

    def edit(tensordict: TensorDictBase) -> None:
        seeds = tensordict.get(EPISODE_SEED_KEY, None)
        if seeds is None:
            raise MissingKeyError(
                f"shuffle_instructions: expected int64 seeds at {EPISODE_SEED_KEY!r}, "
                f"got keys {sorted(map(str, tensordict.keys()))}. Use an environment "
                "that writes the seed of its episode."
            )
        draw = (((seeds + 1) * _MIX) >> 33) % len(ids)
        tensordict.set(instruction_key, ids.to(seeds.device)[draw])

    return EditedObservation(actor, edit, (EPISODE_SEED_KEY, instruction_key))


def blank_images(actor: TensorDictModuleBase) -> EditedObservation:
    """Show the actor black images."""
    return _zeroed(actor, IMAGE_KEY)


def zero_state(actor: TensorDictModuleBase) -> EditedObservation:
    """Tell the actor that every number of its own state is zero."""
    return _zeroed(actor, STATE_KEY)


def make_ablation(
    name: AblationName | str, actor: TensorDictModuleBase, env: EnvBase
) -> EditedObservation:
    """Take one input away from a policy, by name, if the environment has it.

    Evaluated on the same seeds and given to :func:`compare`, it shows how much of the
    success rate hangs on that input.

    Args:
        name: ``"shuffled-instruction"``, ``"blank-images"`` or ``"zero-state"``.
        actor: the policy, with its executor.
        env: where it will be evaluated.

    Raises:
        ValueError: there is no such control, or it would change nothing here: a single
            instruction cannot be shuffled, and images that are not there not be blank.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, image_size=16)
        >>> control = make_ablation("zero-state", env.make_expert(), env)
    """
    if name not in get_args(AblationName):
        raise ValueError(
            f"make_ablation: expected one of {get_args(AblationName)}, got {name!r}."
        )
    if name == "shuffled-instruction":
        table = getattr(env, "instructions", None)
        if table is None or len(table) < 2:
            count = 0 if table is None else len(table)
            raise ValueError(
                "make_ablation: expected an environment with several instructions to "
                f"shuffle, got {count}. Evaluate on more tasks, or take another "
                "control."
            )
        return shuffle_instructions(actor, table)
    key, control = {
        "blank-images": (IMAGE_KEY, blank_images),
        "zero-state": (STATE_KEY, zero_state),
    }[name]
    if key not in env.observation_spec.keys(True):
        raise ValueError(
            f"make_ablation: expected {key!r} in the observations for {name!r}, got "
            f"{sorted(map(str, env.observation_spec.keys(True, True)))}. Take another "
            "control."
        )
    return control(actor)


def _zeroed(actor: TensorDictModuleBase, key: tuple[str, ...]) -> EditedObservation:
    def edit(tensordict: TensorDictBase) -> None:
        tensordict.set(key, torch.zeros_like(tensordict.get(key)))

    return EditedObservation(actor, edit)
