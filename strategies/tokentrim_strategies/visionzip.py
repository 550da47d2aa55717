"""``visionzip``: the tokens that [CLS] attends to, and the others merged into evenly spaced ones."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from tokentrim import LayerSite, Need, ReplacedBy, Selection, SpatialSelector, Stage, complaint, resolve_count
from tokentrim_strategies._keeping import Keeping, ReadsBlock, ShareOrNone

if TYPE_CHECKING:
    from torch import Tensor


class VisionZip(ReadsBlock, Keeping, SpatialSelector):
    """Keep what [CLS] attends to most in one block of the vision tower; merge the rest into C contextual tokens.

    Of T tokens that are kept, C are contextual and D = T - C dominant.

    - Dominant: the D tokens with the highest ``sum_h A[h, CLS, j]``, A the softmax in block ``block``.
    - Contextual: of the M others, in raster order, those at places ``0, s, 2 s, ...``, C in all, with
      ``s = floor(M / C)``, are targets. Each other one joins the target whose key is nearest to its own: cosine of
      the block's keys, mean over heads. ``x_target + mean of the x that joined`` is the new token, x what the tower
      made of a token before the projector; a target that nobody joins stays as it is.

    Follows the released code, down to the sum of two things (norms may double), which ``reduce: mean`` replaces by the
    mean over a target and all that joined it. The code keeps [CLS] itself as one of its D; here only patches are visual
    tokens, so a patch more is dominant in its place (ours). It puts contextual tokens behind the image and numbers
    positions anew (``merged: behind, positions: renumber``, as in the presets); our default leaves each in its target's
    place. Where the tower has no [CLS], the score is the attention that j receives from all patches, and on Qwen-VL
    projected features are merged, as in ports. Every image, frame and tile decides for itself, with a part of T in
    proportion to its tokens; the code gives each tile of LLaVA-NeXT the same number, before padding is cut off.

    When it fails: it never reads the question. Dominant tokens flock to high-norm background; contextual ones blur what
    they are made of, so small text suffers most.

    Cost: one attention row per head, keys of one block, cosines of M x C tokens, and T tokens through the projector.

    Parameters: ``keep_ratio`` (share kept) or ``keep_count`` (tokens kept per prompt, T; the paper's are 192, 128 and
    64 of 576, and 640, 320 and 160 of LLaVA-NeXT's 2880); ``contextual`` (share of T; always 5/32 in the paper, 30, 20
    and 10 of these) or ``contextual_count`` (tokens per prompt); ``reduce``; ``merged``; ``block`` (block of the tower,
    negative = from the end; None = the features').

    ```bibtex
    @inproceedings{yang2025visionzip,
      title={{VisionZip}: Longer is Better but Not Necessary in Vision Language Models},
      author={Yang, Senqiao and Chen, Yukang and Tian, Zhuotao and Wang, Chengyao and Li, Jingyao and Yu, Bei and
              Jia, Jiaya},
      booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
      year={2025},
      note={arXiv:2412.04467}
    }
    ```
    """

    name: ClassVar[str] = "visionzip"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset(
        {Need.VISION_ROWS, Need.VISION_KEYS, Need.VISION_HIDDEN, Need.HIDDEN, Need.GRID}
    )
    merges: ClassVar[bool] = True

    contextual: Annotated[ShareOrNone, ReplacedBy("contextual_count", "split")] = Field(
        default=0.15625, description="share of the kept tokens that others merge into"
    )
    contextual_count: int | None = Field(
        default=None, ge=0, description="kept tokens per prompt that others merge into, instead of contextual"
    )
    reduce: Literal["add", "mean"] = Field(
        default="add", description="target plus the mean of what joined it, or the mean of them all"
    )
    merged: Literal["centre", "behind"] = Field(
        default="centre", description="where contextual tokens go on: in their target's place, or behind the image"
    )
    block: int | None = Field(
        default=None, description="block of the vision tower that is read, -1 = the last; None = that of the features"
    )

    @model_validator(mode="after")
    def _consistent(self) -> VisionZip:
        if self.merged == "behind" and self.positions != "renumber":
            what, must = "merged of strategy 'visionzip'", "be 'centre' where positions are kept"
            raise ValueError(complaint(what, must, self.merged, "set positions: renumber as well"))
        return self

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The dominant tokens, and targets with what joined them."""
        import torch

        from tokentrim import Groups, added, merge_into, rows_at

        counts: tuple[int, ...] = tuple(count.tolist())
        split = tuple(resolve_count(kept, self.contextual, self.contextual_count) for kept in counts)
        pictures, width = Groups.pictures(site.grid, site.valid), site.valid.shape[1]
        place = torch.arange(width, device=site.device)
        room = pictures.share(split, among=counts)  # contextual tokens in the picture of each token
        first = pictures.share(counts) - room  # dominant ones
        score = site.vision_rows[:, 0].sum(dim=1)
        site.note(score, "chooses the dominant tokens; the others merge by their keys")
        dominant = site.valid & (pictures.rank(score) < first)
        rest = site.valid & ~dominant
        turn = pictures.rank(torch.where(rest, -place, -width))
        stride = ((pictures.size - first) // room.clamp(min=1)).clamp(min=1)
        target = rest & (turn % stride == 0) & (turn // stride < room)

        stays, behind = dominant | target, self.merged == "behind"
        keys = site.vision_keys[:, 0].float().unflatten(-1, (site.vision_rows.shape[2], -1)).mean(dim=-2)
        into = torch.where(stays, place, pictures.nearest(keys, target, max(split, default=0)))
        into = into.masked_fill(~site.valid | (into == width), -1)
        found = merge_into(into, counts, place + width * target, behind=split) if behind else merge_into(into, counts)
        vectors, kept = site.vision_hidden.float(), found.kept
        sums, came = added(torch.zeros_like(vectors), into.masked_fill(stays, -1), vectors)
        own, total, joined = (rows_at(each, kept) for each in (vectors, sums, came.unsqueeze(-1)))
        new = own + total / joined.clamp(min=1) if self.reduce == "add" else (own + total) / (1 + joined)
        return replace(found, features=torch.where(joined > 0, site.project(new), rows_at(site.hidden, kept)))
