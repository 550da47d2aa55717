"""``scissor``: tokens that are connected by likeness become one, within frames and then across them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage

if TYPE_CHECKING:
    from torch import Tensor


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
    """

    frames: Tensor
    nodes: Tensor
    whole: Tensor
    kept: Tensor
    vectors: Tensor
    assigned: Tensor
    counts: tuple[int, ...]


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

    Cost: cosines within frames, O(N P D), and between component tokens, O(M^2 D) time and O(M^2) memory, with a few
    passes over these, at most ``log2 M``; a read of the device per pass, and three more.

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

        if not max(site.n_visual, default=0):
            return Selection.everything(site.n_visual, site.device)
        found, features = self.components(site), site.features.float()
        batch, width, wide = features.shape
        # A place more, where what belongs nowhere is written.
        slots = found.kept.shape[1]
        slot = found.assigned.masked_fill(found.assigned < 0, slots)
        sums = torch.nn.functional.pad(found.vectors, (0, 0, 0, 1))
        sums = sums.scatter_add(1, slot.unsqueeze(-1).expand_as(features), features)
        members = slot.new_ones(batch, slots + 1).scatter_add(1, slot, torch.ones_like(slot))
        tokens = (sums / members.unsqueeze(-1))[:, :slots]

        at = found.kept.masked_fill(found.kept < 0, width).unsqueeze(-1).expand(-1, -1, wide)
        changed = torch.nn.functional.pad(features, (0, 0, 0, 1)).scatter(1, at, tokens)
        apart = site.valid & (found.assigned < 0)
        mask = torch.nn.functional.pad(apart, (0, 1)).scatter(1, at[..., 0], found.kept >= 0)[:, :width]
        extra = apart.sum(dim=1).tolist()
        counts = tuple(own + more for own, more in zip(found.counts, extra, strict=True))
        chosen = Selection.from_mask(mask, counts)
        where = chosen.kept.clamp(min=0).unsqueeze(-1).expand(-1, -1, wide)
        return Selection(chosen.kept, counts, features=changed.gather(1, where))

    def components(self, site: LayerSite) -> Components:
        """What is connected with what at a site."""
        import torch

        from tokentrim import Pictures, first_argmax, unit, within

        features, grid = site.features.float(), site.grid
        batch, width, wide = features.shape
        placed = site.valid & (grid.row >= 0)
        pictures = Pictures.of(site)
        parts = pictures.split(features)
        real = pictures.split(placed) & within(pictures.sizes, parts.shape[1], site.device)
        directions = unit(parts)
        close = directions @ directions.transpose(1, 2) > self.tau
        stands, means = self._joined(parts, close & real.unsqueeze(1) & real.unsqueeze(2))

        # Back to rows; one place more takes the padding.
        index = torch.arange(batch * width, device=site.device).view(batch, width)
        index = index if pictures.index is None else pictures.index
        home = index.masked_fill(~real, batch * width).flatten()
        first = index.gather(1, stands) - index.div(width, rounding_mode="floor") * width
        frames = first.new_full((batch * width + 1,), -1).scatter(0, home, first.flatten())[:-1].view(batch, width)
        vectors = means.new_zeros(batch * width + 1, wide).index_copy(0, home, means.flatten(0, 1))
        vectors = vectors[:-1].view(batch, width, wide)

        is_node = placed & (frames == torch.arange(width, device=site.device))
        nodes = Selection.from_mask(is_node, tuple(is_node.sum(dim=1).tolist())).kept
        there, vectors = nodes >= 0, vectors.gather(1, nodes.clamp(min=0).unsqueeze(-1).expand(-1, -1, wide))
        video = grid.image.gather(1, nodes.clamp(min=0))
        pairs = (video.unsqueeze(1) == video.unsqueeze(2)) & there.unsqueeze(1) & there.unsqueeze(2)
        directions = unit(vectors)
        whole, means = self._joined(vectors, (directions @ directions.transpose(1, 2) > self.tau) & pairs)

        is_last = there & (whole == torch.arange(whole.shape[1], device=site.device))
        counts: tuple[int, ...] = tuple(is_last.sum(dim=1).tolist())
        at = Selection.from_mask(is_last, counts).kept
        kept = nodes.gather(1, at.clamp(min=0)).masked_fill(at < 0, -1)
        vectors = means.gather(1, at.clamp(min=0).unsqueeze(-1).expand(-1, -1, wide))
        own = grid.image.unsqueeze(2) == video.gather(1, at.clamp(min=0)).unsqueeze(1)  # [B, N, K]
        likeness = unit(features) @ unit(vectors).transpose(1, 2)
        likeness = likeness.masked_fill(~(own & (at >= 0).unsqueeze(1)), -2.0)
        assigned = first_argmax(likeness).masked_fill(~placed, -1) if at.shape[1] else frames
        return Components(frames, nodes, whole.masked_fill(~there, -1), kept, vectors, assigned, counts)

    def _joined(self, vectors: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        """int64 [B, N], the member with most edges of every node's component, and [B, N, D], at that, the means."""
        import torch

        label, width = connected(edges), edges.shape[1]
        places = torch.arange(width, device=edges.device)
        # One number orders by edges, then by the lower place.
        order = edges.sum(dim=2) * width + (width - 1 - places)
        best = torch.zeros_like(label).scatter_reduce(1, label, order, "amax")
        stands = width - 1 - best.gather(1, label) % max(width, 1)
        at = stands.unsqueeze(-1).expand_as(vectors)
        size = torch.zeros_like(label).scatter_add(1, stands, torch.ones_like(label)).clamp(min=1)
        return stands, torch.zeros_like(vectors).scatter_add(1, at, vectors) / size.unsqueeze(-1)


def connected(edges: Tensor) -> Tensor:
    """int64 [B, N]: the lowest node of each node's connected component, of symmetric ``edges`` bool [B, N, N].

    Every component hooks on to its neighbour with the lowest number. That is its first edge in one order of all edges
    (by the lower, then the higher number), so hooks form no circle but of two, and each pass at least halves the
    components that have a neighbour: ``log2 N`` passes are enough. Most need three; whether one is left is read.
    """
    import torch

    batch, width, _ = edges.shape
    places = torch.arange(width, device=edges.device).expand(batch, width)
    label = places
    for _ in range(max(width - 1, 0).bit_length()):
        number = label.int()
        foreign = edges & (number.unsqueeze(1) != number.unsqueeze(2))
        beside = torch.where(foreign, number.unsqueeze(1), width).amin(dim=2).long()
        hook = torch.full_like(label, width).scatter_reduce(1, label, beside, "amin")
        if not bool((hook < width).any()):
            break
        hook = torch.where(hook < width, hook, places)
        both = hook.gather(1, hook) == places
        hook = torch.where(both & (places < hook), places, hook)
        for _ in range(width.bit_length()):
            hook = hook.gather(1, hook)
        label = hook.gather(1, label)
    return label
