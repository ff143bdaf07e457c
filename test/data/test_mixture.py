from __future__ import annotations

import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import Compose

from torchrl_vla.data import DemonstrationDataset, MixtureReplay, MixtureSizes, collect
from torchrl_vla.data.mixture.embodiment import pad_last, resize
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.objectives import BCLoss
from torchrl_vla.schema import (
    FeatureStatistics,
    GripperConvention,
    InstructionTable,
    MetadataError,
    MissingKeyError,
    RobotDatasetMetadata,
    SchemaError,
    UnknownInstructionError,
)
from torchrl_vla.transforms import ActionChunkTransform, ActionScaling, StateScaling


def make_dataset(
    name="made", lengths=(3, 5), action=2, state=3, images=None, seed=0, **metadata
):
    """Random numbers; ``images`` maps a camera (None = unnamed) to a size."""
    generator = torch.Generator().manual_seed(seed)
    episode = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    frame = torch.cat([torch.arange(length) for length in lengths])
    count = len(frame)
    table = InstructionTable([f"{name} push", "lift"])
    frames = TensorDict(
        {
            "language_instruction": table.ids[episode % 2],
            "action": 3 + 2 * torch.randn(count, action, generator=generator),
            "episode_index": episode,
            "frame_index": frame,
        },
        [count],
    )
    statistics = {"action_statistics": FeatureStatistics.from_samples(frames["action"])}
    if state:
        values = 5 * torch.randn(count, state, generator=generator) - 1
        frames["observation", "state"] = values
        statistics["state_statistics"] = FeatureStatistics.from_samples(values)
    for camera, size in (images or {}).items():
        shape = (count, 3, *size)
        image = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        key = ("observation", "image") if camera is None else camera_key(camera)
        frames[key] = image
    return DemonstrationDataset(
        frames, RobotDatasetMetadata(name, **{**statistics, **metadata}), table
    )


def camera_key(name):
    return ("observation", "image", name)


def two_robots():
    gripper = GripperConvention(dim=3, open=1.0, closed=0.0)
    return [
        make_dataset("small", action=2, state=3, seed=1, control_frequency_hz=10.0),
        make_dataset("large", (4, 2, 6), 4, 1, seed=2, grippers=(gripper,)),
    ]


def mix(datasets, weights=None, **options):
    options = {"batch_size": 16, "chunk_size": 3, **options}
    return MixtureReplay(datasets, weights, **options)


def alone(dataset, chunk_size, mode="mean_std"):
    """What a dataset gives when it is the only one, in model space."""
    transforms = [
        ActionChunkTransform(chunk_size, storage=dataset.storage),
        ActionScaling.from_metadata(dataset.metadata, mode),
        StateScaling.from_metadata(dataset.metadata, mode),
    ]
    return dataset.replay_buffer(1, transform=Compose(*transforms))


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantile"])
def test_each_row_equals_the_row_of_its_own_dataset(mode):
    datasets = two_robots()
    mixture = mix(datasets, mode=mode, batch_size=64)
    buffers = [alone(dataset, 3, mode) for dataset in datasets]
    for row in mixture.sample():
        member = int(row["embodiment_index"])
        frames = datasets[member].frames
        same = (frames["episode_index"] == row["episode_index"]) & (
            frames["frame_index"] == row["frame_index"]
        )
        (expected,) = buffers[member][same.nonzero().squeeze(-1)]
        action, state = ((2, 3), (4, 1))[member]
        assert torch.equal(row["action"][:action], expected["action"])
        assert torch.equal(row["action_chunk"][:, :action], expected["action_chunk"])
        assert torch.equal(row["action_is_pad"], expected["action_is_pad"])
        assert torch.equal(
            row["observation", "state"][:state], expected["observation", "state"]
        )
        assert row["language_instruction"] == expected["language_instruction"]
        assert (row["action"][action:] == 0).all()
        assert (row["action_chunk"][:, action:] == 0).all()
        assert (row["observation", "state"][state:] == 0).all()
        assert row["action_dim_is_pad"].tolist() == [d >= action for d in range(4)]
        assert row["state_dim_is_pad"].tolist() == [d >= state for d in range(3)]


def test_rows_come_back_in_the_order_of_their_indices():
    datasets = two_robots()  # 8 and 12 frames
    rows = mix(datasets)[torch.tensor([19, 0, 8, 7, 0])]
    assert rows["embodiment_index"].tolist() == [1, 0, 1, 0, 0]
    assert rows["frame_index"].tolist() == [5, 0, 0, 4, 0]
    assert mix(datasets)[:]["embodiment_index"].tolist() == [0] * 8 + [1] * 12
    assert mix(datasets)[11]["frame_index"] == 3


