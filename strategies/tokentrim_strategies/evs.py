"""``evs``: of a video, the first frame and what changes from one frame to the next."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage, keep_count
from tokentrim_strategies._keeping import Share
from tokentrim_strategies._video import like_earlier

if TYPE_CHECKING:
    from torch import Tensor

    from tokentrim import Pictures


class EVS(SpatialSelector):
    """Drop the visual tokens of a video that are like the token at the same place one frame before, at boundary 0.

    With x the projected tokens, ``d(t, p) = 1 - cos(x(t, p), x(t-1, p))`` at place p of frame t, and more than any of
    these in the first frame: of a video with m tokens, P of them in its first frame, the tokens with the largest d
    stay, ``max(P, floor(keep_ratio m))`` in whichever frames they are. Equal ones go to the earlier token. So the
    first frame stays whole, and of a still video little besides.

    **Images are one frame, and so stay whole**: on prompts without a video nothing is pruned, and the report says so.
    A video needs more than ``1 / keep_ratio`` frames before its share is that. How many frames a prompt has is not
    known from its number of tokens; a plan can only say that at most everything stays, and no budget can be asked
    for: the counts that were met stand in the report. Every video of a prompt is treated by itself.

    Follows vLLM's code, whose pruning rate is ``1 - keep_ratio`` and which leaves images whole, too. The paper compares
    pixels instead of tokens. vLLM gives kept tokens of Qwen2.5-VL the positions that they had, as here, but lets the
    text go on at the width of the grid, and not behind the largest position, as the unpruned model and this one do.
    Line ends stay. A token whose predecessor an earlier part of a composition has dropped counts as new (ours).

    When it fails: a moving camera, cuts and film grain make everything new, and d then ranks noise. It knows neither
    the question nor what is salient, and a slow change is never large from one frame to the next.

    Cost: one dot product per token, O(N D), before the language model, and one read of the device. The whole tower
    has seen every frame.

    Parameters: ``keep_ratio`` (share kept of each video; 0.25 is a pruning rate of 0.75).

    ```bibtex
    @article{bagrov2025evs,
      title={Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster {VLM} Inference},
      author={Bagrov, Natan and Khvedchenia, Eugene and Tymchenko, Borys and Aharon, Shay and Kadoch, Lior and
              Keren, Tomer and Masad, Ofri and Geifman, Yonatan and Zilberstein, Ran and Rintamaki, Tuomas and
              Le, Matthieu and Tao, Andrew},
      journal={arXiv preprint arXiv:2510.14624},
      year={2025},
      note={arXiv:2510.14624}
    }
    ```
    """

    name: ClassVar[str] = "evs"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.GRID})
    count_is_static: ClassVar[bool] = False

    keep_ratio: Share = Field(default=0.25, description="share of each video's tokens that is kept, at least one frame")

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """The upper bound: everything, as of an image."""
        return Schedule.of({0: n_visual})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The tokens of every video that changed most."""
        import torch

        from tokentrim import Pictures, ranks_within

        grid, width = site.grid, site.ids.shape[1]
        change = 1 - like_earlier(site, 1)
        site.note(change, "unlike the frame before; the first frame stays")

        pictures = Pictures.of(site)
        room = self.rooms(pictures)
        quota = torch.tensor([room[video] for video in zip(pictures.rows, pictures.images, strict=True)])
        quota = pictures.back(quota.to(site.device).unsqueeze(1).expand(-1, pictures.split(change).shape[1]))
        rank = ranks_within(change, (grid.image + 1).masked_fill(~site.valid, width))
        counts = tuple(sum(kept for (of, _), kept in room.items() if of == row) for row in range(len(site.n_visual)))
        return Selection.from_mask(site.valid & (rank < quota), counts)

    def rooms(self, pictures: Pictures) -> dict[tuple[int, int], int]:
        """(row, number of the video) -> tokens that stay of it; all of what has no place in any grid."""
        size, first = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for row, video, frame, tokens in zip(
            pictures.rows, pictures.images, pictures.frames, pictures.sizes, strict=True
        ):
            size[row, video] += tokens
            first[row, video] += tokens if frame <= 0 or video < 0 else 0
        return {video: max(first[video], keep_count(self.keep_ratio, tokens)) for video, tokens in size.items()}
