"""One dataset out of several of the same robot."""

from __future__ import annotations

from dataclasses import replace

import torch
from tensordict import NestedKey, TensorDict

from torchrl_vla.data.demonstration_dataset import DemonstrationDataset
from torchrl_vla.data.frames import frame_statistics
from torchrl_vla.schema import (
    EPISODE_KEY,
    IS_INTERVENTION_KEY,
    IS_LABELED_KEY,
    SAMPLE_WEIGHT_KEY,
    InstructionTable,
    SchemaError,
)

#: What frames have that do not say otherwise.
_DEFAULTS: dict[NestedKey, bool | float] = {
    IS_INTERVENTION_KEY: False,
    IS_LABELED_KEY: True,
    SAMPLE_WEIGHT_KEY: 1.0,
}


def aggregate(*datasets: DemonstrationDataset) -> DemonstrationDataset:
    """Put datasets of one robot into one, as DAgger does after each iteration.

    Episodes are numbered anew in the order of the datasets, instruction tables are
    united (ids are hashes of the texts, so no frame changes), and the statistics are
    those of all frames together, to the bit. Frames that do not say ``is_labeled``,
    ``is_intervention`` or ``sample_weight`` where others do were demonstrated: they
    are labeled, no intervention, and have weight 1. The surprise: new statistics are a
    new model space. A policy that is trained on must keep its own (pass ``space=`` of
    the first training), or begin again.

    Every frame then counts alike. For datasets of different robots, or to fix each
    one's share of the batches whatever its length (half demonstrations, half
    corrections), sample them with :class:`MixtureReplay` instead; parts of an aggregate
    (``select_episodes``) have its statistics, and so one model space.

    Args:
        *datasets: at least one. The first one's metadata are kept.

    Returns:
        The dataset, in memory; write it with ``to_folder``.

    Raises:
        ValueError: there are no datasets.
        IncompatibleMetadataError: they are of different robots or units.
        SchemaError: their frames hold different entries, dtypes or shapes.

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
    first = datasets[0]
    for other in datasets[1:]:
        first.metadata.check_compatible(other.metadata)
    parts = _with_defaults([dataset.frames for dataset in datasets])
    for number, part in enumerate(parts):
        _check_same_layout(parts[0], part, number)
    table, offset = InstructionTable(), 0
    for dataset, part in zip(datasets, parts):
        numbers, episode = part.get(EPISODE_KEY).unique(return_inverse=True)
        part.set(EPISODE_KEY, episode + offset)
        offset += len(numbers)
        for text in dataset.instructions:
            table.add(text)
    frames = torch.cat(parts)
    metadata = replace(first.metadata, **frame_statistics(frames))
    provenance = {"parts": [dataset.provenance for dataset in datasets]}
    return DemonstrationDataset(frames, metadata, table, provenance)


def _with_defaults(datasets: list[TensorDict]) -> list[TensorDict]:
    """Return shallow copies that all have the optional entries that any has."""
    said = [
        key
        for key in _DEFAULTS
        if any(td.get(key, None) is not None for td in datasets)
    ]
    parts = []
    for frames in datasets:
        part = TensorDict(dict(frames.items()), frames.batch_size)
        for key in said:
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
            f"others in dataset {number}: {'; '.join(wrong)}. Leave out what not all "
            "have (frames.exclude), or sample them with MixtureReplay."
        )


def _layout(frames: TensorDict) -> dict[str, str]:
    return {
        str(key): f"{value.dtype} {list(value.shape[1:])}"
        for key, value in frames.items(True, True)
    }
