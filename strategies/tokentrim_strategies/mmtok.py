"""``mmtok``: tokens that cover the question's words and the picture at once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Annotated, ClassVar, Final

from pydantic import Field

from tokentrim import LayerSite, Need, Selection, SpatialSelector, Stage
from tokentrim_strategies._keeping import Keeping
from tokentrim_strategies._question import question

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Pictures

_PATCH: Final = 14  # pixels along a side of what becomes one token
# The released settings for LLaVA: what evaluations put behind a question, and words that show nothing.
_INSTRUCTIONS: Final = (
    "Answer the question using a single word or phrase.",
    "Answer with the option's letter from the given choices directly.",
)
_EMPTY: Final = frozenset((
    "a", "an", "and", "answer", "are", "at", "be", "been", "being", "but", "by", "did", "do", "does", "for", "from",
    "had", "has", "have", "he", "how", "i", "if", "into", "is", "it", "onto", "or", "question", "she", "so", "the",
    "then", "they", "to", "upon", "was", "we", "were", "what", "when", "where", "which", "who", "why", "with", "you",
))  # fmt: skip

Pixels = Annotated[int, Field(ge=1, le=1_000_000)]


def keywords(text: str) -> list[tuple[int, int]]:
    """Where the words of ``text`` begin and end that show something."""
    for instruction in _INSTRUCTIONS:
        text = text.replace(instruction, " " * len(instruction))
    return [word.span() for word in re.finditer(r"\w+", text) if word[0].lower() not in _EMPTY]


def _parts_of(pieces: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[int]:
    """Numbers of the pieces of a text that hold a character of one of the spans."""
    ends = list(accumulate(map(len, pieces)))
    return [
        number
        for number, (piece, end) in enumerate(zip(pieces, ends, strict=True))
        if any(first < end and end - len(piece) < last for first, last in spans)
    ]


class MMTok(Keeping, SpatialSelector):
    """Cover each picture's tokens and the question's words with few tokens: greedy coverage of both.

    With x the projected visual tokens of a picture, u their vectors before the projector (n of them), t the language
    model's input embeddings of the question's tokens (m), all of length 1, and j over the picture's tokens:

    - ``P_ij = softmax_j(t_i x_j / text_temperature) / m``: how well token j stands for word i;
    - ``Q_ij = softmax_j(u_i u_j / image_temperature) / n``: how well it stands for token i;
    - with A the rows of P above those of ``alpha Q``, and S what is chosen so far, the next token is the free one with
      the largest ``sum_i max(0, A_ij - max_{k in S} A_ik)`` (within 1 - 1/e of the best set); equal ones go to the
      lower number. Raster order is kept.

    Follows the released code, but for the words: here they are the prompt's own tokens behind the last picture (all
    text where none is behind it), those of the chat template included (ours). The code is handed the question; on
    LLaVA it takes out words that show nothing and two fixed instructions, and embeds the other words one by one, which
    ``keywords`` does with the prompt's tokens (all stay where none would be left); on Qwen it puts "Question:" in
    front and takes out nothing. Images, frames and tiles choose by themselves, each a share of T by its size (the
    code: T per tile). Padding that a square was filled up with is never chosen there, though it is covered; where
    ``picture`` says what size pictures had, patches wholly in it come last here. The code numbers positions after
    pruning (``positions: renumber``; our default keeps them). Where the projector joins patches (Qwen-VL) the projected
    tokens stand in for u (ours).

    When it fails: embeddings of words and projected tokens were never trained to agree, so the share of the question in
    the result is small (the paper: 95.7 % without it, 96.6 % with it at 64 tokens). In a second turn, what was dropped
    for the first question is gone.

    Cost: an (n + m) x n matrix per picture, O(N^2 D), and O(N^2) for each token that is kept, on the device.
    ``keywords`` reads the device once, and needs the model's tokenizer where the model was loaded from.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt, T; the paper's are 192, 128 and
    64 of 576), ``alpha`` (0.5), ``text_temperature`` (0.02), ``image_temperature`` (0.2), ``keywords``, ``picture``.

    ```bibtex
    @inproceedings{dong2026mmtok,
      title={{MMTok}: Multimodal Coverage Maximization for Efficient Inference of {VLMs}},
      author={Dong, Sixun and Hu, Juhua and Zhang, Mian and Yin, Ming and Fu, Yanjie and Qian, Qi},
      booktitle={International Conference on Learning Representations},
      year={2026},
      note={arXiv:2508.18264}
    }
    ```
    """

    name: ClassVar[str] = "mmtok"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.FEATURES, Need.VISION_HIDDEN, Need.TEXT_EMBEDS, Need.TEXT_IDS, Need.TEXT, Need.GRID}
    )

    alpha: float = Field(
        default=0.5, ge=0, le=1000, allow_inf_nan=False, description="weight of covering the picture, words having 1"
    )
    text_temperature: float = Field(
        default=0.02, ge=0.001, allow_inf_nan=False, description="of the softmax from a word to the visual tokens"
    )
    image_temperature: float = Field(
        default=0.2, ge=0.001, allow_inf_nan=False, description="of the softmax from a visual token to the others"
    )
    keywords: bool = Field(
        default=False, description="whether words that show nothing, and punctuation, need not be covered"
    )
    picture: tuple[Pixels, Pixels] | None = Field(
        default=None, description="width and height of pictures that were filled up to a square; None = they were not"
    )

    def needed(self) -> frozenset[Need]:
        """The text itself for ``keywords`` alone."""
        return self.needs if self.keywords else self.needs - {Need.TEXT}

    def words(self, site: LayerSite) -> Tensor:
        """bool [B, T]: the text tokens that are to be covered."""
        import torch

        asked = question(site)
        if not self.keywords:
            return asked
        said = torch.zeros(asked.shape, dtype=torch.bool)
        for row, pieces in enumerate(site.text(asked)):
            places = [place for place, is_asked in enumerate(asked[row].tolist()) if is_asked]
            said[row, [places[number] for number in _parts_of(pieces, keywords("".join(pieces)))]] = True
        said = said.to(asked.device)
        return torch.where(said.any(dim=1, keepdim=True), said, asked)

    def in_padding(self, site: LayerSite) -> Tensor:
        """bool [B, N]: patches of a square plane that lie wholly in what ``picture`` leaves of it."""
        import torch

        if self.picture is None:
            return torch.zeros_like(site.valid)
        grid, (width, height) = site.grid, self.picture
        place, side = (grid.col, grid.cols) if height > width else (grid.row, grid.rows)
        # The picture in whole pixels of the square, a half rounded to the even one.
        whole = side * _PATCH
        filled = torch.round(whole.double() * min(width, height) / max(width, height)).long()
        before = (whole - filled) // 2
        outside = (place < before // _PATCH) | (place >= side - (whole - filled - before) // _PATCH)
        return outside & (grid.rows == grid.cols) & (place >= 0) & site.valid

    def orders(self, site: LayerSite, count: Tensor) -> tuple[Pictures, Tensor]:
        """The pictures, and int64 [P, n]: the tokens of each in the order in which they are chosen; -1 behind them."""
        import torch

        from tokentrim import Pictures, greedy_cover, unit, within

        asked, padding = self.words(site), self.in_padding(site)

        def choose(pictures: Pictures, counts: tuple[int, ...]) -> Tensor:
            rows = torch.tensor(pictures.rows, device=site.device)
            last = 2 * (1 + self.alpha) * pictures.split(padding)  # more than there is to be covered
            real = within(pictures.sizes, last.shape[1], site.device)
            words = asked[rows].unsqueeze(-1)
            text = torch.matmul(unit(site.text_embeds[0])[rows], unit(pictures.split(site.features)).transpose(1, 2))
            vectors = unit(pictures.split(site.vision_hidden))
            image = torch.matmul(vectors, vectors.transpose(1, 2))

            def shares(products: Tensor, temperature: float, rows: Tensor) -> Tensor:
                """[P, n, rows]: each row's softmax over a picture's tokens, all of them adding up to 1."""
                weights = (products / temperature).masked_fill(~real.unsqueeze(1), -1e30).softmax(dim=2)
                return (weights.masked_fill(~rows, 0.0) / rows.sum(dim=1, keepdim=True).clamp(min=1)).transpose(1, 2)

            covers = [
                shares(text, self.text_temperature, words),
                self.alpha * shares(image, self.image_temperature, real.unsqueeze(-1)),
            ]
            affinity = torch.cat(covers, dim=2).masked_fill(~real.unsqueeze(-1), 0.0)
            return greedy_cover(affinity, real, counts, lambda gain: gain - last)

        pictures = Pictures.of(site)
        return pictures, pictures.in_parts(choose, pictures.shares(count.tolist()))

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """What is chosen, in raster order."""
        pictures, orders = self.orders(site, count)
        return Selection.from_mask(pictures.joined(orders), tuple(count.tolist()))