def test_the_grippers_of_one_robot_stay_unscaled():
    datasets = two_robots()
    mixture = mix(datasets)
    rows = mixture[torch.arange(8, 20)]
    assert torch.equal(rows["action"][:, 3], datasets[1].frames["action"][:, 3])


def test_denormalized_actions_are_those_of_each_rows_own_robot():
    datasets = two_robots()
    mixture = mix(datasets)
    rows = mixture[torch.arange(20)]
    index = rows["embodiment_index"]
    actions = mixture.denormalize(rows["action"], index)
    assert torch.allclose(actions[:8, :2], datasets[0].frames["action"], atol=1e-6)
    assert torch.allclose(actions[8:], datasets[1].frames["action"], atol=1e-6)
    assert (actions[:8, 2:] == 0).all()
    chunks = mixture.denormalize(rows["action_chunk"], index)
    assert torch.equal(chunks[:, 0], actions)


def test_an_embodiment_denormalizes_as_the_mixture_does():
    mixture = mix(two_robots())
    chunk = torch.randn(5, 3, 4)
    for member, size in enumerate((2, 4)):
        index = torch.full((5,), member)
        ours = mixture.embodiments[member].to_robot_space(chunk)
        assert ours.shape == (5, 3, size)
        assert torch.equal(ours, mixture.denormalize(chunk, index)[..., :size])


def test_an_embodiment_converts_an_observation_like_a_training_row():
    datasets = two_robots()
    mixture = mix(datasets)
    observation = datasets[1].frames[4].select("observation", "language_instruction")
    live = mixture.embodiments[1].to_model_space(observation)
    row = mixture[torch.tensor([12])][0]
    assert "action" not in live
    for key in live.keys(True, True):
        assert torch.equal(live[key], row[key]), key


@settings(max_examples=50, deadline=None)
@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    size=st.integers(1, 5),
    extra=st.integers(0, 4),
)
def test_padding_is_undone_by_cutting(batch, size, extra):
    value = torch.randn(*batch, size)
    padded = pad_last(value, size + extra)
    assert torch.equal(padded[..., :size], value)
    assert (padded[..., size:] == 0).all()


@settings(max_examples=20, deadline=None)
@given(
    dims=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    extra=st.integers(0, 2),
    seed=st.integers(0, 100),
)
def test_model_space_and_back_is_the_stored_action(dims, extra, seed):
    datasets = [
        make_dataset(str(i), (2, 3), action=dim, seed=seed + i)
        for i, dim in enumerate(dims)
    ]
    mixture = mix(datasets, sizes=MixtureSizes(action_dim=max(dims) + extra))
    rows = mixture[:]
    back = mixture.denormalize(rows["action"], rows["embodiment_index"])
    for member, dataset in enumerate(datasets):
        mine = back[rows["embodiment_index"] == member]
        torch.testing.assert_close(mine[:, : dims[member]], dataset.frames["action"])
        assert (mine[:, dims[member] :] == 0).all()


@pytest.mark.parametrize("weights", [[1, 1], [3.0, 1.0], [0.02, 0.08], None])
def test_datasets_are_sampled_by_weight_and_frames_uniformly(weights):
    datasets = [make_dataset("a", (2, 1)), make_dataset("b", (4, 1))]
    mixture = mix(datasets, weights, batch_size=8000, seed=3)
    shares = torch.tensor([3, 5] if weights is None else weights, dtype=torch.float64)
    shares = shares / shares.sum()
    expected = torch.cat([shares[:1].expand(3) / 3, shares[1:].expand(5) / 5]) * 8000
    counts = torch.bincount(mixture.sample()["index"], minlength=8)
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert chi_square < 24.3  # 99.9 % of draws, 7 degrees of freedom


@settings(max_examples=15, deadline=None)
@given(before=st.integers(0, 3), seed=st.integers(0, 5), other=st.integers(6, 9))
def test_a_loaded_state_continues_the_same_stream(before, seed, other):
    first = mix(two_robots(), seed=seed)
    for _ in range(before):
        first.sample()
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    expected = [first.sample() for _ in range(3)]
    second = mix(two_robots(), seed=other)
    second.load_state_dict(torch.load(file, weights_only=True))
    for batch in expected:
        assert (second.sample() == batch).all()


def test_the_seed_determines_the_batches():
    indices = [mix(two_robots(), seed=seed).sample()["index"] for seed in (0, 0, 1)]
    assert torch.equal(indices[0], indices[1])
    assert not torch.equal(indices[0], indices[2])


