"""The testbed's closed vocabulary: every word that its questions and answers use, with its token id."""

from typing import Final

COLORS: Final = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES: Final = ("circle", "square", "triangle", "cross", "ring", "diamond")
DIGITS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
GLYPHS: Final = SHAPES + DIGITS
# Counted amounts are figures and drawn digits are words, so that "how many" and "which digit" never share a
# token.
NUMBERS: Final = tuple(str(i) for i in range(13))
ROWS: Final = ("row1", "row2", "row3", "row4")
COLUMNS: Final = ("col1", "col2", "col3", "col4")

PAD: Final = "<pad>"
BEGIN: Final = "<s>"
END: Final = "</s>"
UNKNOWN: Final = "<unk>"
IMAGE: Final = "<image>"
USER: Final = "user:"
ASSISTANT: Final = "assistant:"
NOTHING: Final = "nothing"
COMMA: Final = ","
QUESTION: Final = "?"

SPECIAL: Final = (PAD, BEGIN, END, UNKNOWN, IMAGE)
FUNCTION_WORDS: Final = (
    USER, ASSISTANT, QUESTION, COMMA, "color", "of", "what", "is", "count", "all", "at", "where", "list",
    NOTHING,
)  # fmt: skip
WORDS: Final = SPECIAL + FUNCTION_WORDS + COLORS + GLYPHS + NUMBERS + ROWS + COLUMNS
IDS: Final = {word: i for i, word in enumerate(WORDS)}


def encode(text: str) -> list[int]:
    """Token ids of a text whose words are separated by blanks; a word outside the vocabulary is an error."""
    unknown = [word for word in text.split() if word not in IDS]
    if unknown:
        raise ValueError(f"words of a testbed text must be in its vocabulary; got {unknown}")
    return [IDS[word] for word in text.split()]


def decode(ids: list[int]) -> str:
    """Text of token ids, without special tokens."""
    return " ".join(WORDS[i] for i in ids if i < len(WORDS) and i >= len(SPECIAL))
