from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torchrl.data import Unbounded
from torchrl.envs import TransformedEnv

from torchrl_vla.envs import (
    GymnasiumEnv,
    MetaWorldEnv,
    RenderSpec,
    TabletopEnv,
    ToyVLAEnv,
)
from torchrl_vla.envs.lazy_rendering import observation_is_needed
from torchrl_vla.envs.simulator_interface import SimulatorInterface, SimulatorOptions
from torchrl_vla.schema import InstructionTable
from torchrl_vla.testing import check_env
from torchrl_vla.transforms import SuccessReward

TRACKING = {"action_dim": 2, "state_dim": 4, "success_steps": 2}


@pytest.mark.parametrize("batch_size", [[], [1], [3], [2, 2]])
@pytest.mark.parametrize("arguments", [{}, TRACKING], ids=["echo", "tracking"])
@pytest.mark.parametrize("by_id", [True, False], ids=["ids", "text"])
def test_the_toy_environment_passes(batch_size, arguments, by_id):
    table = InstructionTable() if by_id else None
    env = ToyVLAEnv(batch_size=batch_size, instructions=table, max_steps=5, **arguments)
    check_env(env, max_steps=5)


@pytest.mark.parametrize("tasks", [("reach",), ("push",), ("reach", "push")])
@pytest.mark.parametrize("num_envs", [1, 4])
def test_the_tabletop_passes(tasks, num_envs):
    env = TabletopEnv(num_envs, tasks=tasks, image_size=16, max_steps=6)
    check_env(env, max_steps=6)


def test_metaworld_passes():
    env = MetaWorldEnv(["reach", "push"], num_envs=2, max_steps=6)
    check_env(env, max_steps=6)


class Actions(TransformedEnv):
    """Keep every action that is taken."""

    def __init__(self, env):
        super().__init__(env)
        self.taken = []

    def _step(self, tensordict):
        self.taken.append(tensordict["action"].clone())
        return super()._step(tensordict)


def test_what_is_played_follows_from_the_seed_alone():
    played = []
    for other_draws in (0, 3):
        torch.rand(other_draws)  # the caller's random numbers have no part in it
        env = Actions(ToyVLAEnv(batch_size=[2], max_steps=5))
        state = torch.get_rng_state()
        check_env(env, max_steps=5)
        assert torch.equal(torch.get_rng_state(), state)
        played.append(torch.stack(env.taken))
    assert torch.equal(*played)
    other = Actions(ToyVLAEnv(batch_size=[2], max_steps=5))
    check_env(other, max_steps=5, seed=1)
    # The first three steps are those of TorchRL's own check.
    assert not torch.isclose(torch.stack(other.taken)[:3], played[0][:3]).any()


class Upright(gymnasium.Wrapper):
    """Pendulum, with a task."""

    def step(self, action):
        observation, *rest, info = self.env.step(action)
        return observation, *rest, {**info, "upright": bool(observation[0] > 0.9)}


def test_a_gymnasium_environment_passes():
    env = GymnasiumEnv(
        lambda: Upright(gymnasium.make("Pendulum-v1")),
        SimulatorInterface(lambda observation: {"state": observation}, "upright"),
        instructions="swing up",
        num_envs=3,
        max_steps=7,
    )
    check_env(env, max_steps=7)


def test_a_transformed_environment_passes():
    check_env(TransformedEnv(ToyVLAEnv(batch_size=[2], **TRACKING), SuccessReward()))


class Broken(ToyVLAEnv):
    """Right, for the wrong ones below to inherit from."""

    def __init__(self, **options):
        arguments = {"batch_size": [3], "seed": 0, "max_steps": 8, **TRACKING}
        super().__init__(**{**arguments, **options})


class OwnSeeds(Broken):
    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        return super()._reset(tensordict, **kwargs)


class OneStream(Broken):
    """A row's target comes from a generator that the rows before it have used."""

    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        super()._reset(tensordict, episode_seeds=episode_seeds, **kwargs)
        generator = torch.Generator().manual_seed(int(self._episode["seed"][0]))
        self._episode["target"] = torch.rand(3, 2, generator=generator) - 0.5
        return self._observe()


class HiddenState(Broken):
    """Remembers something between episodes."""

    episodes = 0

    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        self.episodes += 1
        return super()._reset(tensordict, episode_seeds=episode_seeds, **kwargs)

    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.set("reward", out["reward"] + self.episodes)


class FrozenSeeds(Broken):
    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        if episode_seeds is None:
            episode_seeds = torch.arange(3)
        return super()._reset(tensordict, episode_seeds=episode_seeds, **kwargs)


