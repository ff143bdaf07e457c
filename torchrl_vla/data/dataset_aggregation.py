"""Dataset aggregation (DAgger): one dataset out of several of the same robot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from tensordict import NestedKey, TensorDict

from torchrl_vla.data.aggregated_demonstrations import AggregatedDemonstrations
from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.demonstrations import (
    Demonstrations,
    check_demonstrations,
    merge_instructions,
)
from torchrl_vla.data.label_bounds import check_labels
from torchrl_vla.data.rollout_frames import frame_statistics
from torchrl_vla.schema import (
    EPISODE_KEY,
    IMAGE_IS_STALE_KEY,
    IS_INTERVENTION_KEY,
    IS_LABELED_KEY,
    SAMPLE_WEIGHT_KEY,
    SchemaError,
)

#: Values of optional entries in frames that lack them.
_DEFAULTS: dict[NestedKey, bool | float] = {
    IS_INTERVENTION_KEY: False,
    IS_LABELED_KEY: True,
    SAMPLE_WEIGHT_KEY: 1.0,
    IMAGE_IS_STALE_KEY: False,
}
#: LeRobot's numbers of tasks and rows, which say something else in each dataset.
_NUMBERS_OF_ONE_DATASET = ("task_index", "dataset_index", "timestamp")


def aggregate(*datasets: Demonstrations) -> DemonstrationDataset:
    """Merge datasets of one robot into one, as DAgger does after each iteration.

    Episodes are renumbered in the order of the datasets, instruction tables are merged
    (ids are hashes of the texts, so no frame changes), and the statistics are computed
    from all frames. Where some datasets have ``is_labeled``, ``is_intervention`` or
    ``sample_weight``, the frames of the others count as demonstrated: they are labeled,
    no intervention, and have weight 1.

    Images that a dataset reads when it is sampled (LeRobot's, HDF5's) are read from it
    then; ``to_folder`` writes them out.

    Every frame has the same weight. To sample datasets of different robots, or to fix
    the share of each dataset in a batch (half demonstrations, half corrections), use
    :class:`MixtureReplay`. Parts of an aggregate (``select_episodes``) keep its
    statistics and so share one model space.

    Warning:
        New statistics define a new model space. To continue the training of a policy,
        pass the ``space=`` of its first training; otherwise train it from scratch.

    Args:
        *datasets: at least one. The metadata of the first are kept.

    Returns:
        The dataset, with its numbers in memory; write it with ``to_folder``.

    Raises:
        ValueError: no datasets are given.
        IncompatibleMetadataError: the robots or units differ.
        ArgumentTypeError: one is of another kind, such as a path.
        SchemaError: entries, dtypes or shapes of the frames differ, or actions lie
            beyond the bounds that are declared.

    Examples:
        >>> import tempfile
        >>> from torchrl_vla.data import collect
        >>> from torchrl_vla.envs import TabletopEnv
        >>> env = TabletopEnv(2, image_size=8)
        >>> options = {"folder": tempfile.mkdtemp(), "progress": False}
        >>> two = collect(env, env.make_expert(), 2, **options)
        >>> aggregate(two, two).frames["episode_index"].unique()
        tensor([0, 1, 2, 3])

    Source: S. Ross, G. Gordon and D. Bagnell (AISTATS 2011).
    """
    if not datasets:
        raise ValueError("aggregate: expected at least one dataset, got none.")
    for dataset in datasets:
        check_demonstrations("aggregate", dataset)
        check_labels("aggregate", dataset)
    first = datasets[0]
    for number, other in enumerate(datasets[1:], start=1):
        sides = ("dataset 0", f"dataset {number}")
        first.metadata.check_compatible(other.metadata, sides=sides)
    complete = _with_defaults([_first_frame(dataset) for dataset in datasets])
    for number, row in enumerate(complete):
        _check_same_layout(complete[0], row, number)
    has_images = all(dataset.observations() is None for dataset in datasets)
    parts = _with_defaults([dataset.frames for dataset in datasets])
    if not has_images:
        shared = set.intersection(*(set(part.keys(True, True)) for part in parts))
        parts = [part.select(*shared) for part in parts]
    offset = 0
    for part in parts:
        numbers, episode = part.get(EPISODE_KEY).unique(return_inverse=True)
        part.set(EPISODE_KEY, episode + offset)
        offset += len(numbers)
    frames = torch.cat(parts)
    metadata = replace(first.metadata, **frame_statistics(frames))
    provenance = {"parts": [_provenance(dataset) for dataset in datasets]}
    table = merge_instructions(datasets)
    whole = DemonstrationDataset(frames, metadata, table, provenance)
    return whole if has_images else AggregatedDemonstrations(whole, datasets)


def _first_frame(dataset: Demonstrations) -> TensorDict:
    """Return the first frame with all its observations."""
    frame, observations = dataset.frames[:1], dataset.observations()
    return frame if observations is None else observations(frame)


def _provenance(dataset: Demonstrations) -> Mapping[str, object]:
    try:
        return dataset.provenance  # type: ignore[attr-defined]
    except AttributeError:
        return {"dataset_id": dataset.metadata.dataset_id}


def _with_defaults(datasets: list[TensorDict]) -> list[TensorDict]:
    """Return shallow copies in which all have the optional entries that any has."""
    present = [
        key
        for key in _DEFAULTS
        if any(td.get(key, None) is not None for td in datasets)
    ]
    parts = []
    for frames in datasets:
        part = TensorDict(dict(frames.items()), frames.batch_size)
        part = part.exclude(*_NUMBERS_OF_ONE_DATASET)
        for key in present:
            if part.get(key, None) is None:
                shape = () if key == SAMPLE_WEIGHT_KEY else (1,)
                part.set(key, torch.full((len(frames), *shape), _DEFAULTS[key]))
        parts.append(part)
    return parts


def _check_same_layout(first: TensorDict, other: TensorDict, number: int) -> None:
    ours, theirs = _layout(first), _layout(other)
    wrong = [
        f"{key}: {theirs.get(key, 'nothing')} against {ours.get(key, 'nothing')}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if wrong:
        raise SchemaError(
            "aggregate: expected frames with the entries of the first dataset, got "
            f"others in dataset {number}: {'; '.join(wrong)}. Drop entries that some "
            "lack (frames.exclude), or sample the datasets with MixtureReplay."
        )


def _layout(frames: TensorDict) -> dict[str, str]:
    return {
        str(key): f"{value.dtype} {list(value.shape[1:])}"
        for key, value in frames.items(True, True)
    }
