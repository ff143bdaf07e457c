from __future__ import annotations

import json

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from tiny_options import make_tiny
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from users_policies import LowRank, Silent, Sized, TenLines

from torchrl_vla.errors import SettingsError
from torchrl_vla.policies import (
    FlowSDENoise,
    GaussianAround,
    TinyDiffusionVLA,
    TinyFlowVLA,
    TinyGaussianVLA,
    TinyTokenVLA,
    TinyVLA,
    as_policy,
    load_policy,
    make_from_factory,
    save_policy,
    to_stochastic,
)
from torchrl_vla.schema import (
    ROBOT_SPACE,
    InstructionTable,
    PolicySpace,
    RobotDatasetMetadata,
    SchemaError,
)
from torchrl_vla.tokenizers import OpenVLAActionTokenizer, UniformActionTokenizer

SMALL = {
    "action_dim": 2,
    "chunk_size": 3,
    "state_dim": 4,
    "cameras": (),
    "hidden": 16,
    "depth": 1,
}


def batch() -> TensorDict:
    torch.manual_seed(1)
    table = InstructionTable(["pick", "place"])
    return TensorDict(
        {
            "observation": {"state": torch.randn(5, 4)},
            "language_instruction": table.encode(["pick", "place"] * 2 + ["pick"]),
        },
        [5],
    )


def tiny(cls=TinyVLA, **options):
    torch.manual_seed(0)
    table = InstructionTable(["pick", "place"])
    return make_tiny(cls, **{**SMALL, "instructions": table, **options}).eval()


def chunk(policy):
    torch.manual_seed(2)
    with torch.no_grad():
        return policy(batch())["action_chunk"]


def comes_back(policy, folder):
    expected = chunk(as_policy(policy))
    save_policy(folder, policy)
    again = load_policy(folder)
    torch.testing.assert_close(chunk(again), expected, rtol=0, atol=0)
    return again


TOKENIZERS = {
    "uniform": lambda: UniformActionTokenizer(5, low=-1.0, high=1.0),
    "vocabulary": lambda: OpenVLAActionTokenizer(
        9, norm_low=torch.tensor([-1.0, 0.5]), norm_high=torch.tensor([1.0, 2.0])
    ),
}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (TinyVLA, {}),
        (TinyGaussianVLA, {"initial_std": 0.3}),
        (TinyFlowVLA, {"noise": FlowSDENoise(0.25), "num_steps": 2}),
        (TinyDiffusionVLA, {"num_steps": 2, "num_levels": 10}),
    ],
)
def test_a_tiny_policy_comes_back_equal(cls, options, tmp_path):
    policy = tiny(cls, **options)
    policy.policy_space = PolicySpace("model", "abc", "mean_std")
    again = comes_back(policy, tmp_path)
    assert type(again) is cls
    assert again.policy_space == policy.policy_space
    assert again.instructions == policy.instructions
    assert again.backbone_config == policy.backbone_config


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_token_policy_comes_back_with_its_tokenizer(kind, tmp_path):
    policy = tiny(TinyTokenVLA, action_tokenizer=TOKENIZERS[kind]())
    again = comes_back(policy, tmp_path)
    tokens = torch.tensor([[0, 1], [3, 4]])
    assert torch.equal(again.decode(tokens), policy.decode(tokens))


def test_ten_lines_without_a_base_class_are_a_policy_that_comes_back(tmp_path):
    policy = as_policy(TenLines())
    assert (policy.chunk_size, policy.action_dim) == (3, 2)
    assert policy.in_keys == [("observation", "state")]
    policy(batch())
    again = comes_back(policy, tmp_path)
    assert type(again.module) is TenLines


def test_arguments_in_config_and_a_returned_tensordict_are_taken(tmp_path):
    again = comes_back(Sized((4, 2), scale=0.5), tmp_path)
    assert again.module.config == {"sizes": (4, 2), "scale": 0.5}


def test_a_target_never_passes_for_a_prediction():
    class Lazy(nn.Module):
        chunk_size, action_dim = 3, 2

        def forward(self, tensordict):
            return tensordict

    data = batch().set("action_chunk", torch.zeros(5, 3, 2))
    with pytest.raises(SchemaError, match=r"Lazy: expected forward.*got TensorDict"):
        as_policy(Lazy())(data)