def test_the_global_seed_neither_matters_nor_moves():
    torch.manual_seed(0)
    indices = mix(two_robots()).sample()["index"]
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(1)
    assert torch.equal(mix(two_robots()).sample()["index"], indices)


def test_a_folder_of_torchrl_holds_the_stream_too(tmp_path):
    first = mix(two_robots())
    first.sample()
    first.dumps(tmp_path)
    expected = first.sample()
    second = mix(two_robots(), seed=8)
    second.loads(tmp_path)
    assert (second.sample() == expected).all()


def test_a_state_holds_no_frames():
    assert len(pickle.dumps(mix([make_dataset(lengths=(5000,))]).state_dict())) < 20_000


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: mix(two_robots(), [1, 2]), "with the weights"),
        (lambda: mix(two_robots()[:1]), "with the datasets"),
        (lambda: mix(two_robots()[::-1]), "with the datasets"),
    ],
)
def test_the_state_of_another_mixture_is_refused(other, message):
    with pytest.raises(SchemaError, match=message):
        other().load_state_dict(mix(two_robots()).state_dict())


def test_it_iterates_and_has_a_length():
    mixture = mix(two_robots())
    assert len(mixture) == 20
    batches = iter(mixture)
    again = mix(two_robots())
    for _ in range(3):
        assert (next(batches) == again.sample()).all()


def test_nothing_can_be_written():
    mixture = mix(two_robots())
    with pytest.raises(RuntimeError, match="doesn't allow writing"):
        mixture.extend(mixture[:2])
    with pytest.raises(RuntimeError, match="expected to be read"):
        mixture[0] = mixture[0]


def test_instructions_of_all_datasets_are_in_one_table():
    mixture = mix(two_robots())
    assert mixture.instructions.texts == ("small push", "lift", "large push")
    texts = mixture.instructions.decode(mixture[:]["language_instruction"])
    assert texts[:4] == ["small push"] * 3 + ["lift"]
    assert texts[8:14] == ["large push"] * 4 + ["lift"] * 2


def test_a_robot_without_a_state_gets_one_that_is_all_padding():
    mixture = mix([make_dataset("seen", state=3), make_dataset("blind", state=0)])
    rows = mixture[torch.tensor([0, 8])]
    assert rows["state_dim_is_pad"].tolist() == [[False] * 3, [True] * 3]
    assert (rows["observation", "state"][1] == 0).all()


def test_without_any_state_there_is_no_state():
    rows = mix([make_dataset(state=0), make_dataset(state=0)])[:]
    assert "state_dim_is_pad" not in rows
    assert "observation" not in rows


def test_recorded_datasets_mix(tmp_path):
    env = TabletopEnv(4, image_size=16)
    datasets = [
        collect(env, env.make_expert(), 2, folder=tmp_path / f"{i}", progress=False)
        for i in range(2)
    ]
    batch = mix(datasets).sample()
    assert batch["observation", "image"].shape == (16, 3, 16, 16)
    assert batch["action_chunk"].shape == (16, 3, 2)


def test_images_of_the_same_name_and_size_need_no_mapping():
    datasets = [make_dataset(str(i), images={"top": (4, 6)}, seed=i) for i in range(2)]
    rows = mix(datasets)[:]
    stored = torch.cat([dataset.frames[camera_key("top")] for dataset in datasets])
    assert torch.equal(rows[camera_key("top")], stored)
    assert "camera_is_pad" not in rows


def test_cameras_are_mapped_by_name_and_missing_ones_are_black_and_masked():
    datasets = [
        make_dataset("a", images={None: (4, 6)}),
        make_dataset("b", images={"top": (4, 6), "hand": (5, 5), "rear": (1, 1)}),
    ]
    cameras = [
        {"front": ("observation", "image"), "wrist": None},
        {"front": camera_key("top"), "wrist": camera_key("hand")},
    ]
    rows = mix(datasets, cameras=cameras)[:]
    assert set(rows["observation", "image"].keys()) == {"front", "wrist"}
    front, wrist = rows[camera_key("front")], rows[camera_key("wrist")]
    assert torch.equal(front[:8], datasets[0].frames["observation", "image"])
    assert torch.equal(front[8:], datasets[1].frames[camera_key("top")])
    assert torch.equal(wrist[8:], datasets[1].frames[camera_key("hand")])
    assert wrist.shape == (16, 3, 5, 5)
    assert (wrist[:8] == 0).all()
    assert wrist.dtype == torch.uint8
    assert rows["camera_is_pad", "wrist"].tolist() == [True] * 8 + [False] * 8
    assert not rows["camera_is_pad", "front"].any()


