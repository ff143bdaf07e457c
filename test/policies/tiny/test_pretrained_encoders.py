"""Tiny policies with encoders that are given to them."""

from __future__ import annotations

import pytest
import torch
from encoder_folders import write_language_model, write_vision_model
from tensordict import TensorDict

from torchrl_vla.policies import (
    HEADS,
    BackboneConfig,
    TinyVLA,
    load_policy,
    make_critic,
    make_image_encoder,
    make_text_encoder,
    save_policy,
    to_stochastic,
)
from torchrl_vla.schema import InstructionTable, UnknownInstructionError
from torchrl_vla.testing import check_policy

pytest.importorskip("transformers")

TABLE = InstructionTable(["reach the red block", "reach the blue block", "go to one"])


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folders(tmp_path):
    return (
        str(write_language_model(tmp_path / "language")),
        str(write_vision_model(tmp_path / "vision")),
    )


def backbone(folders, frozen=True, cameras=None) -> BackboneConfig:
    torch.manual_seed(0)
    language, vision = folders
    return BackboneConfig(
        state_dim=2,
        hidden=16,
        cameras=cameras,
        text_encoder=make_text_encoder(language, dim=8, frozen=frozen),
        image_encoder=make_image_encoder(vision, resize="stretch", frozen=frozen),
    )


def make(head, config):
    return HEADS[head](
        action_dim=2, chunk_size=3, backbone=config, keys=KEYS, instructions=TABLE
    )


KEYS = TinyVLA(action_dim=1, chunk_size=1).keys


def batch(n=5, cameras=None) -> TensorDict:
    torch.manual_seed(1)
    image = torch.randint(0, 256, (n, 3, 12, 12), dtype=torch.uint8)
    images = image if cameras is None else dict.fromkeys(cameras, image)
    return TensorDict(
        {
            "observation": {"image": images, "state": torch.rand(n, 2)},
            "language_instruction": TABLE.ids[torch.arange(n) % 3],
        },
        [n],
    )


@pytest.mark.parametrize("head", HEADS)
def test_every_head_takes_pretrained_encoders(head, folders):
    policy = make(head, backbone(folders))
    check_policy(policy.eval(), batch())


@pytest.mark.parametrize("frozen", [True, False])
def test_a_policy_is_read_back_equal_without_what_it_was_made_from(
    frozen, folders, tmp_path, monkeypatch
):
    cameras = ("front", "wrist")
    policy = make("regression", backbone(folders, frozen, cameras)).eval()
    save_policy(tmp_path / "policy", policy)
    for folder in folders:
        (tmp_path / folder).rename(f"{folder} is gone")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    loaded = load_policy(tmp_path / "policy")
    data = batch(cameras=cameras)
    expected = policy(data.clone())["action_chunk"]
    assert torch.equal(loaded(data)["action_chunk"], expected)


def test_a_loaded_policy_needs_no_transformers_for_texts_that_it_knows(
    folders, tmp_path, monkeypatch
):
    config = backbone(folders)
    text_only = BackboneConfig(
        state_dim=2, cameras=(), hidden=16, text_encoder=config.text_encoder
    )
    policy = make("regression", text_only).eval()
    save_policy(tmp_path / "policy", policy)
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(
        "torchrl_vla.policies.encoders.frozen_text.read_features", lambda key: {}
    )
    from torchrl_vla.policies.encoders.text_models import load_language_model

    load_language_model.cache_clear()
    loaded = load_policy(tmp_path / "policy")
    assert torch.equal(loaded(batch())["action_chunk"], policy(batch())["action_chunk"])
    loaded.instructions = InstructionTable([*TABLE, "touch the green cube"])
    data = batch()
    data["language_instruction"] = loaded.instructions.ids[-1:].expand(5).contiguous()
    with pytest.raises(
        UnknownInstructionError,
        match=r"one of the 3 texts .*'touch the green cube'.*torchrl-vla\[vlm\]",
    ):
        loaded(data)


def test_two_policies_of_one_config_share_no_weight(folders):
    config = backbone(folders, frozen=False)
    first, second = (make("regression", config) for _ in range(2))
    pointers = {p.data_ptr() for p in first.parameters()}
    assert all(p.data_ptr() not in pointers for p in second.parameters())
    gaussian = to_stochastic(first)
    critic = make_critic(first)
    for copied in (gaussian, critic):
        assert all(p.data_ptr() not in pointers for p in copied.parameters())
    assert torch.equal(
        gaussian.predict_mean_and_log_std(batch())[0], first(batch())["action_chunk"]
    )


def test_frozen_weights_do_not_move_in_training(folders):
    policy = make("regression", backbone(folders)).train()
    vision = {k: v.clone() for k, v in policy.backbone.vision.state_dict().items()}
    trained = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    policy(batch())["action_chunk"].square().mean().backward()
    optimizer.step()
    after = policy.backbone.vision.state_dict()
    assert all(torch.equal(after[name], value) for name, value in vision.items())
    assert policy.backbone.text.out.weight.grad.abs().sum() > 0
