"""Policy types of third parties, and functions between a policy's processors."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from lerobot_checkpoints import Made, make_policy, make_processors, observe, stats
from tensordict import TensorDict

from torchrl_vla.data import DemonstrationDataset
from torchrl_vla.policies import (
    FlowSDENoise,
    LeRobotPipeline,
    LeRobotPolicyWrapper,
    check_lerobot_health,
)
from torchrl_vla.policies.lerobot import KINDS, LeRobotFlowPolicy, PolicyKind
from torchrl_vla.recipes import TrainingSettings, fit_lerobot_policy, train_lerobot
from torchrl_vla.schema import (
    FeatureStatistics,
    InstructionTable,
    RobotDatasetMetadata,
    SchemaError,
)

pytestmark = pytest.mark.lerobot


def predict(policy, batch):
    return policy.predict_action_chunk(batch)


@pytest.fixture
def plugin():
    """LeRobot with the plugin's type in its registry."""
    import lerobot_policy_linear

    return lerobot_policy_linear.LinearConfig


def make_dataset(count=40) -> DemonstrationDataset:
    """Actions are twice the state, far from 0."""
    generator = torch.Generator().manual_seed(0)
    state = 50 + 10 * torch.randn(count, 3, generator=generator)
    table = InstructionTable(("double it",))
    frames = TensorDict(
        {
            "observation": {"state": state},
            "language_instruction": table.ids.repeat(count),
            "action": 2 * state,
            "episode_index": torch.zeros(count, dtype=torch.int64),
            "frame_index": torch.arange(count),
        },
        [count],
    )
    metadata = RobotDatasetMetadata(
        "doubling",
        action_statistics=FeatureStatistics.from_samples(2 * state),
        state_statistics=FeatureStatistics.from_samples(state),
    )
    return DemonstrationDataset(frames, metadata, table)


def test_predict_fn_stands_between_the_checkpoints_processors(checkpoint):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    own = LeRobotPolicyWrapper.from_pretrained(made.folder)(td.clone())["action_chunk"]
    policy = LeRobotPolicyWrapper.from_pretrained(made.folder, predict_fn=predict)
    assert torch.equal(policy(td.clone())["action_chunk"], own)
    seen = {}

    def zeros(policy, batch):
        seen.update(batch)
        return torch.zeros(2, 10, 7)

    policy = LeRobotPolicyWrapper.from_pretrained(made.folder, predict_fn=zeros)
    statistics = stats()
    # 0 in model space is the mean in robot space.
    mean = statistics["action"]["mean"].expand(2, 10, 7)
    assert torch.equal(policy(td.clone())["action_chunk"], mean)
    state = statistics["observation.state"]
    normalized = (td["observation", "state"] - state["mean"]) / (state["std"] + 1e-8)
    assert torch.allclose(seen["observation.state"], normalized)


def test_predict_fn_may_have_a_chunk_of_its_own_size(checkpoint):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    policy = LeRobotPolicyWrapper.from_pretrained(
        made.folder, predict_fn=lambda p, b: predict(p, b)[:, :6], chunk_size=6
    )
    assert (policy.chunk_size, policy.n_action_steps) == (6, 6)
    assert policy(td)["action_chunk"].shape == (2, 6, 7)


def test_predict_fn_of_a_policy_with_a_history_reads_all_frames(checkpoint):
    made = checkpoint("diffusion")
    shapes = {}

    def record(policy, batch):
        shapes.update({n: tuple(batch[n].shape) for n in ("observation.state",)})
        return torch.zeros(2, 3, 7)

    policy = LeRobotPolicyWrapper.from_pretrained(made.folder, predict_fn=record)
    (td,) = observe(made, 1, 2)
    policy.make_environment_transform()[0].begin(td)
    policy(td)
    assert shapes == {"observation.state": (2, 2, 5)}


def test_a_predict_fn_that_returns_something_else_is_refused(checkpoint):
    made = checkpoint("act")
    (td,) = observe(made, 1, 2)
    policy = LeRobotPolicyWrapper.from_pretrained(
        made.folder, predict_fn=lambda policy, batch: torch.zeros(2, 7)
    )
    with pytest.raises(SchemaError, match=r"7\] from ACTPolicy, got .*\[2, 7\]"):
        policy(td)
    with pytest.raises(TypeError, match=r"argument 'predict_fn', got str\."):
        LeRobotPolicyWrapper.from_pretrained(made.folder, predict_fn="predict")


def test_a_predict_fn_with_a_pipeline_is_between_them():
    policy = make_policy("act")
    pipeline = LeRobotPipeline(*make_processors(policy))
    wrapper = LeRobotPolicyWrapper(policy, pipeline=pipeline, predict_fn=predict)
    assert wrapper.pipeline is pipeline
    assert wrapper.noise_source is None