class Unseedable(Broken):
    def _set_seed(self, seed):
        self._generator.seed()


class ForgetsItsSeed(Broken):
    def _step(self, tensordict):
        return super()._step(tensordict).set("episode_seed", torch.zeros(3).long())


class IgnoresStepMask(Broken):
    def _step(self, tensordict):
        return super()._step(tensordict.exclude("_step"))


class ForgetsWhileItSitsOut(Broken):
    """A row that sits a step out loses its clock."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        mask = tensordict.get("_step", None)
        if mask is not None:
            self._episode["step"] = self._episode["step"].masked_fill(~mask, 0)
        return out


class PaysForNothing(Broken):
    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.set("reward", torch.full((3, 1), -1.0))


class ResetsAll(Broken):
    def _reset(self, tensordict=None, **kwargs):
        return super()._reset(None, **kwargs)


class ResetsByHalves(Broken):
    """A partial reset leaves the clock of the old episode running."""

    def _reset(self, tensordict=None, **kwargs):
        steps = self._episode["step"].clone()
        out = super()._reset(tensordict, **kwargs)
        if tensordict is not None and "_reset" in tensordict:
            self._episode["step"] = steps
        return out


class WritesAgain(Broken):
    """Hands out its own buffer."""

    def __init__(self, **options):
        super().__init__(**options)
        self._buffer = torch.zeros(3, 4)

    def _observe(self):
        out = super()._observe()
        if not hasattr(self, "_buffer"):
            return out
        self._buffer.copy_(out["observation", "state"])
        return out.set(("observation", "state"), self._buffer)


class DoubleState(Broken):
    def __init__(self, **options):
        super().__init__(**options)
        spec = self.observation_spec
        spec["observation", "state"] = Unbounded((3, 4), dtype=torch.float64)
        self.observation_spec = spec

    def _observe(self):
        out = super()._observe()
        return out.set(("observation", "state"), out["observation", "state"].double())


class WideImage(Broken):
    """Images are HWC."""

    image_shape = (8, 8, 3)


class ForeignId(Broken):
    def __init__(self):
        super().__init__(instructions=InstructionTable())

    def _instruct(self, out):
        out.set("language_instruction", torch.full((3,), 42))


class ForeignText(Broken):
    def __init__(self):
        super().__init__()
        self.instructions = InstructionTable(["something else"])


class DoneAlone(Broken):
    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.set("truncated", torch.ones(3, 1, dtype=torch.bool))


class Leftovers(Broken):
    """The target of an episode lies where the episode before ended."""

    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        action = self._episode["action"].clone()
        super()._reset(tensordict, episode_seeds=episode_seeds, **kwargs)
        self._episode["target"] = action
        return self._observe()


class WarmStart(Broken):
    """The physics begin where the solver of the episode before stopped."""

    warm = 0.0

    def _step(self, tensordict):
        out = super()._step(tensordict)
        if self._episode["step"].max() == 1:
            out["reward"] = out["reward"] + self.warm
        self.warm = float(self._episode["target"].sum())
        return out


class GlobalDraws(Broken):
    def _reset(self, tensordict=None, episode_seeds=None, **kwargs):
        super()._reset(tensordict, episode_seeds=episode_seeds, **kwargs)
        self._episode["target"] = torch.rand(3, 2) - 0.5
        return self._observe()


@pytest.mark.parametrize(
    ("env", "where", "cause"),
    [
        (Leftovers, "at the reset", "on the episode before it: something of that one"),
        (WarmStart, "after 1 steps", "on the episode before it: something of that"),
        (
            GlobalDraws,
            "at the reset",
            r"reset\(episode_seeds=\.\.\.\) does not set: ran",
        ),
        (HiddenState, "after 1 steps", "or a count over episodes"),
    ],
)
def test_an_environment_that_depends_on_its_past_is_told_on_which(env, where, cause):
    with pytest.raises(AssertionError, match=rf"got another {where}\. .*past.*{cause}"):
        check_env(env())


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (
            OwnSeeds,
            r"^OwnSeeds: expected the seeds \[.*\] of the reset at 'episode_seed'",
        ),
        (
            OneStream,
            r"same \('observation', 'state'\) in the rows beside one with anoth",
        ),
        (HiddenState, "expected the same 'reward' when an episode is played again"),
        (FrozenSeeds, r"fresh seeds from a reset without.*, got \[0, 1, 2\] twice"),
        (Unseedable, "^Unseedable: expected the same .* after the same set_seed"),
        (ForgetsItsSeed, r"'episode_seed' after 1 steps, got \[0, 0, 0\]"),
        (IgnoresStepMask, "same .* before and after a step that a row sits out"),
        (ForgetsWhileItSitsOut, "expected the same .* after a step that a row sat out"),
        (PaysForNothing, r"no reward in a row that sits a step out, got \[\[-1.0\]\]"),
        (ResetsAll, r"same .* in the rows beside one that is reset"),
        (ResetsByHalves, "same .* in a row that is reset alone and with all"),
        (
            WritesAgain,
            r"\('observation', 'state'\) on later looks at what it handed out",
        ),
        (
            DoubleState,
            r"torch.float32 at \('observation', 'state'\), got torch.float64",
        ),
        (
            WideImage,
            r"^WideImage: expected observations of the schema, got \[\"expected C",
        ),
        (ForeignId, "instructions of env.instructions at 'language_instruction', got"),
        (ForeignText, r"got others: \['push the T-shaped block onto the target'\]"),
        (DoneAlone, r"expected done = terminated \| truncated, got another flag"),
    ],
)
def test_a_broken_environment_is_found(env, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_env(env())


def test_a_right_environment_is_not_called_broken():
    check_env(Broken(), max_steps=8)


@pytest.mark.parametrize(
    ("max_steps", "complaint"),
    [(7, "one that goes on after 7"), (9, "one that is truncated after 8")],
)
def test_another_time_limit_is_found(max_steps, complaint):
    env = Broken(success_steps=100)
    with pytest.raises(
        AssertionError, match=rf"max_steps={max_steps} and .* {complaint}"
    ):
        check_env(env, max_steps=max_steps)


def test_episodes_that_are_too_short_show_nothing():
    with pytest.raises(
        ValueError, match="expected episodes of Broken of more than 3 st"
    ):
        check_env(Broken(max_steps=2))


class Clock(gymnasium.Env):
    """Shows its time."""

    observation_space = action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return np.zeros(1), {}

    def step(self, action):
        self.time += 1
        return np.zeros(1), 0.0, False, False, {"rings": False}

    def draw(self):
        return np.full((2, 2, 3), self.time, np.uint8)


class OnDemand(GymnasiumEnv):
    """Right, for the wrong ones below to inherit from."""

    def __init__(self):
        super().__init__(
            Clock,
            SimulatorInterface(
                lambda observation: {"state": observation},
                "rings",
                RenderSpec(Clock.draw, (2, 2, 3)),
            ),
            instructions="wait",
            num_envs=3,
            max_steps=5,
            options=SimulatorOptions(render_on_demand=True),
        )


class NeverStale(OnDemand):
    """Says nothing of what it did not draw."""

    def _output(self):
        return super()._output().set("image_is_stale", torch.zeros(3, 1).bool())


class LooksAway(OnDemand):
    """Does not draw although somebody looks."""

    def _to_render(self, tensordict, rows):
        return np.zeros(len(rows), bool)


class Blanks(OnDemand):
    """Shows nothing where it has nothing new to show."""

    def _output(self):
        out = super()._output()
        out["observation", "image"][out["image_is_stale"][:, 0]] = 0
        return out


class SkipsPhysics(OnDemand):
    """Pays for looking."""

    def _step(self, tensordict):
        out = super()._step(tensordict)
        return out.set("reward", out["reward"] - out["image_is_stale"].float())


class MissesTheEnd(OnDemand):
    """Does not know of its time limit."""

    def _to_render(self, tensordict, rows):
        return observation_is_needed(tensordict, self.batch_size)[rows].numpy()


class NoImage(OnDemand):
    """Has no images, and says that they are fresh."""

    def _make_specs(self, layout):
        super()._make_specs(layout)
        del self.observation_spec["observation", "image"]

    def _output(self):
        return super()._output().exclude(("observation", "image"))


@pytest.mark.parametrize(
    ("env", "complaint"),
    [
        (NeverStale, "same .*'image'.* where somebody looks, and the last drawn where"),
        (LooksAway, "expected no stale image where somebody looks"),
        (Blanks, "and the last drawn where nobody does"),
        (SkipsPhysics, "same 'reward' but for images where nobody looks"),
        (MissesTheEnd, "the last image of an episode to be drawn"),
        (NoImage, "expected an image beside 'image_is_stale', got none"),
    ],
)
def test_an_environment_that_draws_too_little_is_found(env, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_env(env(), max_steps=5)


def test_one_that_draws_on_demand_passes():
    check_env(OnDemand(), max_steps=5)
