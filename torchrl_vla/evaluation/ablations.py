"""Input ablations: the same policy without one of its inputs.

A policy that succeeds as often with the wrong instruction does not use the
instruction; one that succeeds as often without images does not use the images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from torchrl_vla._internal.option_names import AblationName as AblationName
from torchrl_vla.rollout import hash_numbers, uniforms
from torchrl_vla.schema import (
    EPISODE_SEED_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    STATE_KEY,
    InstructionTable,
    MissingKeyError,
    Wordings,
)

#: Separate the instructions from other numbers made of an episode's seed.
_SHUFFLE, _REWORD = 2, 3


class EditedObservation(TensorDictModuleBase):
    """Call a policy with an edited observation, and record the true one.

    Records and per-instruction tables then hold what happened, not what the policy
    was given.

    **Reads** the policy's ``in_keys`` and ``reads``; **writes** its ``out_keys``.

    Args:
        policy: observation to ``action``; a chunk policy inside its executor.
        edit: changes a shallow copy of the tensordict in place.
        reads: keys that ``edit`` needs beyond the policy's own.

    Examples:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from tensordict.nn import TensorDictModule
        >>> policy = TensorDictModule(
        ...     lambda state: state + 1, [("observation", "state")], ["action"]
        ... )
        >>> data = TensorDict({"observation": {"state": torch.ones(1, 2)}}, [1])
        >>> zero_state(policy)(data)["action"]
        tensor([[1., 1.]])
        >>> data["observation", "state"]
        tensor([[1., 1.]])
    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        edit: Callable[[TensorDictBase], None],
        reads: tuple[NestedKey, ...] = (),
    ) -> None:
        super().__init__()
        self.policy = policy
        self.edit = edit
        self.in_keys = list(dict.fromkeys([*policy.in_keys, *reads]))
        self.out_keys = list(policy.out_keys)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write what the policy answers to the edited observation."""
        edited = tensordict.copy()
        self.edit(edited)
        answer = self.policy(edited)
        return tensordict.update(answer.select(*self.out_keys))


def shuffle_instructions(
    policy: TensorDictModuleBase, table: InstructionTable
) -> EditedObservation:
    """Give the policy a random instruction of the table, one per episode.

    The instruction is a function of the episode's seed, so it holds for the whole
    episode and repeats with it. It may by chance be the right one, as after any
    shuffle. **Reads** ``episode_seed`` int64 ``[*B]``.

    Args:
        policy: observation to ``action``; a chunk policy inside its executor.
        table: of the instructions that are drawn.

    Raises:
        MissingKeyError: the environment does not write ``episode_seed``.
    """
    ids = table.ids

    def edit(tensordict: TensorDictBase) -> None:
        numbers = _numbers("shuffle_instructions", tensordict, _SHUFFLE)
        drawn = (numbers * len(ids)).long()
        tensordict.set(INSTRUCTION_KEY, ids.to(drawn.device)[drawn])

    return EditedObservation(policy, edit, (EPISODE_SEED_KEY, INSTRUCTION_KEY))


def reword_instructions(
    policy: TensorDictModuleBase, wordings: Wordings
) -> EditedObservation:
    """Give the policy the same instruction in other words, one wording per episode.

    The wording is a function of the episode's seed, so two policies meet the same ones.
    The wordings are added to the policy's table of instructions. **Reads**
    ``episode_seed`` int64 ``[*B]`` and ``language_instruction`` int64 ids ``[*B]``.

    Args:
        policy: observation to ``action``; a chunk policy inside its executor.
        wordings: of every instruction that is met.

    Raises:
        MissingKeyError: the environment does not write ``episode_seed``.
        UnknownInstructionError: an instruction has no wordings.
    """
    for module in policy.modules():
        match module:
            case object(instructions=InstructionTable() as table):
                module.instructions = InstructionTable([*table, *wordings.table])

    def edit(tensordict: TensorDictBase) -> None:
        numbers = _numbers("reword_instructions", tensordict, _REWORD)
        drawn = wordings.draw(tensordict.get(INSTRUCTION_KEY), numbers)
        tensordict.set(INSTRUCTION_KEY, drawn)

    return EditedObservation(policy, edit, (EPISODE_SEED_KEY, INSTRUCTION_KEY))


def blank_images(policy: TensorDictModuleBase) -> EditedObservation:
    """Give the policy black images."""
    return _zeroed(policy, IMAGE_KEY)


def zero_state(policy: TensorDictModuleBase) -> EditedObservation:
    """Give the policy a state that is zero everywhere."""
    return _zeroed(policy, STATE_KEY)


def make_ablation(
    name: AblationName | str,
    policy: TensorDictModuleBase,
    env: EnvBase,
    wordings: Wordings | None = None,
) -> EditedObservation:
    """Take one input away from a policy, by name, if the environment has it.

    Evaluated on the same seeds and given to :func:`compare`, it shows how much of the
    success rate depends on that input.

    Args:
        name: ``"shuffled-instruction"``, ``"reworded-instruction"``,
            ``"blank-images"`` or ``"zero-state"``.
        policy: observation to ``action``; a chunk policy inside its executor.
        env: where it will be evaluated.
        wordings: of the environment's instructions, for ``"reworded-instruction"``.

    Raises:
        UnknownInstructionError: an instruction of the environment has no wordings.
        ValueError: there is no such ablation, or it would change nothing here: there
            is a single instruction, or there are no images.

    Examples:
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, image_size=16)
        >>> ablated = make_ablation("zero-state", env.make_expert(), env)
    """
    if name not in get_args(AblationName):
        raise ValueError(
            f"make_ablation: expected one of {get_args(AblationName)}, got {name!r}."
        )
    if (name == "reworded-instruction") != (wordings is not None):
        raise ValueError(
            "make_ablation: expected wordings with 'reworded-instruction' and with no "
            f"other, got {wordings} with {name!r}. Pass Wordings.from_json(path), in "
            "the command --wordings FILE."
        )
    if wordings is not None:
        wordings.check_covers("make_ablation", env.instructions)
        return reword_instructions(policy, wordings)
    if name == "shuffled-instruction":
        table = getattr(env, "instructions", None)
        if table is None or len(table) < 2:
            count = 0 if table is None else len(table)
            raise ValueError(
                "make_ablation: expected an environment with several instructions to "
                f"shuffle, got {count}. Evaluate on more tasks, or take another "
                "ablation."
            )
        return shuffle_instructions(policy, table)
    key = IMAGE_KEY if name == "blank-images" else STATE_KEY
    if key not in env.observation_spec.keys(True):
        raise ValueError(
            f"make_ablation: expected {key!r} in the observations for {name!r}, got "
            f"{sorted(map(str, env.observation_spec.keys(True, True)))}. Take another "
            "ablation."
        )
    return _zeroed(policy, key)


def _numbers(caller: str, tensordict: TensorDictBase, purpose: int) -> Tensor:
    """Return a uniform number per environment that holds for the episode."""
    seeds = tensordict.get(EPISODE_SEED_KEY, None)
    if seeds is None:
        raise MissingKeyError(
            f"{caller}: expected int64 seeds at {EPISODE_SEED_KEY!r}, got keys "
            f"{sorted(map(str, tensordict.keys()))}. Use an environment that writes "
            "the seed of its episode."
        )
    numbers = uniforms(hash_numbers(purpose, seeds.reshape(-1)), 1)
    return numbers.reshape(seeds.shape)


def _zeroed(policy: TensorDictModuleBase, key: NestedKey) -> EditedObservation:
    def edit(tensordict: TensorDictBase) -> None:
        tensordict.set(key, torch.zeros_like(tensordict.get(key)))

    return EditedObservation(policy, edit)
