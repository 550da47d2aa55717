"""``quecc``: a trained module that puts into one token, or a few, what a question asks of a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Final, Literal

from pydantic import Field

from tokentrim import (
    Grid,
    LayerSite,
    ModelShape,
    Need,
    Schedule,
    Selection,
    SpatialSelector,
    Stage,
    StrategyError,
    Trainable,
    complaint,
    pad_rows,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tokentrim_strategies._quecc_module import Compressor

_HEADS: Final = 8


class QueCC(Trainable, SpatialSelector):
    """Merge the N visual tokens of a picture into 1, 4, 16 or 36, by attention that knows the question.

    The grid is cut into s x s windows (s^2 = ``tokens``), and each window becomes one token. With ``x_i`` the visual
    tokens, ``q`` a vector of the question, and i over the places of window w:

    - ``u_i = F(x_i + q)`` with ``F(x) = LN(x + MLP(x))``; the query of w is a depthwise convolution, kernel = stride =
      window: ``Q_w = b + sum_i k[place of i] * u_i``;
    - keys and values ``F(x_i)``, each with weights of its own;
    - ``a_w`` = attention of ``Q_w`` over window w alone (8 heads), with weights ``p_wi`` in the mean over heads;
    - the token: ``sum_i p_wi x_i + MLP(a_w)``, at the place of the token nearest to the window's centre.

    From the paper and its code: question added to the tokens, MLP and layer norm before a depthwise convolution, keys
    and values of their own, attention inside windows, an MLP at the end, the four counts. **Ours**, because the paper
    puts the module before the projector and trains it with the language model, and we leave both as they are:

    - x are the *projected* features; the paper queries with features of one vision layer and has four of them, side by
      side, as keys and values;
    - q is ``LN(mean_t (e_t + MLP(e_t)))`` over the text's input embeddings; the paper's is the language model's own
      last hidden state of the question, which takes a pass over the text alone;
    - the language model is **frozen** and training short, so everything starts from something useful: the weighted mean
      of x is added, the maps are residual, all MLPs end in zeros at first and the attention's matrices are identities.
      So untrained this is a mean of the tokens that resemble the question's words;
    - windows that do not divide the grid hold a row or column more or less, and missing places add nothing; a small
      grid has a window per token at most; each picture is compressed by itself, and original position ids stay (the
      paper's sequence is short from the start: ``positions: renumber``).

    When it fails: on what needs more of a picture than its tokens can carry (lists of all objects, dense text), on
    questions unlike those it was trained on, and in a second turn, since the picture was compressed for the first
    question. Weights serve one model and one count.

    Cost: eight small matrix products per visual token, O(N d^2), before the language model, which then sees a
    few tokens.

    Parameters: ``tokens`` (per picture; 36 as in the released scripts), ``weights``.

    ```bibtex
    @inproceedings{li2025quecc,
      title={Inference Optimal {VLM}s Need Fewer Visual Tokens and More Parameters},
      author={Li, Kevin Y. and Goyal, Sachin and Semedo, Joao D. and Kolter, J. Zico},
      booktitle={International Conference on Learning Representations},
      year={2025},
      note={arXiv:2411.03312}
    }
    ```
    """

    name: ClassVar[str] = "quecc"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.TEXT_EMBEDS, Need.GRID})
    merges: ClassVar[bool] = True
    trainer: ClassVar[str] = "tokentrim_strategies._quecc_training:QueCCTrainer"

    tokens: Literal[1, 4, 16, 36] = Field(default=36, description="visual tokens that a picture becomes")

    @property
    def side(self) -> int:
        """Windows along a side of the picture."""
        return math.isqrt(self.tokens)

    def made_for(self, shape: ModelShape) -> dict[str, int]:
        """The model's sizes and the count: each count has weights of its own."""
        return {**super().made_for(shape), "tokens": self.tokens}

    def sizes(self, shape: ModelShape) -> dict[str, int]:
        """Places along a side of the largest window of the model's grid; heads of its attention."""
        rows, cols = _grid_of(shape)
        return {"kernel": -(-max(rows, cols) // self.side), "heads": math.gcd(_HEADS, shape.hidden_size)}

    def build(self, shape: ModelShape, **sizes: int) -> nn.Module:
        """A module that starts as a weighted mean."""
        from tokentrim_strategies._quecc_module import Compressor

        return Compressor(shape.hidden_size, **sizes)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Pictures times windows."""
        rows, cols = _grid_of(shape)
        pictures = -(-n_visual // (rows * cols))
        return Schedule.of({0: min(n_visual, pictures * min(self.side, rows) * min(self.side, cols))})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """Every window's token at the place of its representative."""
        counts = tuple(int(kept) for kept in count)
        module: Compressor = site.state.on(site.device)
        kept, members = self._windows(site, counts, module.kernel)
        features = module(site.features, members.to(site.device), *site.text_embeds)
        return Selection(pad_rows(kept.to(site.device), counts), counts, features=features)

    def _windows(self, site: LayerSite, counts: tuple[int, ...], kernel: int) -> tuple[Tensor, Tensor]:
        """(kept int64 [B, M], members int64 [B, M, K]) on the host; -1 past a row's windows."""
        import torch

        from tokentrim import windows_of

        grid = Grid(*(part.cpu() for part in vars(site.grid).values()))
        kept = torch.full((len(counts), max(counts, default=0)), -1, dtype=torch.int64)
        members = torch.full((*kept.shape, kernel * kernel), -1, dtype=torch.int64)
        for row, (wanted, n) in enumerate(zip(counts, site.n_visual, strict=True)):
            if not n:
                continue
            windows = windows_of(grid, row, n, self.side, kernel)
            if windows is None or len(windows.kept) != wanted:
                raise StrategyError(
                    complaint(
                        "the grids of a prompt's pictures",
                        f"be cut into {wanted} windows of at most {kernel} x {kernel} tokens",
                        "larger windows" if windows is None else f"{len(windows.kept)} windows",
                        "quecc serves models whose pictures are one grid of one size, as its weights do",
                    )
                )
            kept[row, :wanted], members[row, :wanted] = windows.kept, windows.members
        return kept, members


def _grid_of(shape: ModelShape) -> tuple[int, int]:
    """Rows and columns of one picture's tokens."""
    if shape.vision is None or not shape.vision.rows * shape.vision.cols:
        raise StrategyError(
            complaint(f"the model {shape.name!r}", "have a grid of visual tokens for strategy 'quecc'", None,
                      "choose a model whose pictures are one grid")
        )  # fmt: skip
    return shape.vision.rows, shape.vision.cols