def test_images_are_stretched_to_one_size():
    datasets = [
        make_dataset("a", images={None: (4, 4)}),
        make_dataset("b", images={None: (8, 6)}),
    ]
    image = mix(datasets, sizes=MixtureSizes(image_size=(4, 4)))[:][
        "observation", "image"
    ]
    assert torch.equal(image[:8], datasets[0].frames["observation", "image"])
    assert torch.equal(
        image[8:], resize(datasets[1].frames["observation", "image"], (4, 4))
    )


def test_halving_an_image_averages_its_pixels_by_the_triangle_filter():
    row = torch.tensor([0, 0, 80, 80, 160, 160, 240, 240], dtype=torch.uint8)
    small = resize(row.view(1, 1, 8).expand(1, 8, 8), (4, 4))
    # Inside, the weights of the four nearest pixels are 1, 3, 3, 1 eighths; at the
    # edge three are left, with 3, 3, 1 sevenths.
    expected = torch.tensor([80 / 7, 80, 160, 240 - 80 / 7])
    assert small.dtype == torch.uint8
    assert ((small[0, 0] - expected).abs() < 1).all()


class Fixed(nn.Module):
    def __init__(self, chunk):
        super().__init__()
        self.chunk = nn.Parameter(chunk)

    def forward(self, _):
        return self.chunk


def cloning(batch):
    torch.manual_seed(0)
    policy = Fixed(torch.randn_like(batch["action_chunk"]))
    module = TensorDictModule(policy, ["embodiment_index"], ["action_chunk"])
    return policy, BCLoss(module, loss_function="l2")


def test_padded_dimensions_and_steps_get_exactly_no_gradient():
    batch = mix(two_robots(), [1, 1], batch_size=32).sample()
    policy, loss = cloning(batch)
    loss.set_keys(dim_pad_mask="action_dim_is_pad")
    value = loss(batch)["loss_bc"]
    value.backward()
    is_pad = batch["action_is_pad"].unsqueeze(-1) | batch[
        "action_dim_is_pad"
    ].unsqueeze(-2)
    (gradient,) = [p.grad for p in loss.parameters()]
    assert is_pad.any()
    assert (gradient[is_pad] == 0).all()
    assert (gradient[~is_pad] != 0).all()
    error = (policy.chunk - batch["action_chunk"])[~is_pad]
    torch.testing.assert_close(value, (error**2).mean())
    batch["action_chunk"][is_pad] = torch.nan
    assert loss(batch)["loss_bc"] == value


def test_a_loss_without_a_mask_of_padded_dimensions_refuses_the_batch():
    batch = mix(two_robots()).sample()
    _, loss = cloning(batch)
    with pytest.raises(SchemaError, match=r"a key of padded dimensions.*set_keys"):
        loss(batch)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], "one weight for each of 2"),
        ([[1.0, 2.0]], "one weight for each of 2"),
        ([1.0, 0.0], "positive finite weights"),
        ([1.0, -1.0], "positive finite weights"),
        ([1.0, float("nan")], "positive finite weights"),
        ([1.0, float("inf")], "positive finite weights"),
    ],
)
def test_weights_that_are_no_shares_are_refused(weights, message):
    with pytest.raises(ValueError, match=message):
        mix(two_robots(), weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sizes": MixtureSizes(action_dim=3)},
            r"action_dim >= 4.*'1:large': 4.*got 3",
        ),
        ({"sizes": MixtureSizes(state_dim=2)}, r"state_dim >= 3.*'0:small': 3.*got 2"),
        ({"batch_size": 0}, "positive int at argument 'batch_size'"),
        ({"chunk_size": 0}, "positive int at argument 'chunk_size'"),
        ({"mode": "median"}, "expected mode 'mean_std'"),
        ({"cameras": [{}]}, "one mapping of cameras for each of 2"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mix(two_robots(), **options)


def test_no_dataset_is_no_mixture():
    with pytest.raises(ValueError, match="at least one dataset, got none"):
        mix([])


@pytest.mark.parametrize("feature", ["action", "state"])
def test_a_dataset_without_statistics_is_refused(feature):
    name = f"{feature}_statistics"
    with pytest.raises(MetadataError, match="expected statistics in 'made', got None"):
        mix([make_dataset(**{name: None})])


def test_metadata_that_do_not_describe_the_frames_are_refused():
    dataset = make_dataset(state=0, state_dim=4)
    with pytest.raises(MetadataError, match="state_dim=4 in the frames of 'made'"):
        mix([dataset])


@pytest.mark.parametrize("key", ["action", "language_instruction"])
def test_a_dataset_without_actions_or_instructions_is_refused(key):
    dataset = make_dataset()
    frames = dataset.frames.exclude(key)
    broken = DemonstrationDataset(frames, dataset.metadata, dataset.instructions)
    with pytest.raises(MissingKeyError, match=f"'{key}'.* in the"):
        mix([dataset, broken])


def test_ids_without_a_text_are_refused():
    dataset = make_dataset()
    dataset.instructions = InstructionTable(["lift"])
    with pytest.raises(UnknownInstructionError, match="unknown ids"):
        mix([dataset])


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ([{None: (4, 4)}, {}], {}, SchemaError, "same images in all.*cameras="),
        ([{None: (4, 4)}, {"top": (4, 4)}], {}, SchemaError, "same images in all"),
        (
            [{None: (4, 4)}, {None: (4, 5)}],
            {},
            SchemaError,
            r"one shape.*0:a.*\[3, 4, 4\].*1:b.*\[3, 4, 5\].*image_size",
        ),
        (
            [{"top": (4, 4)}, {"top": (4, 4)}],
            {"cameras": [{"front": camera_key("top")}, {"front": camera_key("hand")}]},
            MissingKeyError,
            "images of '1:b' at.*hand.*got only.*top.*None",
        ),
        (
            [{"top": (4, 4)}, {"top": (4, 4)}],
            {"cameras": [{"front": camera_key("top")}, {"wrist": None}]},
            SchemaError,
            "same camera names.*Map a camera that a dataset lacks to None",
        ),
        (
            [{"top": (4, 4)}, {"top": (4, 4)}],
            {"cameras": [{"wrist": None}, {"wrist": None}]},
            SchemaError,
            "at least one dataset with.*wrist",
        ),
    ],
)
def test_cameras_that_do_not_agree_are_refused(images, options, error, message):
    datasets = [
        make_dataset(name, images=each) for name, each in zip(("a", "b"), images)
    ]
    with pytest.raises(error, match=message):
        mix(datasets, **options)


