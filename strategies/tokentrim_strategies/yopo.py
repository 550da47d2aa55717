"""``yopo``: fewer operations on visual tokens: neighbourhoods, inactive heads, and deep layers without the image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, field_validator

from tokentrim import AttentionEdit, AttentionEditor, ModelShape, Parts, Schedule, Stage, complaint, keep_count
from tokentrim_strategies._keeping import Share, Withdrawing


class YOPO(Withdrawing, AttentionEditor):
    """Edit the attention of visual tokens in the lower layers; take them out of the lazy ones above.

    - **Neighbourhood**: a visual query sees, of the visual keys, those within ``|dr|, |dc| <= (window - 1) / 2`` in its
      own plane of the grid, later ones too (the released code overwrites the causal block); text keys as ever.
    - **Inactive heads**: weights of the heads in ``inactive`` on visual keys count nothing after the softmax, without
      renormalising, and these heads add nothing to visual tokens. Which heads: per head the attention that all rows
      give to visual keys over what they give to text, and a threshold; the paper keeps 5 to 30 of 40 on average.
    - **Lazy layers**: from ``depth`` of the layers on nobody attends to visual keys, in one of two ways that give
      different answers. ``lazy: dropped``, the paper's words: the tokens leave for good, so weights are shared out
      among the text alone. ``lazy: masked``, the released code: all heads there are treated as inactive ones are, after
      the softmax and without renormalising (but for what they add to visual tokens), so the keys still lower what text
      gets from text, and neighbourhoods and inactive heads go on to the last layer. The authors' checkpoints were
      fine-tuned in this form.

    The paper's fourth part, a feed-forward network cut to a share of its channels for visual tokens, needs training of
    the whole model and is not offered.

    What is saved: the lazy layers, in time and memory, as with ``vtw``; with ``masked`` nothing, for every layer holds
    every token, and a budget has nothing to act on. Neighbourhoods: blocks of whole grid rows
    attend to the rows around them and to the text alone, in fused attention that every device has; only what the
    blocks leave out counts as saved, not all that the window hides. Of one layer's attention (16 heads of 64, window 5,
    two cores) that makes 7.4 ms where causal attention takes 8.1 and a mask 10.3 on a 24 x 24 grid, and 55 where they
    take 110 and 209 on five of them; of a whole layer attention is a small part at 576 tokens. A block mask of torch's
    flex attention was slower there (7.6 ms against 5.3 of a mask, at four heads) and needs a compiler. Inactive heads
    are computed again without visual keys: they save nothing, and no saving is counted. (The released code simulates
    all of it.)

    When it fails: a model that has not been fine-tuned for it loses with small windows; what the text has not taken
    from the image by the lazy layers is gone.

    Cost: one read of the grid and a mask of tokens x block per prompt, one more attention pass over the inactive heads.

    Parameters: ``window``, side of the neighbourhood in tokens, odd (5 in the released scripts); None = all. ``depth``,
    share of the layers that see the image (20 of 40 in the released script of the 13B model), 1 = all. ``lazy``: what
    becomes of the tokens in the others. ``inactive``: layer -> heads without visual keys (none by default; they are
    found on the very model).

    ```bibtex
    @article{zhang2024yopo,
      title={Treat Visual Tokens as Text? But Your {MLLM} Only Needs Fewer Efforts to See},
      author={Zhang, Zeliang and Pham, Phu and Zhao, Wentian and Wan, Kun and Li, Yu-Jhe and Zhou, Jianing and
              Miranda, Daniel and Kale, Ajinkya and Xu, Chenliang},
      journal={arXiv preprint arXiv:2410.06169},
      year={2024}
    }
    ```
    """

    name: ClassVar[str] = "yopo"
    stage: ClassVar[Stage] = "prefill"
    budget_knob: ClassVar[str | None] = "depth"

    window: int | None = Field(default=5, ge=1, description="side of the neighbourhood in tokens, odd; None = all")
    depth: Share = Field(default=0.5, description="share of the layers that see the image")
    lazy: Literal["dropped", "masked"] = Field(
        default="dropped", description="visual tokens leave before the lazy layers, or stay there with no weight"
    )
    inactive: Mapping[int, tuple[int, ...]] = Field(
        default_factory=dict, description="decoder layer -> query heads that give visual keys no weight"
    )

    @field_validator("window")
    @classmethod
    def _odd(cls, window: int | None) -> int | None:
        if window is not None and window % 2 == 0:
            raise ValueError(complaint("window of strategy 'yopo'", "be odd", window, "it has a middle"))
        return window

    def parts(self) -> Parts:
        """Itself, as both: the lazy layers are a cut, the rest edits attention."""
        return Parts(spatial=(self,), attention=self)

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """Nothing passes into the first lazy layer, unless masked."""
        boundary = keep_count(self.depth, shape.n_layers)
        cuts = boundary < shape.n_layers and self.lazy == "dropped"
        return Schedule.of({boundary: 0}) if cuts else Schedule()

    def edit(self, layer: int, shape: ModelShape) -> AttentionEdit | None:
        """The same neighbourhood in every layer that holds the image, and the layer's own heads."""
        is_lazy = layer >= keep_count(self.depth, shape.n_layers)
        if is_lazy and self.lazy == "dropped":
            return None
        off = self.inactive.get(layer, ())
        heads = tuple(head not in off for head in range(shape.n_heads)) if off else None
        return AttentionEdit(None if self.window is None else (self.window - 1) // 2, heads, blind=is_lazy)
