"""``scissor``: tokens that are connected by likeness become one, within frames and then across them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage

if TYPE_CHECKING:
    from torch import Tensor

_AT_ONCE: Final = 1 << 22
"""Cosines that are held at once (float32: 17 MB)."""


@dataclass(frozen=True)
class Components:
    """What the two rounds of components found, and which token belongs to what; -1 where there is nothing.

    Attributes:
        frames: int64 [B, N]: the token that stands for each token's component in its frame.
        nodes: int64 [B, M]: these tokens, ascending.
        whole: int64 [B, M]: of each of them, the one of ``nodes`` that stands for its component over all frames.
        kept: int64 [B, K]: these tokens, ascending; ``counts`` of each row.
        vectors: float32 [B, K, D]: their components' means.
        assigned: int64 [B, N]: the one of ``kept`` that each token is most like.
        counts: per row.
        apart: per row, tokens without a place.
    """

    frames: Tensor
    nodes: Tensor
    whole: Tensor
    kept: Tensor
    vectors: Tensor
    assigned: Tensor
    counts: tuple[int, ...]
    apart: tuple[int, ...]


class Scissor(SpatialSelector):
    """Replace tokens that are connected by likeness with their means, in each frame and then over all frames.

    Tokens i and j are joined by an edge where ``cos(x_i, x_j) > tau``, of projected features. At the input:

    - in every frame, each connected component becomes one token, the mean of its members;
    - over all of these tokens of a video, again: each connected component becomes the mean of its members;
    - every original token x joins the component token c that it is most like; a group of m becomes
      ``(c + sum of its x) / (1 + m)``.

    A component's token takes the place of its member with most edges, the lowest of several. How many tokens are left
    is the picture's doing: the plan says at most everything.

    Follows the released code, whose components are approximate: it looks at ``min(n, ceil(ln n / epsilon^2))`` of n
    tokens, which with its epsilon of .05 are all up to n of about 3200. Here they are always exact. The method is for
    videos; an image is one of a single frame, or of as many as it has tiles (ours). Several videos are compressed each
    by itself, and tokens without a place (row ends) stay as they are (both ours).

    When it fails: components are chains: with a low ``tau`` a gradual change across a picture becomes one token, with
    a high one nothing is joined. The budget is whatever comes out. It never reads the question.

    Cost: cosines within frames, O(N P D), and between the M component tokens, O(M^2 D) / 2 time and M^2 bytes, with a
    few passes over these, at most ``log2 M``; each token that is not alone against what is left. A read of the device
    per pass, and three more.

    Parameters: ``tau``, a cosine (.9 in the released model's configuration, .95 in the code's defaults).

    ```bibtex
    @article{sun2025llavascissor,
      title={{LLaVA-Scissor}: Token Compression with Semantic Connected Components for Video {LLMs}},
      author={Sun, Boyuan and Zhao, Jiaxing and Wei, Xihan and Hou, Qibin},
      journal={arXiv preprint arXiv:2506.21862},
      year={2025},
      note={arXiv:2506.21862}
    }
    ```
    """

    name: ClassVar[str] = "scissor"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.GRID})
    count_is_static: ClassVar[bool] = False
    merges: ClassVar[bool] = True

    tau: float = Field(
        default=0.9, ge=-1, le=1, allow_inf_nan=False, description="cosine above which two tokens are connected"
    )

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """At the input; at most everything."""
        return Schedule.of({0: n_visual})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The tokens of the components, and those that have no place."""
        import torch

        from tokentrim import added, rows_at, written

        if not max(site.n_visual, default=0):
            return Selection.everything(site.n_visual, site.device)
        found, features = self.components(site), site.features.float()
        width, wide = features.shape[1:]
        sums, came = added(found.vectors, found.assigned, features)
        at = found.kept.masked_fill(found.kept < 0, width).unsqueeze(-1).expand(-1, -1, wide)
        changed = torch.nn.functional.pad(features, (0, 0, 0, 1)).scatter(1, at, sums / (1 + came).unsqueeze(-1))
        mask = written(site.valid & (found.assigned < 0), found.kept, found.kept >= 0)
        counts = tuple(own + more for own, more in zip(found.counts, found.apart, strict=True))
        chosen = Selection.from_mask(mask, counts)
        return replace(chosen, features=rows_at(changed, chosen.kept))

    def components(self, site: LayerSite) -> Components:
        """What is connected with what at a site."""
        import torch

        from tokentrim import Pictures, cluster_means, most_alike, rows_at, within, written

        features, grid = site.features.float(), site.grid
        width = features.shape[1]
        placed, places = site.valid & (grid.row >= 0), torch.arange(width, device=site.device)
        pictures = Pictures.of(site)

        def inside(part: Pictures, sizes: tuple[int, ...]) -> Tensor:
            vectors = part.split(features)
            real = part.split(placed) & within(sizes, vectors.shape[1], site.device)
            return self._hubs(vectors, real.long() - 1)

        hubs = pictures.in_parts(inside, pictures.sizes)
        if pictures.index is not None:
            hubs = pictures.index.gather(1, hubs.clamp(min=0)) % width
        frames = pictures.back(hubs).masked_fill(~placed, -1)
        means = cluster_means(features, frames)

        is_node = placed & (frames == places)
        nodes = Selection.from_mask(is_node, tuple(is_node.sum(dim=1).tolist())).kept
        there, means, nothing = nodes >= 0, rows_at(means, nodes), torch.full_like(frames, -1)
        whole = self._hubs(means, grid.image.gather(1, nodes.clamp(min=0)).masked_fill(~there, -1))
        whole = whole.masked_fill(~there, -1)

        # The token that stands for each token's component over all frames, and whether it is nothing but itself.
        last = written(nothing, nodes, nodes.gather(1, whole.clamp(min=0))).gather(1, frames.clamp(min=0))
        last = last.masked_fill(~placed, width)
        members = last.new_zeros(len(last), width + 1).scatter_add(1, last, torch.ones_like(last))
        rest = placed & ~((members.gather(1, last) == 1) & (features.square().sum(dim=2) > 0))
        is_last, apart = placed & (last == places), site.valid & ~placed
        counts, others, lone = torch.stack([one.sum(dim=1) for one in (is_last, rest, apart)]).tolist()
        kept = Selection.from_mask(is_last, tuple(counts)).kept
        at = written(nothing, nodes, places[: nodes.shape[1]].expand_as(nodes))
        vectors = rows_at(cluster_means(means, whole), at.gather(1, kept.clamp(min=0)))
        slot = (is_last.cumsum(dim=1) - 1).masked_fill(~placed, -1)
        rest = Selection.from_mask(rest, tuple(others)).kept
        if rest.shape[1]:
            mine, theirs = (grid.image.gather(1, of.clamp(min=0)).masked_fill(of < 0, -1) for of in (rest, kept))
            slot = written(slot, rest, most_alike(rows_at(features, rest), vectors, mine, theirs)[1])
        return Components(frames, nodes, whole, kept, vectors, slot, tuple(counts), tuple(lone))

    def _hubs(self, vectors: Tensor, group: Tensor) -> Tensor:
        """int64 [B, N], the member with most edges of every node's component; only nodes of one ``group`` have any, and
        those of group -1 have none.
        """
        import torch

        from tokentrim import connected, unit

        directions, (rows, width) = unit(vectors), group.shape
        edges = torch.empty(rows, width, width, dtype=torch.bool, device=group.device)
        step = max(1, _AT_ONCE // max(rows * width, 1))
        for first in range(0, width, step):
            block = slice(first, first + step)
            own = group[:, block, None]
            close = directions[:, block] @ directions[:, first:].transpose(1, 2) > self.tau
            close &= (own == group[:, None, first:]) & (own >= 0)
            edges[:, block, first:], edges[:, first:, block] = close, close.transpose(1, 2)
        label, places = connected(edges), torch.arange(width, device=edges.device)
        degree = torch.cat([block.sum(dim=2) for block in edges.split(step, dim=1)], dim=1)
        # One number orders by edges, then by the lower place.
        best = torch.zeros_like(label).scatter_reduce(1, label, degree * width + (width - 1 - places), "amax")
        return width - 1 - best.gather(1, label) % width
