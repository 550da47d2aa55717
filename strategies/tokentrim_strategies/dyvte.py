"""``dyvte``: a trained router per layer decides, prompt by prompt, after which layer every visual token leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage, Trainable

if TYPE_CHECKING:
    from torch import Tensor, nn

_WIDEST: Final = 2048
"""Width of a router in the released code."""


class DyVTE(Trainable, SpatialSelector):
    """Drop all visual tokens of a prompt as soon as its text has taken from the image what it needs.

    At every boundary b = 1 .. L-1 a router of its own looks at the text alone. With ``m`` the mean of the hidden states
    of the text tokens behind the image but for the last one, and ``t`` the hidden state of the last token:

        ``z = W2 gelu(W1 [m; t])``, no biases, and every visual token goes if ``z[1] - z[0] > margin``.

    The exit differs from prompt to prompt; the rows of a batch decide on their own, and one that has left does not come
    back. Layers before the exit cache the visual tokens, later ones hold text alone; original position ids stay. With
    routers that always say "leave at K" this is ``vtw`` with ``k = K``.

    From the paper and its code: the router, its two inputs, one per layer, decisions from the first layer on. Ours: the
    width of the hidden layer (min(2048, d/2); the code has 2048 for its one size); ``margin`` (0 in the code); ``m`` is
    zero where only one text token stands behind the image (the code then divides by zero); batches (the code looks at
    sample 0). How the routers are trained stands in :mod:`tokentrim_strategies._dyvte_training`.

    When it fails: as ``vtw``, on what needs the image late, wherever a router is wrong: one early "leave" cannot be
    undone. Routers know the kind of question that they were trained on. Its cost is data-dependent: a plan shows the
    upper bound (nothing dropped), only a run shows the tokens, and no budget can be asked for: what a ``margin`` keeps
    depends on the questions (docs/train.md has the curve of the testbed), so choose it on calibration questions.

    Cost: one small MLP per sample and layer until it has left, O(d^2), and one read of the device per boundary (how
    many tokens go on decides the shapes of all that follows). No attention row.

    Parameters: ``weights`` (the routers), ``margin`` (in logits; higher leaves later and less often).

    ```bibtex
    @inproceedings{wu2025dyvte,
      title={Accelerating Multimodal Large Language Models via Dynamic Visual-Token Exit and the Empirical Findings},
      author={Wu, Qiong and Lin, Wenhao and Ye, Weihao and Zhou, Yiyi and Sun, Xiaoshuai and Ji, Rongrong},
      booktitle={Advances in Neural Information Processing Systems},
      year={2025},
      note={arXiv:2411.19628}
    }
    ```
    """

    name: ClassVar[str] = "dyvte"
    stage: ClassVar[Stage] = "prefill"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.TEXT_HIDDEN})
    count_is_static: ClassVar[bool] = False
    trainer: ClassVar[str] = "tokentrim_strategies._dyvte_training:DyVTETrainer"

    margin: float = Field(
        default=0.0, allow_inf_nan=False, description="how far 'leave' must be above 'stay', in logits; 0 in the paper"
    )

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """A decision at every boundary inside the model, nothing dropped at most."""
        return Schedule.of(dict.fromkeys(range(1, shape.n_layers), n_visual))

    def sizes(self, shape: ModelShape) -> dict[str, int]:
        """The routers' hidden width."""
        return {"width": min(_WIDEST, shape.hidden_size // 2)}

    def build(self, shape: ModelShape, **sizes: int) -> nn.Module:
        """Routers with PyTorch's initial values."""
        from tokentrim_strategies._dyvte_module import Routers

        return Routers(shape.n_layers, shape.hidden_size, **sizes)

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """All of a row's tokens, or none."""
        if not any(site.n_visual):  # every row has left already
            return Selection.everything(site.n_visual, site.device)
        stay, leave = site.state.on(site.device)(site.boundary, *site.text_hidden).unbind(dim=1)
        leaves = leave - stay > self.margin
        gone: list[bool] = leaves.tolist()
        counts = tuple(0 if goes else n for goes, n in zip(gone, site.n_visual, strict=True))
        return Selection.from_mask(site.valid & ~leaves.unsqueeze(1), counts)
