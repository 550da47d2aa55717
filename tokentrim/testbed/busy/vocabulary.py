"""The closed vocabulary of the busy pictures. Special tokens have the ids that they have in all of the testbed."""

from typing import Final

from tokentrim.testbed.vocabulary import (
    ASSISTANT,
    COLORS,
    COLUMNS,
    COMMA,
    DIGITS,
    NUMBERS,
    QUESTION,
    ROWS,
    SPECIAL,
    USER,
)

GROUNDS: Final = ("grass", "sand", "water", "brick", "snow", "soil")
LARGE: Final = ("house", "tree", "car", "boat", "balloon", "tent")
SMALL: Final = ("star", "heart", "ring", "cross", "moon", "key")
LETTERS: Final = tuple("acehlnoprstu")
CORNERS: Final = ("top left", "top right", "bottom left", "bottom right")
YES: Final = "yes"
NO: Final = "no"

# What signs say. Many differ in one letter only, so that a sign must be read and cannot be guessed from a part of it.
_SIGNS: Final = (
    "cat car can cap ear eat hat hot hut pot pan pen pet sea sun tea ten net nut oat rat run toe top tap "
    "soap soup sort spot stop step rose rope race rent rest real seal salt sale soul snap trap tone tool port post "
    "part pace coat cost cash lane lace note nose peace plane plant plate place paper ocean north south coast coach "
    "chose horse lunch other shore shoe shop spare space route sport store stone taste"
)
SIGNS: Final = tuple(_SIGNS.split())

_FUNCTION_WORDS: Final = (
    USER, ASSISTANT, QUESTION, COMMA, "ground", "top", "bottom", "left", "right", "is", "there", "color", "of", "count",
    "large", "read", "sign", "signs", "digit", "mark", "on", "where", "describe", "small", YES, NO,
)  # fmt: skip
WORDS: Final = (
    SPECIAL + _FUNCTION_WORDS + COLORS + LARGE + SMALL + GROUNDS + DIGITS + NUMBERS[:8] + ROWS + COLUMNS + LETTERS
)
IDS: Final = {word: i for i, word in enumerate(WORDS)}


def encode(text: str) -> list[int]:
    """Return the token ids of a text whose words are separated by blanks.

    Raises:
        ValueError: for a word outside the vocabulary.
    """
    unknown = [word for word in text.split() if word not in IDS]
    if unknown:
        raise ValueError(f"words of a busy picture's text must be in its vocabulary; got {unknown}")
    return [IDS[word] for word in text.split()]


def decode(ids: list[int]) -> str:
    """Return the text of token ids, without special tokens."""
    return " ".join(WORDS[i] for i in ids if len(SPECIAL) <= i < len(WORDS))