@pytest.mark.parametrize("thing", [lambda td: td, {"a": 1}, "folder", TenLines])
def test_what_is_no_module_is_refused_with_what_to_write(thing):
    with pytest.raises(TypeError, match=r"^as_policy: expected .* Write an nn.Module"):
        as_policy(thing)


def test_a_size_that_nobody_declared_is_asked_for():
    module = TensorDictModule(nn.Linear(4, 2), ["s"], ["action_chunk"])
    with pytest.raises(SchemaError, match=r"expected chunk_size of TensorDictModule"):
        as_policy(module)
    policy = as_policy(module, chunk_size=1, action_dim=2)
    assert policy.in_keys == ["s"]
    with pytest.raises(SchemaError, match=r"chunk_size=3, the attribute of TenLines"):
        as_policy(TenLines(), chunk_size=4)
    with pytest.raises(SchemaError, match=r"module that writes 'action_chunk', got"):
        as_policy(
            TensorDictModule(nn.Linear(4, 2), ["s"], ["a"]), chunk_size=1, action_dim=2
        )


def test_a_chunk_of_another_shape_is_refused():
    policy = as_policy(Silent(4), chunk_size=1)
    policy.chunk_size = 2
    with pytest.raises(SchemaError, match=r"expected \[\*B, H, A\] = \[5, 2, 2\]"):
        policy(batch())


def test_what_could_not_be_rebuilt_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SchemaError, match=r"none for \['size'\]\. Give the class an a"):
        save_policy(tmp_path / "p", Silent(4))
    assert not (tmp_path / "p").exists()


def test_a_class_that_cannot_be_imported_is_refused_with_the_reason(tmp_path):
    class Local(TenLines):
        pass

    module = Local()
    as_policy(module)(batch())
    with pytest.raises(SchemaError, match=r"Local', which is defined inside a functio"):
        save_policy(tmp_path / "p", module)
    assert not (tmp_path / "p").exists()


def test_a_part_that_the_constructor_does_not_make_is_refused(tmp_path):
    module = Sized((4, 2))
    module.extra = nn.Linear(1, 1)
    with pytest.raises(SchemaError, match=r"Let the constructor make every part"):
        save_policy(tmp_path / "p", module)


def test_a_policy_of_a_factory_is_stored_by_its_name(tmp_path):
    metadata = RobotDatasetMetadata("d", state_names=("a", "b", "c", "d"))
    policy = make_from_factory("users_policies:make_silent", metadata=metadata)
    again = comes_back(policy, tmp_path)
    assert type(again.module) is Silent
    with pytest.raises(SchemaError, match=r"one that also needs \['secret'\]"):
        make_from_factory("users_policies:needs_more", metadata=metadata)
    for name in ("os:abort", "users_policies", "users_policies:none"):
        with pytest.raises(SchemaError, match=r"make_from_factory: expected"):
            make_from_factory(name, metadata=metadata)


def test_a_folder_names_no_class_but_a_modules(tmp_path):
    save_policy(tmp_path, tiny())
    config = json.loads((tmp_path / "config.json").read_text())
    config["description"]["class"] = "torchrl_vla.schema:InstructionTable"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SchemaError, match=r"load_policy: expected an nn.Module at"):
        load_policy(tmp_path)


def whole(policy):
    return torch.compile(policy, backend="eager")


def in_place(policy):
    policy.compile(backend="eager")
    return policy


def parts(policy):
    for name, part in list(policy.named_children()):
        setattr(policy, name, torch.compile(part, backend="eager"))
    return policy


@pytest.mark.parametrize("make", [whole, in_place, parts])
@pytest.mark.parametrize("cls", [TinyVLA, TinyGaussianVLA])
def test_compiled_policies_are_saved_under_plain_names(make, cls, tmp_path):
    expected = chunk(tiny(cls))
    save_policy(tmp_path, make(tiny(cls)))
    names = set(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert names == set(tiny(cls).state_dict())
    torch.testing.assert_close(chunk(load_policy(tmp_path)), expected, rtol=0, atol=0)


def normed(layer):
    parametrizations.weight_norm(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def old_norm(layer):
    nn.utils.weight_norm(layer)


def lora(layer):
    parametrize.register_parametrization(layer, "weight", LowRank(*layer.weight.shape))


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [normed, old_norm, lora])
def test_parametrized_weights_are_saved_as_what_they_amount_to(change, tmp_path):
    policy, plain = tiny(), set(tiny().state_dict())
    change(policy.backbone.entry)
    expected = chunk(policy)
    save_policy(tmp_path, policy)
    assert set(torch.load(tmp_path / "weights.pt", weights_only=True)) == plain
    torch.testing.assert_close(chunk(load_policy(tmp_path)), expected)


def test_weights_keep_their_dtype(tmp_path):
    save_policy(tmp_path, tiny().to(torch.bfloat16))
    weights = load_policy(tmp_path).state_dict()
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}


