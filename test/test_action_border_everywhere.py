"""Actions that no environment and no executor lets through, tried on each of them."""

from __future__ import annotations

import pytest
import torch
from point_robot import JOINTS, act_by, make_point, towards
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, TransformedEnv

from torchrl_vla.data import collect
from torchrl_vla.envs import AlohaEnv, MetaWorldEnv, PushTEnv, TabletopEnv, ToyVLAEnv
from torchrl_vla.errors import SettingsError
from torchrl_vla.evaluation import evaluate
from torchrl_vla.execution import MultiAction, MultiStepActorWrapper, TemporalEnsemble
from torchrl_vla.policies import LeRobotPolicyWrapper
from torchrl_vla.recipes import make_decision_env, make_environment
from torchrl_vla.rollout import CheckedEnv, checked_env
from torchrl_vla.schema import (
    ArgumentTypeError,
    ExecutionError,
    FeatureStatistics,
    InstructionTable,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    VLAError,
)
from torchrl_vla.spaces import ModelSpace

ENVIRONMENTS = {
    "gymnasium": lambda: make_point(num_envs=2),
    "toy": lambda: ToyVLAEnv(batch_size=[2]),
    "tabletop": lambda: TabletopEnv(2, image_size=8),
    "pusht": lambda: PushTEnv(num_envs=2, images=False, environment_state=True),
    "metaworld": lambda: MetaWorldEnv("reach", num_envs=2),
    "aloha": lambda: AlohaEnv(num_envs=2, images=False),
}


@pytest.fixture(scope="module", params=list(ENVIRONMENTS))
def env(request):
    return ENVIRONMENTS[request.param]()


def constant(shape, key="action", value=0.1, dtype=torch.float32):
    return TensorDictModule(
        lambda seed: torch.full((*seed.shape, *shape), value, dtype=dtype),
        ["episode_seed"],
        [key],
    )


def width_of(env):
    return env.action_spec.shape[-1]