def test_images_that_are_not_uint8_are_refused():
    dataset = make_dataset(images={None: (4, 4)})
    dataset.frames["observation", "image"] = torch.rand(8, 3, 4, 4)
    with pytest.raises(SchemaError, match=r"expected uint8 images.*float32"):
        mix([dataset]).sample()


@pytest.mark.parametrize(
    ("shape", "index", "message"),
    [
        ((2, 3, 2), [0, 1], r"\[\*B, H, 4\]"),
        ((3, 3, 4), [0, 1], r"\*B = \[2\]"),
        ((2, 2, 3, 4), [0, 1], r"got shape \[2, 2, 3, 4\]"),
        ((2, 3, 4), [0, 2], r"below 2, got \[2\]"),
        ((2, 3, 4), [-1, 0], r"below 2, got \[-1\]"),
    ],
)
def test_chunks_that_are_not_of_the_mixture_are_refused(shape, index, message):
    mixture = mix(two_robots())
    with pytest.raises(SchemaError, match=message):
        mixture.denormalize(torch.zeros(shape), torch.tensor(index))


def test_an_embodiment_refuses_a_chunk_that_was_cut_already():
    with pytest.raises(SchemaError, match=r"\[..., 4\] of the mixture's size"):
        mix(two_robots()).embodiments[0].to_robot_space(torch.zeros(3, 2))


def test_an_embodiment_refuses_an_observation_without_its_state():
    with pytest.raises(MissingKeyError, match=r"Embodiment 'small'.*'state'"):
        mix(two_robots()).embodiments[0].to_model_space(TensorDict())


def test_a_mixture_prints_its_shares():
    assert repr(mix(two_robots(), [3, 1])).splitlines() == [
        "MixtureReplay: 20 frames",
        "   share    frames  embodiment",
        "   0.750         8  Embodiment(0, 'small', action 2 of 4, state 3 of 3)",
        "   0.250        12  Embodiment(1, 'large', action 4 of 4, state 1 of 3)",
    ]


def test_weights_and_labels_of_frames_reach_the_batch():
    datasets = two_robots()
    for dataset in datasets:
        frame = dataset.frames["frame_index"]
        dataset.frames["sample_weight"] = frame + 0.5
        dataset.frames["is_labeled"] = (frame != 1).unsqueeze(-1)
    batch = mix(datasets)[:]
    frame = batch["frame_index"]
    assert torch.equal(batch["sample_weight"], frame + 0.5)
    assert batch["action_is_pad"][frame == 1].all()  # a row of its own, all padding
    assert batch["action_is_pad"][frame == 0].tolist() == [[False, True, True]] * 5