def test_saving_draws_no_random_number(tmp_path):
    policy = tiny()
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    save_policy(tmp_path, policy)
    assert torch.equal(torch.rand(1), expected)


def test_a_users_policy_becomes_the_mean_of_a_gaussian_that_comes_back(tmp_path):
    module = TenLines().eval()
    mean = chunk(as_policy(module))
    policy = to_stochastic(module, initial_std=0.3)
    assert isinstance(policy, GaussianAround)
    assert torch.equal(chunk(policy), mean)
    torch.testing.assert_close(policy.log_std.exp(), torch.full((2,), 0.3))
    assert to_stochastic(policy) is policy
    comes_back(policy, tmp_path)


def test_tiny_policies_become_stochastic_by_their_head():
    cloned = tiny()
    cloned.policy_space = PolicySpace("model", "abc", "mean_std")
    gaussian = to_stochastic(cloned, initial_std=0.3)
    assert isinstance(gaussian, TinyGaussianVLA)
    assert gaussian.policy_space == cloned.policy_space
    flow = tiny(TinyFlowVLA)
    assert to_stochastic(flow, flow_noise=0.4) is flow
    assert flow.noise.scale == 0.4


@pytest.mark.parametrize(
    ("make", "option"),
    [
        (tiny, "flow_noise"),
        (lambda: tiny(TinyFlowVLA), "initial_std"),
        (lambda: to_stochastic(tiny()), "initial_std"),
        (lambda: to_stochastic(tiny(TinyFlowVLA)), "flow_noise"),
    ],
)
def test_an_option_without_an_effect_is_refused_and_changes_nothing(make, option):
    policy = make()
    had = policy.has_likelihood
    with pytest.raises(SettingsError, match=rf"no \['{option}'\] \(--{option[:4]}"):
        to_stochastic(policy, **{option: 0.3})
    assert policy.has_likelihood is had


def test_what_cannot_be_made_stochastic_is_refused():
    policy = as_policy(TenLines())
    policy.policy_space = ROBOT_SPACE
    with pytest.raises(TypeError, match=r"^to_stochastic: expected .* got ModulePolic"):
        to_stochastic(policy)
    with pytest.raises(TypeError, match=r"^to_stochastic: .*DiffusionConfig\(min_std"):
        to_stochastic(tiny(TinyDiffusionVLA, min_std=0.0))
    with pytest.raises(TypeError, match=r"^as_policy: expected a policy or an nn\.Mod"):
        to_stochastic(lambda td: td)


def test_images_of_another_size_than_in_training_are_refused():
    policy = tiny(cameras=("front",), image_sizes=((3, 32, 32),))
    data = batch()

    def image(*shape):
        value = torch.zeros(5, *shape, dtype=torch.uint8)
        return data.clone().set(("observation", "image"), {"front": value})

    assert policy(image(3, 32, 32))["action_chunk"].shape == (5, 3, 2)
    for shape in ((3, 24, 24), (32, 32, 3), (32, 3, 32)):
        with pytest.raises(
            SchemaError,
            match=r"= \(3, 32, 32\), the size that the policy was trained with, of 'fr"
            r".*Resize\(32, 32\)",
        ):
            policy(image(*shape))


class ReadsTokens(nn.Module):
    """A user's language model: it reads tokens [*B, L] where others read text."""

    chunk_size, action_dim = 4, 2
    in_keys = ("language_instruction",)

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(100, 8)

    def forward(self, tensordict):
        tokens = tensordict["language_instruction"]
        return self.embedding(tokens).mean(-2).unflatten(-1, (4, 2))


def test_a_policy_may_read_tokenized_instructions():
    policy = as_policy(ReadsTokens())
    tokens = torch.arange(14).view(2, 7)
    out = policy(TensorDict({"language_instruction": tokens}, [2]))
    expected = policy.module.embedding(tokens).mean(1).view(2, 4, 2)
    assert torch.equal(out["action_chunk"], expected)
