"""Sentences that name one of six coloured blocks, for `wordings.py`."""

from __future__ import annotations

from collections.abc import Iterable

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange")
#: Four other names per colour; fold `k` of the experiment leaves out the k-th.
SYNONYMS = {
    "red": ("crimson", "ruby", "scarlet", "cherry"),
    "green": ("emerald", "lime", "jade", "olive"),
    "blue": ("azure", "navy", "cobalt", "sapphire"),
    "yellow": ("golden", "lemon", "canary", "mustard"),
    "purple": ("violet", "plum", "lavender", "lilac"),
    "orange": ("tangerine", "pumpkin", "apricot", "carrot"),
}
#: The first is the environment's own; all are met in training on paraphrases.
SENTENCES = (
    "reach the {} block",
    "touch the {} one",
    "go to the {} cube",
    "move onto the {} piece",
    "put the gripper over the {} block",
    "head for the {} object",
    "find the {} block and stop on it",
    "please reach the block that is {}",
)
NEW_SENTENCES = (
    "approach the {} cube",
    "move your hand to the {} thing",
    "the {} block is your target",
    "can you get to the one coloured {}?",
    "travel to the {} brick",
    "i want you to land on the {} square",
)
DESCRIPTIONS = {
    "red": ("reach the block the colour of blood", "go to the tomato-like block"),
    "green": ("reach the block the colour of grass", "go to the leaf-like block"),
    "blue": ("reach the block the colour of the sky", "go to the ocean-like block"),
    "yellow": ("reach the block the colour of the sun", "go to the banana-like block"),
    "purple": (
        "reach the block the colour of an eggplant",
        "go to the grape-like block",
    ),
    "orange": (
        "reach the block the colour of a basketball",
        "go to the fox-like block",
    ),
}
TWO_COLOURS = (
    "reach the {} block, not the {other} one",
    "ignore the {other} block and go to the {} one",
    "leave {other} alone, touch {}",
)


def swap_middle(word: str) -> str:
    """Misspell a word by swapping two letters in its middle."""
    at = len(word) // 2
    return word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :]


def surface_forms(colour: str) -> tuple[str, ...]:
    """Return capitals, typos, punctuation, spaces and fragments."""
    wrong = swap_middle(colour)
    return (
        f"Reach the {colour.upper()} block!",
        f"REACH THE {colour.upper()} BLOCK",
        f"raech the {wrong} blcok",
        f"reach the {wrong} block",
        f"reach   the {colour}  block.",
        f"go to {colour}",
        colour,
    )


def fill(sentences: Iterable[str], words: Iterable[str]) -> list[str]:
    """Put each word into each sentence."""
    return [sentence.format(word) for sentence in sentences for word in words]


def training_wordings(fold: int | None) -> dict[str, list[str]]:
    """Return what training draws from; without a fold, the one original wording."""
    if fold is None:
        return {c: [SENTENCES[0].format(c)] for c in COLOURS}
    known = {
        c: [c, *(word for k, word in enumerate(SYNONYMS[c]) if k != fold)]
        for c in COLOURS
    }
    return {c: fill(SENTENCES, known[c]) for c in COLOURS}


def test_wordings(fold: int | None) -> dict[str, dict[str, list[str]]]:
    """Return the wordings of each split; new words only with a fold."""
    splits = {
        "original": {c: [SENTENCES[0].format(c)] for c in COLOURS},
        "new sentences": {c: fill(NEW_SENTENCES, [c]) for c in COLOURS},
        "typos, capitals": {c: [*surface_forms(c)] for c in COLOURS},
        "two colours": {
            c: [s.format(c, other=o) for s in TWO_COLOURS for o in COLOURS if o != c]
            for c in COLOURS
        },
        "descriptions": {c: [*DESCRIPTIONS[c]] for c in COLOURS},
    }
    if fold is not None:
        new = {c: [SYNONYMS[c][fold]] for c in COLOURS}
        splits["new words"] = {c: fill(SENTENCES, new[c]) for c in COLOURS}
    return splits