@pytest.mark.parametrize(
    "shape", [lambda a: (1,), lambda a: (1, a), lambda a: (a + 1,)]
)
def test_no_environment_broadcasts_an_action(env, shape):
    shape, width = shape(width_of(env)), width_of(env)
    with pytest.raises(SchemaError, match=rf"\[2\], A = {width} at 'action', got \[2"):
        env.rollout(2, constant(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_no_environment_executes_what_is_no_number(env, value):
    td = env.reset()
    td["action"] = torch.zeros(2, width_of(env))
    td["action"][1, 1] = value
    with pytest.raises(SchemaError, match=r"at env index 1, dimension 1\. Look at the"):
        env.step(td)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_every_environment_executes_other_floats_as_float32(env, dtype):
    seeds = torch.tensor([3, 4])
    states = []
    for kind in (torch.float32, dtype):
        td = env.reset(episode_seeds=seeds)
        td["action"] = torch.full((2, width_of(env)), 0.25, dtype=kind)
        states.append(env.step(td)["next", "observation", "state"])
    assert torch.equal(*states)
    assert states[1].dtype == torch.float32


def test_every_environment_says_what_to_do_with_a_chunk(env):
    with pytest.raises(MissingKeyError, match="wrap it in MultiStepActorWrapper, or"):
        env.rollout(2, constant((3, width_of(env)), "action_chunk"))


@pytest.mark.parametrize("make", ENVIRONMENTS.values(), ids=list(ENVIRONMENTS))
def test_no_environment_is_stepped_before_its_reset(make):
    env = make()
    td = env.fake_tensordict().exclude("next")
    with pytest.raises(ExecutionError, match="a step before the first reset"):
        env.step(td)
    env.close()


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_policy_of_any_precision_acts(dtype):
    def chunk(state):
        half = (towards(state) / 2).to(dtype)
        return half.unsqueeze(-2).expand(*state.shape[:-1], 2, JOINTS)

    chunks = act_by(chunk, "action_chunk")
    for env, policy in (
        (make_point(), act_by(lambda state: towards(state).to(dtype))),
        (make_point(), MultiStepActorWrapper(chunks)),
        (TransformedEnv(make_point(), MultiAction(2)), chunks),
    ):
        assert evaluate(env, policy, 6, progress=False).success_rate == 1.0


@pytest.mark.parametrize("shape", [(3, 1), (3, 5), (1, 3, 4), (4,)])
def test_no_executor_lets_a_chunk_of_another_shape_through(shape):
    chunks = constant(shape, "action_chunk")
    with pytest.raises((SchemaError, ExecutionError), match="expected a"):
        evaluate(make_point(), MultiStepActorWrapper(chunks), 2, progress=False)
    with pytest.raises((SchemaError, ExecutionError), match="expected a"):
        TransformedEnv(make_point(), MultiAction(3)).rollout(2, chunks)


def test_no_space_broadcasts_a_chunk():
    statistics = FeatureStatistics.from_samples(torch.randn(9, JOINTS))
    states = FeatureStatistics.from_samples(torch.randn(9, 2 * JOINTS))
    metadata = RobotDatasetMetadata(
        "point",
        action_dim=JOINTS,
        state_dim=2 * JOINTS,
        action_statistics=statistics,
        state_statistics=states,
    )
    space = ModelSpace(metadata)
    narrow = act_by(lambda state: torch.zeros(len(state), 2, 1), "action_chunk")
    with pytest.raises(SchemaError, match=r"expected \[\.\.\., 4\], got shape"):
        evaluate(make_point(), space.executor(narrow), 2, progress=False)
    env = make_decision_env(make_point(), space, chunk_size=2)
    with pytest.raises(SchemaError, match=r"expected \[\.\.\., 4\], got shape"):
        env.rollout(2, narrow)


class ForeignEnv(EnvBase):
    """Broadcasts, casts and executes what it gets, as environments of others do."""

    def __init__(self, spec):
        super().__init__()
        self.executed = []
        self.instructions = InstructionTable(["go"])
        self.metadata = RobotDatasetMetadata("theirs")
        self.observation_spec = Composite(state=Unbounded(3))
        self.action_spec = spec
        self.reward_spec = Unbounded(1)

    def _reset(self, tensordict=None):
        self.steps = 0
        return TensorDict(state=torch.zeros(3))

    def _step(self, tensordict):
        self.steps += 1
        self.executed.append(tensordict["action"])
        done = torch.tensor([self.steps == 2])
        out = {"state": torch.ones(3), "reward": torch.ones(1), "done": done}
        return TensorDict(out | {"terminated": done, "success": done})

    def _set_seed(self, seed):
        pass


def says(action):
    return TensorDictModule(lambda state: action, ["state"], ["action"])


RUNS = {
    "evaluate": lambda env, policy, _: evaluate(
        env, policy, 1, progress=False, on_error="raise"
    ),
    "collect": lambda env, policy, folder: collect(
        env, policy, 1, folder=folder / "data", progress=False
    ),
    "CheckedEnv": lambda env, policy, _: checked_env(env).rollout(2, policy),
}
FLOATS = Bounded(-1.0, 1.0, (3,))


@pytest.mark.parametrize(
    ("spec", "action", "message"),
    [
        (FLOATS, torch.zeros(1), r"A = 3 at 'action', got \[1\]\. Nothing is broad"),
        (FLOATS, torch.zeros(1, 3), r"A = 3 at 'action', got \[1, 3\]"),
        (FLOATS, torch.tensor([0, torch.nan, 0]), "nan at dimension 1. Look at"),
        (FLOATS, torch.ones(3, dtype=torch.bool), "real numbers at 'action', got to"),
        (
            Categorical(5),
            torch.tensor(1.9),
            r"int64 \[\] at 'action', .* got torch.float32 \[\]",
        ),
        (
            Categorical(5),
            torch.tensor([1]),
            r"int64 \[\] at 'action', .* got torch.int64 \[1\]",
        ),
    ],
)
@pytest.mark.parametrize("run", RUNS)
def test_an_environment_of_others_does_not_broadcast_cast_or_execute_it(
    spec, action, message, run, tmp_path
):
    env, policy = ForeignEnv(spec), says(action)
    with pytest.raises(VLAError, match=rf"(?s)^{run}: expected .*{message}"):
        RUNS[run](env, policy, tmp_path)
    assert env.executed == []


def test_an_environment_of_others_gets_the_dtype_of_its_spec():
    env = ForeignEnv(FLOATS)
    action = torch.full((3,), 0.5, dtype=torch.bfloat16)
    assert evaluate(env, says(action), 1, progress=False).success_rate == 1.0
    assert [a.dtype for a in env.executed] == [torch.float32] * 2
    choices = ForeignEnv(Categorical(5))
    evaluate(choices, says(torch.tensor(4)), 1, progress=False)
    assert [int(a) for a in choices.executed] == [4, 4]


BEYOND = torch.tensor([0.5, 3.0, -2.0])


def test_a_checked_environment_executes_what_is_within_the_bounds():
    env = ForeignEnv(FLOATS)
    rollout = CheckedEnv(env).rollout(1, says(BEYOND))
    assert env.executed[0].tolist() == [0.5, 1.0, -1.0]
    assert rollout["action"][0].tolist() == [0.5, 3.0, -2.0]


def test_a_checked_environment_refuses_or_passes_on_what_is_beyond_by_name():
    env = ForeignEnv(FLOATS)
    with pytest.raises(SchemaError, match=r"within -1 .. 1 at .*, got 3 at index \[1"):
        CheckedEnv(env, beyond="refuse").rollout(1, says(BEYOND))
    assert env.executed == []
    CheckedEnv(env, beyond="pass").rollout(1, says(BEYOND))
    assert env.executed[0].tolist() == BEYOND.tolist()
    with pytest.raises(SettingsError, match=r"beyond of .*'clip'.*, got 'ignore'"):
        CheckedEnv(env, beyond="ignore")


def test_a_checked_environment_refuses_what_is_no_outcome():
    class Scored(ForeignEnv):
        def _step(self, tensordict):
            out = super()._step(tensordict)
            return out.set("success", torch.tensor([0.4]))

    class Diverged(ForeignEnv):
        def _step(self, tensordict):
            return super()._step(tensordict).set("reward", torch.tensor([torch.nan]))

    policy = says(torch.zeros(3))
    with pytest.raises(SchemaError, match="CheckedEnv: expected bool, or 0 and 1"):
        CheckedEnv(Scored(FLOATS)).rollout(1, policy)
    with pytest.raises(SchemaError, match="CheckedEnv: expected finite rewards, got n"):
        CheckedEnv(Diverged(FLOATS)).rollout(1, policy)


def test_an_environment_by_name_is_checked_once():
    env = make_environment(f"{__name__}:make_foreign")
    assert type(env) is CheckedEnv
    with pytest.raises(SchemaError, match=r"A = 3 at 'action', got \[1\]"):
        env.rollout(1, says(torch.zeros(1)))
    assert checked_env(env) is env
    inside = TransformedEnv(make_point(), MultiAction(2))
    assert checked_env(inside) is inside
    assert evaluate(env, says(torch.zeros(3)), 1, progress=False).success_rate == 1.0
    chunk = TensorDictModule(lambda s: torch.zeros(2, 3), ["state"], ["action_chunk"])
    outside = TransformedEnv(env, MultiAction(2))
    assert outside.rollout(2, chunk)["next", "done"].any()
    with pytest.raises(
        MissingKeyError, match=r"expected an action at .*'action'.*Multi"
    ):
        env.step(env.reset().set("action_chunk", torch.zeros(2, 3)))
    with pytest.raises(ArgumentTypeError, match="checked_env: expected an environment"):
        checked_env("tabletop")


def make_foreign():
    return ForeignEnv(FLOATS)


def test_an_environment_of_others_gets_chunks_of_its_width():
    env = TransformedEnv(ForeignEnv(FLOATS), MultiAction(2))
    policy = TensorDictModule(lambda s: torch.zeros(2, 1), ["state"], ["action_chunk"])
    with pytest.raises(ExecutionError, match=r"H = 2, A = 3 at 'action_chunk', got \["):
        env.rollout(2, policy)


def observation():
    return TensorDict(
        {
            "observation": {"state": torch.full((2, 3), torch.nan)},
            "is_init": torch.ones(2, 1, dtype=torch.bool),
        },
        [2],
    )


def test_no_executor_passes_a_chunk_of_nan_on():
    echo = act_by(lambda s: s.unsqueeze(-2).expand(2, 4, 3), "action_chunk")
    for executor in (
        MultiStepActorWrapper(echo),
        TemporalEnsemble(echo, action_reference="absolute"),
    ):
        with pytest.raises(ExecutionError, match="nan at env index 0, step 0, dimen"):
            executor(observation())
    env = TransformedEnv(make_point(num_envs=2), MultiAction(3))
    chunks = constant((3, JOINTS), "action_chunk", float("nan"))
    with pytest.raises(ExecutionError, match="nan at env index 0, step 0, dimension 0"):
        env.rollout(2, chunks)


def test_a_wrapped_lerobot_policy_does_not_say_nan():
    wrapper = LeRobotPolicyWrapper(
        lambda batch: torch.full((2, 4, 3), torch.nan), action_dim=3, chunk_size=4
    )
    step = observation()
    step["observation", "state"] = torch.zeros(2, 3)
    step["observation", "image"] = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    step["language_instruction"] = "pick"
    with pytest.raises(SchemaError, match="expected finite actions at 'action_chunk'"):
        wrapper(step)


def test_an_evaluation_of_nan_has_no_rate():
    for env in (TabletopEnv(2, image_size=8), ToyVLAEnv(2, 4, success_steps=2)):
        nan = constant((2,), value=float("nan"))
        with pytest.raises(VLAError, match="expected finite actions at 'action', got"):
            evaluate(env, nan, 4, progress=False)


def test_an_executor_is_not_called_with_a_dict_of_arrays():
    executor = MultiStepActorWrapper(constant((3, JOINTS), "action_chunk"))
    with pytest.raises(
        ArgumentTypeError, match=r"a tensordict, got dict\. Convert a d"
    ):
        executor({"is_init": torch.ones(1, 1, dtype=torch.bool)})