def test_a_predict_fn_does_not_make_processors_unnecessary():
    policy = make_policy("act")
    with pytest.raises(SchemaError, match=r"ACTPolicy with its preprocessor.*function"):
        LeRobotPolicyWrapper(policy, predict_fn=predict, action_dim=7, chunk_size=10)
    wrapper = LeRobotPolicyWrapper(
        lambda batch: torch.zeros(len(batch["task"]), 10, 7),
        action_dim=7,
        chunk_size=10,
        image_key=None,
    )
    (td,) = observe(Made(Path(), (), False, True), 1, 2)
    assert wrapper(td)["action_chunk"].shape == (2, 10, 7)


def test_likelihoods_do_not_go_through_a_predict_fn(checkpoint):
    policy = LeRobotPolicyWrapper.from_pretrained(
        checkpoint("smolvla").folder, predict_fn=predict
    )
    assert policy.to_stochastic() is None
    with pytest.raises(SchemaError, match="with a predict_fn, which its steps would"):
        LeRobotFlowPolicy(policy, noise=FlowSDENoise(0.5))


def test_a_plugins_type_is_trained_and_loaded_with_predict_fn(plugin, tmp_path):
    dataset = make_dataset()
    torch.manual_seed(0)
    policy = fit_lerobot_policy("linear", dataset, predict_fn=predict)
    settings = TrainingSettings(steps=400, batch_size=20)
    train_lerobot(policy, dataset, settings, train_on_padding=True, progress=False)
    td = dataset.frames[:5].exclude("language_instruction")
    policy = LeRobotPolicyWrapper(
        policy.policy,
        pipeline=policy.pipeline,
        predict_fn=predict,
        instruction_key=None,
    )
    chunk = policy(td.clone())["action_chunk"]
    assert chunk.shape == (5, 4, 3)
    policy.to_folder(tmp_path)
    again = LeRobotPolicyWrapper.from_pretrained(
        tmp_path, predict_fn=predict, instruction_key=None
    )
    assert torch.equal(again(td)["action_chunk"], chunk)
    with pytest.raises(SchemaError, match=r"got 'linear': .*or pass predict_fn="):
        LeRobotPolicyWrapper.from_pretrained(tmp_path)


def test_a_plugins_type_is_one_entry_of_the_registry(plugin, monkeypatch, tmp_path):
    monkeypatch.setitem(KINDS, "linear", PolicyKind(samples=False))
    dataset = make_dataset()
    policy = fit_lerobot_policy("linear", dataset, config={"chunk_size": 3})
    assert policy.in_keys == [("observation", "state")]
    chunk = policy.eval()(dataset.frames[:5])["action_chunk"]
    # Its answer is near 0 in the data's spread, so near their mean in robot space.
    assert (chunk - 100).abs().max() < 3 * 20
    policy.to_folder(tmp_path)
    assert check_lerobot_health(tmp_path).ok
    other = make_dataset(20)
    tuned = fit_lerobot_policy(tmp_path, other)
    step = next(s for s in tuned.pipeline.postprocessor.steps if hasattr(s, "norm_map"))
    assert torch.allclose(
        step._tensor_stats["action"]["mean"],
        other.metadata.action_statistics.mean.float(),
    )


def test_an_installed_plugin_is_found_by_its_name(monkeypatch, tmp_path, plugin):
    """Packages that LeRobot's command line would import register their types."""
    from lerobot.configs.policies import PreTrainedConfig

    from torchrl_vla.policies.lerobot.load.lerobot_checkpoint import find_plugins

    utils = importlib.import_module("lerobot.utils.import_utils")
    if not hasattr(utils, "register_third_party_plugins"):
        pytest.skip("this LeRobot has no plugins")
    package = tmp_path / "lerobot_policy_square"
    package.mkdir()
    source = Path(sys.modules["lerobot_policy_linear.configuration_linear"].__file__)
    text = source.read_text().replace('"linear"', '"square"')
    (package / "configuration_square.py").write_text(text)
    (package / "__init__.py").write_text(
        "from lerobot_policy_square.configuration_square import LinearConfig\n"
    )
    info = tmp_path / "lerobot_policy_square-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: lerobot_policy_square\nVersion: 1.0\n"
    )
    with pytest.raises(SchemaError, match=r"registers, got 'square'.*register_subclas"):
        find_plugins("square")
    monkeypatch.syspath_prepend(tmp_path)
    find_plugins("square")
    assert "square" in PreTrainedConfig.get_known_choices()
