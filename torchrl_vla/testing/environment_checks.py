"""Contract check of an environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from tensordict import (
    NestedKey,
    TensorDictBase,
    is_leaf_nontensor,
    is_tensor_collection,
)
from torch import Tensor
from torchrl.envs import EnvBase, step_mdp
from torchrl.envs.utils import check_env_specs

from torchrl_vla.schema import (
    ENVIRONMENT_STATE_KEY,
    EPISODE_SEED_KEY,
    IMAGE_IS_STALE_KEY,
    IMAGE_KEY,
    INSTRUCTION_KEY,
    OBSERVATION_NEEDED_KEY,
    STATE_KEY,
    SUCCESS_KEY,
    UnknownInstructionError,
    instruction_texts,
    is_text,
    validate_vla_tensordict,
)


def check_env(env: EnvBase, *, max_steps: int | None = None, seed: int = 0) -> None:
    """Check that an environment follows the schema, each env index on its own.

    The contract, compared bit for bit:

    - Data agree with the specs (TorchRL's ``check_env_specs``) and with the schema:
      uint8 images, float32 state, text or int64 ids of ``env.instructions``, bool
      ``success``. Returned tensors are never written to again.
    - ``reset(episode_seeds=...)`` begins episodes that depend on their seed alone.
    - A partial reset and a step masked by ``_step`` change no other env index. An
      episode is truncated at the time limit, and only there.
    - An environment that renders on demand (it has ``image_is_stale``) returns the same
      wherever ``observation_needed`` is not False, marks stale images, and renders
      where episodes begin and end.

    Args:
        env: the environment. It is reset and stepped with random actions; its
            episodes have to last for three of them.

    Keyword Args:
        max_steps: its time limit; None = that is not checked.
        seed: of the episodes and actions that are played.

    Raises:
        AssertionError: the contract is broken; the message says how.
        ValueError: an episode was over too soon to show anything.

    Examples:
        >>> from torchrl.envs import PendulumEnv
        >>> check_env(PendulumEnv())
        Traceback (most recent call last):
        ...
        AssertionError: PendulumEnv: expected 'episode_seed' among its observations, \
got [...].
    """
    name = type(env).__name__
    observations = list(env.full_observation_spec.keys(True, True))
    if EPISODE_SEED_KEY not in observations:
        raise AssertionError(
            f"{name}: expected {EPISODE_SEED_KEY!r} among its observations, got "
            f"{sorted(map(str, observations))}."
        )
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the check draws its actions from it
        check_env_specs(env)
        torch.manual_seed(seed)
        seeds = torch.randint(1 << 31, env.batch_size).to(env.device or "cpu")
        actions = [env.full_action_spec.rand() for _ in range(3)]
        played = _play(env, seeds, actions)
        if any(td["done"].any() for td in played):
            raise ValueError(
                f"check_env: expected episodes of {name} of more than {len(actions)} "
                "steps under random actions, got a shorter one. Try another seed=."
            )
        _check_schema(name, env, played)
        _check_carried_seeds(name, seeds, played)
        _check_past(name, env, seeds, actions, played)
        _check_seeds(name, env, seeds, played)
        if env.batch_size.numel() > 1:
            _check_masked_step(name, env, seeds, actions, played)
            _check_partial_reset(name, env, seeds, actions, played)
        if IMAGE_IS_STALE_KEY in observations:
            _check_drawing(name, env, seeds, actions, played)
        if max_steps is not None:
            _check_time_limit(name, env, max_steps)


def _play(
    env: EnvBase,
    seeds: Tensor,
    actions: Sequence[TensorDictBase],
    *,
    masks: Mapping[int, Tensor] | None = None,
    observation_needed: Sequence[Tensor] | None = None,
) -> list[TensorDictBase]:
    """Return the outputs of a reset and of each step."""
    td = env.reset(episode_seeds=seeds)
    handed_out, copies = [td], [td.clone()]
    for i, action in enumerate(actions):
        td = td.copy().update(action.clone())
        if masks and i in masks:
            td.set("_step", masks[i])
        if observation_needed is not None:
            td.set(OBSERVATION_NEEDED_KEY, observation_needed[i])
        td = env.step(td)
        handed_out.append(td["next"])
        copies.append(td["next"].clone())
        td = step_mdp(td.exclude("_step"))
    name = type(env).__name__
    _check_same(name, "on later looks at what it handed out", copies, handed_out)
    return copies


def _check_schema(name: str, env: EnvBase, played: list[TensorDictBase]) -> None:
    for td in played:
        found = validate_vla_tensordict(
            td, metadata=env.metadata, require_action=False, raise_on_error=False
        )
        if found:
            raise AssertionError(
                f"{name}: expected observations of the schema, got {found}."
            )
        images = td.get(IMAGE_KEY, None)
        images = images if is_tensor_collection(images) else {"": images}
        leaves = [(IMAGE_KEY, image, torch.uint8) for image in images.values()]
        leaves += [
            (key, td.get(key, None), dtype)
            for key, dtype in (
                (STATE_KEY, torch.float32),
                (ENVIRONMENT_STATE_KEY, torch.float32),
                (SUCCESS_KEY, torch.bool),
                (EPISODE_SEED_KEY, torch.int64),
            )
        ]
        for key, value, dtype in leaves:
            if value is not None and value.dtype != dtype:
                raise AssertionError(
                    f"{name}: expected {dtype} at {key!r}, got {value.dtype}."
                )
        _check_instruction(name, env, td)
        ended = td["terminated"] | td["truncated"]
        if not torch.equal(td["done"], ended):
            raise AssertionError(
                f"{name}: expected done = terminated | truncated, got another flag."
            )


def _check_instruction(name: str, env: EnvBase, td: TensorDictBase) -> None:
    value = td.get(INSTRUCTION_KEY)
    if is_text(value):
        unknown = str(
            sorted(set(instruction_texts(value)) - set(env.instructions.texts)) or ""
        )
    else:
        unknown = ""
        try:
            env.instructions.rows(value)
        except UnknownInstructionError as error:
            unknown = str(error)
    if unknown:
        raise AssertionError(
            f"{name}: expected instructions of env.instructions at "
            f"{INSTRUCTION_KEY!r}, got others: {unknown}"
        )


def _check_carried_seeds(
    name: str, seeds: Tensor, played: list[TensorDictBase]
) -> None:
    for when, td in enumerate(played):
        if not torch.equal(td[EPISODE_SEED_KEY].cpu(), seeds.cpu()):
            raise AssertionError(
                f"{name}: expected the seeds {seeds.tolist()} of the reset at "
                f"{EPISODE_SEED_KEY!r} after {when} steps, got "
                f"{td[EPISODE_SEED_KEY].tolist()}."
            )


def _check_past(
    name: str,
    env: EnvBase,
    seeds: Tensor,
    actions: list[TensorDictBase],
    played: list[TensorDictBase],
) -> None:
    """An episode is the same after any other; if it is not, say what it depends on."""
    again = _play(env, seeds, actions)
    found = _difference(played, again)
    once_more = _play(env, seeds, actions)  # after the same episode as the one before
    depends_on_chance = _difference(again, once_more) is not None
    if found is None:
        _play(env, seeds + 1, actions)
        found = _difference(once_more, _play(env, seeds, actions))
    if found is None:
        return
    when, key = found
    cause = (
        "something that reset(episode_seeds=...) does not set: random numbers that are "
        "not drawn from the episode's seed, or a count over episodes"
        if depends_on_chance
        else "the episode before it: something of that one is left after the reset"
    )
    place = "at the reset" if when == 0 else f"after {when} steps"
    raise AssertionError(
        f"{name}: expected the same {key!r} when an episode is played again, got "
        f"another {place}. The environment depends on its past: on {cause}. Set all "
        "of it in reset, from the seed."
    )


def _check_seeds(
    name: str, env: EnvBase, seeds: Tensor, played: list[TensorDictBase]
) -> None:
    first, second = env.reset()[EPISODE_SEED_KEY], env.reset()[EPISODE_SEED_KEY]
    if torch.equal(first, second):
        raise AssertionError(
            f"{name}: expected fresh seeds from a reset without episode_seeds, got "
            f"{first.tolist()} twice."
        )
    env.set_seed(7)
    first = env.reset()
    env.set_seed(7)
    _check_same(name, "after the same set_seed", [first], [env.reset()])
    if env.batch_size.numel() > 1:
        others = torch.ones(env.batch_size, dtype=torch.bool)
        others.view(-1)[0] = False
        changed = torch.where(others, seeds, seeds + 1)
        reset = env.reset(episode_seeds=changed)
        _check_same(
            name,
            "in the rows beside one with another seed",
            [played[0][others]],
            [reset[others]],
        )


def _check_masked_step(
    name: str,
    env: EnvBase,
    seeds: Tensor,
    actions: list[TensorDictBase],
    played: list[TensorDictBase],
) -> None:
    """The first row sits out the second of three steps; the others do not notice."""
    runs = torch.ones(env.batch_size, dtype=torch.bool, device=env.device)
    runs.view(-1)[0] = False
    masked = _play(env, seeds, actions, masks={1: runs})
    what = "in the rows beside one that sits a step out"
    _check_same(name, what, _rows(played, runs), _rows(masked, runs))
    without = _play(env, seeds, [actions[0], actions[2]])
    observed = list(env.full_observation_spec.keys(True, True))
    before, during = (
        [td.select(*observed, "done", "terminated", "truncated")] for td in masked[1:3]
    )
    what = "before and after a step that a row sits out"
    _check_same(name, what, _rows(before, ~runs), _rows(during, ~runs))
    if masked[2]["reward"][~runs].any():
        raise AssertionError(
            f"{name}: expected no reward in a row that sits a step out, got "
            f"{masked[2]['reward'][~runs].tolist()}."
        )
    what = "after a step that a row sat out"
    _check_same(name, what, _rows(without[2:], ~runs), _rows(masked[3:], ~runs))


def _check_partial_reset(
    name: str,
    env: EnvBase,
    seeds: Tensor,
    actions: list[TensorDictBase],
    played: list[TensorDictBase],
) -> None:
    """The first row begins a new episode after one step; the others go on."""
    rows = torch.zeros(env.batch_size, dtype=torch.bool, device=env.device)
    rows.view(-1)[0] = True
    fresh_seeds = seeds + 1
    fresh = _play(env, fresh_seeds, actions[1:2])
    td = env.reset(episode_seeds=seeds)
    td = step_mdp(env.step(td.update(actions[0].clone())))
    reset = env.reset(td.set("_reset", rows.unsqueeze(-1)), episode_seeds=fresh_seeds)
    reset = reset.clone()
    after = env.step(reset.copy().update(actions[1].clone()))["next"]
    keys = list(env.full_observation_spec.keys(True, True))
    shown = [td.select(*keys) for td in (reset, after)]
    expected = [td.select(*keys) for td in played[1:3]]
    what = "in the rows beside one that is reset"
    _check_same(name, what, _rows(expected, ~rows), _rows(shown, ~rows))
    expected = [td.select(*keys) for td in fresh]
    what = "in a row that is reset alone and with all"
    _check_same(name, what, _rows(expected, rows), _rows(shown, rows))


def _check_drawing(
    name: str,
    env: EnvBase,
    seeds: Tensor,
    actions: list[TensorDictBase],
    played: list[TensorDictBase],
) -> None:
    """Compare with full rendering where ``observation_needed`` is not False."""
    rows = torch.arange(env.batch_size.numel(), device=env.device)
    looks = [(rows + when) % 3 == 2 for when in range(len(actions))]
    looks = [look.view(*env.batch_size, 1) for look in looks]
    blind = _play(env, seeds, actions, observation_needed=looks)
    shown = [
        key
        for key in env.full_observation_spec.keys(True, True)
        if key == IMAGE_KEY or key[:-1] == IMAGE_KEY
    ]
    if not shown:
        raise AssertionError(
            f"{name}: expected an image beside {IMAGE_IS_STALE_KEY!r}, got none."
        )
    other = [td.exclude(*shown, IMAGE_IS_STALE_KEY) for td in played]
    what = "but for images where nobody looks"
    _check_same(name, what, other, blind)
    everybody = torch.ones((*env.batch_size, 1), dtype=torch.bool, device=env.device)
    last = played[0].select(*shown)
    for look, always, td in zip([everybody, *looks], played, blind, strict=True):
        is_stale = td[IMAGE_IS_STALE_KEY]
        if always[IMAGE_IS_STALE_KEY].any() or (is_stale & look).any():
            raise AssertionError(
                f"{name}: expected no stale image where somebody looks, got "
                f"{IMAGE_IS_STALE_KEY!r} True."
            )
        fresh = ~is_stale[..., 0]
        last = last.clone()
        last[fresh] = always.select(*shown)[fresh]
        what = "where somebody looks, and the last drawn where nobody does"
        _check_same(name, what, [last], [td.select(*shown)])


def _check_time_limit(name: str, env: EnvBase, max_steps: int) -> None:
    steps = torch.zeros((*env.batch_size, 1), dtype=torch.int64, device=env.device)
    nobody_looks = torch.zeros_like(steps, dtype=torch.bool)
    td = env.reset()
    for _ in range(max_steps + 1):
        td.update(env.full_action_spec.rand()).set(OBSERVATION_NEEDED_KEY, nobody_looks)
        shown, td = env.step_and_maybe_reset(td)
        shown, steps = shown["next"], steps + 1
        late = (steps >= max_steps) & ~shown["done"]
        early = (steps < max_steps) & shown["truncated"]
        if late.any() or early.any():
            what = "goes on" if late.any() else "is truncated"
            raise AssertionError(
                f"{name}: expected episodes truncated after max_steps={max_steps} and "
                f"only there, got one that {what} after {int(steps[late | early][0])}."
            )
        is_stale = shown.get(IMAGE_IS_STALE_KEY, nobody_looks)
        if (is_stale & shown["done"]).any():
            raise AssertionError(
                f"{name}: expected the last image of an episode to be drawn, got "
                f"{IMAGE_IS_STALE_KEY!r} True where 'done' is."
            )
        steps = steps.masked_fill(shown["done"], 0)


def _rows(played: Sequence[TensorDictBase], rows: Tensor) -> list[TensorDictBase]:
    return [td[rows] for td in played]


def _check_same(
    name: str,
    when: str,
    expected: Sequence[TensorDictBase],
    got: Sequence[TensorDictBase],
) -> None:
    found = _difference(expected, got)
    if found is not None:
        raise AssertionError(f"{name}: expected the same {found[1]!r} {when}.")


def _difference(
    expected: Sequence[TensorDictBase], got: Sequence[TensorDictBase]
) -> tuple[int, NestedKey] | None:
    """Return where two sequences first differ, and in which key; None = nowhere."""
    for index, (td, other) in enumerate(zip(expected, got, strict=True)):
        for key in td.keys(True, True, is_leaf=is_leaf_nontensor):
            if not _equal(td.get(key), other.get(key)):
                return index, key
    return None


def _equal(value: Tensor | object, other: Tensor | object) -> bool:
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return torch.equal(value, other)
    return instruction_texts(value) == instruction_texts(other)
