"""Low-rank adapters on LeRobot policies: trained, saved, loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lerobot_checkpoints import A, E, Made, S, make_policy, observe, stats

from torchrl_vla.objectives import LeRobotLoss
from torchrl_vla.policies import LeRobotPipeline, LeRobotPolicyWrapper
from torchrl_vla.schema import SchemaError

pytestmark = pytest.mark.lerobot

TARGETS = {
    "act": ["linear1", "linear2", "action_head"],
    "smolvla": r".*lm_expert.*\.(q|v)_proj|.*\.(action_in_proj|action_out_proj)",
}


@pytest.fixture
def base(checkpoint, tmp_path):
    """Return a copy of a checkpoint, which a test may move or delete."""

    def make(name: str) -> Made:
        made = checkpoint(name)
        folder = shutil.copytree(made.folder, tmp_path / "base" / name)
        return Made(folder, made.cameras, made.environment_state, made.reads_text)

    return make


def adapt(made: Made, name: str) -> LeRobotPolicyWrapper:
    """Load a checkpoint and put an untrained LoRA on it."""
    import peft

    plain = LeRobotPolicyWrapper.from_pretrained(made.folder)
    torch.manual_seed(1)
    lora = peft.LoraConfig(r=2, target_modules=TARGETS[name])
    return wrap(peft.get_peft_model(plain.policy, lora))


def wrap(adapted) -> LeRobotPolicyWrapper:
    from lerobot.policies.factory import make_pre_post_processors

    before, after = make_pre_post_processors(adapted.config, dataset_stats=stats())
    return LeRobotPolicyWrapper(adapted, pipeline=LeRobotPipeline(before, after))


def make_batch(made: Made, policy: LeRobotPolicyWrapper):
    (td,) = observe(made, 1, 3)
    steps = len(policy.target_steps)
    generator = torch.Generator().manual_seed(2)
    td["action_chunk"] = torch.randn(3, steps, A, generator=generator)
    td["action_is_pad"] = (torch.arange(steps) >= steps - 2).expand(3, -1)
    return td


def predict(policy: LeRobotPolicyWrapper, td) -> torch.Tensor:
    torch.manual_seed(3)
    return policy(td.copy())["action_chunk"]


def train(policy: LeRobotPolicyWrapper, td, steps: int = 3) -> None:
    loss = LeRobotLoss(policy).train()
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(td)["loss_lerobot"].backward()
        optimizer.step()
    policy.eval()


@pytest.mark.parametrize("name", TARGETS)
def test_an_untrained_adapter_changes_no_action(name, base):
    made = base(name)
    policy, plain = adapt(made, name), LeRobotPolicyWrapper.from_pretrained(made.folder)
    td = make_batch(made, plain)
    assert torch.equal(predict(policy, td), predict(plain, td))
    assert (policy.chunk_size, policy.n_action_steps, policy.in_keys) == (
        plain.chunk_size,
        plain.n_action_steps,
        plain.in_keys,
    )


@pytest.mark.parametrize("name", TARGETS)
def test_training_moves_the_adapter_and_nothing_else(name, base):
    made = base(name)
    policy = adapt(made, name)
    td = make_batch(made, policy)
    before = {key: value.clone() for key, value in policy.state_dict().items()}
    actions = predict(policy, td)
    train(policy, td)
    moved = {
        key
        for key, value in policy.state_dict().items()
        if not value.equal(before[key])
    }
    assert moved == {key for key in before if ".lora_A." in key or ".lora_B." in key}
    with_gradient = {k for k, p in policy.named_parameters() if p.grad is not None}
    assert with_gradient == moved
    assert not torch.equal(predict(policy, td), actions)


@pytest.mark.parametrize("name", TARGETS)
def test_a_saved_adapter_loads_on_its_base_and_acts_the_same(name, base, tmp_path):
    made = base(name)
    policy = adapt(made, name)
    td = make_batch(made, policy)
    train(policy, td)
    expected = predict(policy, td)
    policy.to_folder(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    again = LeRobotPolicyWrapper.from_pretrained(tmp_path / "adapter")
    assert torch.equal(predict(again, td), expected)
    # A loaded adapter can be trained on, and saved again.
    train(again, td)
    expected_again = predict(again, td)
    assert not torch.equal(expected_again, expected)
    again.to_folder(tmp_path / "again")
    third = LeRobotPolicyWrapper.from_pretrained(tmp_path / "again")
    assert torch.equal(predict(third, td), expected_again)


def test_lerobot_loads_the_adapter_that_we_saved(base, tmp_path):
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import make_policy, make_pre_post_processors

    made = base("act")
    policy = adapt(made, "act")
    td = make_batch(made, policy)
    train(policy, td)
    folder = tmp_path / "adapter"
    policy.to_folder(folder)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    sizes = {"action": A, "observation.state": S, "observation.environment_state": E}
    features = {
        name: {"dtype": "float32", "shape": (size,), "names": None}
        for name, size in sizes.items()
    }
    dataset = SimpleNamespace(features=features, stats=stats())
    theirs = make_policy(config, ds_meta=dataset)
    before, after = make_pre_post_processors(config, pretrained_path=str(folder))
    batch = {
        "observation.state": td["observation", "state"],
        "observation.environment_state": td["observation", "environment_state"],
    }
    chunk = after(theirs.predict_action_chunk(before(batch)))
    assert torch.equal(chunk, predict(policy, td))


def test_an_adapter_made_by_lerobot_is_wrapped_and_saved_likewise(base, tmp_path):
    import peft

    made = base("act")
    plain = LeRobotPolicyWrapper.from_pretrained(made.folder).policy
    lora = peft.LoraConfig(r=2, target_modules=TARGETS["act"], init_lora_weights=False)
    policy = wrap(plain.wrap_with_peft(lora))
    td = make_batch(made, policy)
    folder = tmp_path / "adapter"
    policy.to_folder(folder)
    again = LeRobotPolicyWrapper.from_pretrained(folder)
    assert torch.equal(predict(again, td), predict(policy, td))


def test_an_adapter_whose_base_is_gone_says_where_it_was(base, tmp_path):
    made = base("act")
    folder = tmp_path / "adapter"
    adapt(made, "act").to_folder(folder)
    moved = made.folder.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"base.act.*base_model_name_or_path"):
        LeRobotPolicyWrapper.from_pretrained(folder)
    rewrite(folder / "adapter_config.json", base_model_name_or_path=str(moved))
    assert LeRobotPolicyWrapper.from_pretrained(folder).chunk_size == 10
    (moved / "model.safetensors").unlink()
    with pytest.raises(SchemaError, match=r"expected 'model\.safetensors' in .*moved"):
        LeRobotPolicyWrapper.from_pretrained(folder)


def rewrite(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_adapter_that_names_no_base_is_refused(base, tmp_path):
    folder = tmp_path / "adapter"
    adapt(base("act"), "act").to_folder(folder)
    rewrite(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(SchemaError, match="to name the checkpoint that it was trained"):
        LeRobotPolicyWrapper.from_pretrained(folder)


def test_an_adapter_with_a_weight_missing_does_not_load_in_part(base, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    adapt(base("act"), "act").to_folder(folder)
    path = folder / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop("base_model.model.model.action_head.lora_B.weight")
    save_file(weights, path)
    with (
        pytest.warns(UserWarning, match="missing adapter keys"),
        pytest.raises(SchemaError, match=r"action_head\.lora_B.*would stay random"),
    ):
        LeRobotPolicyWrapper.from_pretrained(folder)


def test_an_adapter_on_weights_that_are_on_no_disk_is_not_saved(base, tmp_path):
    import peft

    lora = peft.LoraConfig(r=2, target_modules=TARGETS["act"])
    untrained = wrap(peft.get_peft_model(make_policy("act"), lora))
    with pytest.raises(SchemaError, match="no such folder at config"):
        untrained.to_folder(tmp_path / "untrained")
    trained = adapt(base("act"), "act")
    with torch.no_grad():
        trained.policy.get_base_model().model.action_head.base_layer.bias += 1
    with pytest.raises(SchemaError, match=r"others at \['model.action_head.bias'\]"):
        trained.to_folder(tmp_path / "trained")
