"""Arithmetic on visual tokens that several methods share: clustering, and thinning out what is alike.

Pure functions, for the strategies that come with tokentrim and for plugins. B rows of a batch, N points of the longest
row, D numbers per point. Rows may be ragged: per-row counts are host integers, the points of a row stand first, and
what stands behind them is ignored. Only :func:`connected` reads the device, and a row gives the same result alone and
in any batch. Equal values go to the lower index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import torch
from torch import Tensor

from tokentrim.contracts.selection import pad_rows

_PAIRS: Final = 1 << 25
"""Pairs of tokens that tables of several pictures hold at once (float32: 134 MB)."""
_EDGES: Final = 1 << 22
"""Edges that are looked at at once."""


def within(counts: Sequence[int], width: int, device: torch.device) -> Tensor:
    """bool [B, width]: True in the first ``counts[row]`` columns of each row."""
    return torch.arange(width, device=device) < torch.tensor(counts, device=device).unsqueeze(1)


def unit(vectors: Tensor) -> Tensor:
    """float32 [..., D]: ``vectors`` scaled to length 1, so that dot products are cosines; zero vectors stay zero."""
    return torch.nn.functional.normalize(vectors.float(), dim=-1)


def first_argmax(values: Tensor) -> Tensor:
    """int64 [...]: index of the largest value along the last axis, the lowest where several are largest.

    ``torch.argmax`` leaves the order of ties to the device. NaN must not occur.
    """
    places = torch.arange(values.shape[-1], device=values.device)
    largest = values == values.amax(dim=-1, keepdim=True)
    return torch.where(largest, places, values.shape[-1]).amin(dim=-1)


def like_sizes(sizes: Sequence[int]) -> list[list[int]]:
    """Numbers of the ``sizes``, ascending by size, in parts whose tables of all pairs are held at once.

    A large picture beside many small ones would make tables as large as its own for every one.
    """
    parts = list[list[int]]()
    for number in sorted(range(len(sizes)), key=sizes.__getitem__):
        if not parts or (len(parts[-1]) + 1) * sizes[number] ** 2 > _PAIRS:
            parts.append([])
        parts[-1].append(number)
    return parts


def density_peaks(
    points: Tensor,
    sizes: Sequence[int],
    clusters: Sequence[int],
    neighbours: Sequence[int],
    noise: Tensor,
    *,
    assign: Literal["distance", "cosine"] = "distance",
) -> tuple[Tensor, Tensor]:
    """The centre that each point belongs to, int64 [B, N], and the centres, best first, int64 [B, max(clusters)].

    Both are indices 0..N-1, and -1 behind what a row has.

    Density-peak clustering with k nearest neighbours. With ``d_ij = |x_i - x_j| / sqrt(D)``:

    - density ``rho_i = exp(-mean of d_ij^2 over the k nearest points, i itself among them)``;
    - distance ``delta_i = min d_ij over all denser j``, or the largest of all distances where no point is denser;
    - centres: the points with the largest ``rho_i delta_i``, as many as ``clusters`` says;
    - every other point belongs to the nearest centre, by distance or by cosine. A centre belongs to itself.

    Of two points of equal density, or equal product, the one with more noise comes first. (Published code adds noise
    of 1e-6 to densities near 1 instead, which its working precision cannot always tell apart.) With k = 1 every
    density is 1, and with k = 2 two points that are each other's nearest are equally dense, so there noise decides
    among the densest, in published code as well.

    Cost: O(N^2 D) time, O(N^2) memory per row.

    Args:
        points: [B, N, D].
        sizes: points of each row.
        clusters: centres of each row, at most its size.
        neighbours: k of each row, at least 1 where the row has points and at most its size.
        noise: [B, N], to part what is equal.
        assign: what "nearest" means when points are given to centres.

    Source: Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal component
    analysis", Knowledge-Based Systems 99, 2016.
    """
    points = points.float()
    width, device = points.shape[1], points.device
    real = within(sizes, width, device)
    pairs = real.unsqueeze(1) & real.unsqueeze(2)  # [B, N, N]
    # Differences, not dot products: no cancellation, and a pair's distance does not depend on the rest of the batch.
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist") / points.shape[-1] ** 0.5

    most = max(neighbours, default=0)
    nearest = distance.masked_fill(~pairs, float("inf")).sort(dim=-1).values[..., :most]
    counted = within(neighbours, most, device).unsqueeze(1)
    k = torch.tensor(neighbours, device=device).clamp(min=1).unsqueeze(1)
    density = torch.exp(-nearest.square().masked_fill(~counted, 0.0).sum(dim=-1) / k)

    equal = density.unsqueeze(1) == density.unsqueeze(2)
    denser = (density.unsqueeze(1) > density.unsqueeze(2)) | (equal & (noise.unsqueeze(1) > noise.unsqueeze(2)))
    denser = denser & pairs  # [B, i, j]: j is denser than i
    largest = distance.masked_fill(~pairs, 0.0).amax(dim=(1, 2)).unsqueeze(1)
    above = distance.masked_fill(~denser, float("inf")).amin(dim=-1)
    delta = torch.where(denser.any(dim=-1), above, largest)
    order = noise.argsort(dim=-1, descending=True, stable=True)
    product = (density * delta).masked_fill(~real, -1.0).gather(1, order)
    order = order.gather(1, product.argsort(dim=-1, descending=True, stable=True))
    centre = torch.zeros_like(real).scatter(1, order, within(clusters, width, device))

    closeness = -distance if assign == "distance" else torch.matmul(unit(points), unit(points).transpose(1, 2))
    own = first_argmax(closeness.masked_fill(~centre.unsqueeze(1), float("-inf")))
    own = torch.where(centre, torch.arange(width, device=device), own)
    return own.masked_fill(~real, -1), pad_rows(order[:, : max(clusters, default=0)], clusters)


def clustered(
    points: Tensor, noise: Tensor, rows: Sequence[Tensor], clusters: Sequence[int], neighbours: int
) -> tuple[Tensor, Tensor]:
    """Density peaks of several sets of points, those of like sizes together: two int64 [T].

    The centre that each of the points belongs to (itself where no row names it), and of centres their place among those
    of their row, best first (of all others a number of their own).

    Args:
        points: [T, D].
        noise: [T].
        rows: on the host, int64 [n]: the points that are clustered together; each is in one row at most.
        clusters: centres of each row.
        neighbours: k; in smaller rows their size.
    """
    spare, device = len(points), points.device
    own = rank = torch.arange(spare + 1, device=device)
    for part in like_sizes([len(row) for row in rows]):
        mine = [rows[number] for number in part]
        sizes, wanted = [len(row) for row in mine], [clusters[number] for number in part]
        index = torch.nn.utils.rnn.pad_sequence(mine, batch_first=True, padding_value=spare).to(device)
        at = index.clamp(max=spare - 1)
        found, centres = density_peaks(points[at], sizes, wanted, [min(neighbours, n) for n in sizes], noise[at])
        own = own.index_put((index,), at.gather(1, found.clamp(min=0)))
        chosen = index.gather(1, centres.clamp(min=0)).masked_fill(centres < 0, spare)
        rank = rank.index_put((chosen,), torch.arange(chosen.shape[1], device=device).expand_as(chosen))
    return own[:-1], rank[:-1]


def connected(edges: Tensor) -> Tensor:
    """int64 [B, N]: the lowest node of each node's connected component, of symmetric ``edges`` bool [B, N, N].

    Every component hooks on to its neighbour with the lowest number. That is its first edge in one order of all edges
    (by the lower, then the higher number), so hooks form no circle but of two, and each pass at least halves the
    components that have a neighbour: ``log2 N`` passes are enough. Most need three; whether one is left is read.
    """
    batch, width, _ = edges.shape
    places = torch.arange(width, device=edges.device).expand(batch, width)
    blocks = edges.split(max(1, _EDGES // max(batch * width, 1)), dim=1)
    label = places
    for _ in range(max(width - 1, 0).bit_length()):
        number = label.int()
        beside: list[Tensor] = []
        for block, own in zip(blocks, number.split([block.shape[1] for block in blocks], dim=1), strict=True):
            foreign = block & (number.unsqueeze(1) != own.unsqueeze(2))
            beside.append(torch.where(foreign, number.unsqueeze(1), width).amin(dim=2))
        hook = torch.full_like(label, width).scatter_reduce(1, label, torch.cat(beside, dim=1).long(), "amin")
        if not bool((hook < width).any()):
            break
        hook = torch.where(hook < width, hook, places)
        both = hook.gather(1, hook) == places
        hook = torch.where(both & (places < hook), places, hook)
        for _ in range(width.bit_length()):
            hook = hook.gather(1, hook)
        label = hook.gather(1, label)
    return label


def thin_similar(features: Tensor, order: Tensor, sizes: Sequence[int], keep: Sequence[int], step: int = 8) -> Tensor:
    """int64 [B, max(keep)]: what is left of a list of tokens when near-duplicates go, a few at a time; -1 in padding.

    While a row's list of R tokens is longer than ``keep``: split it by turns into ``a`` (places 0, 2, ...) and ``b``
    (places 1, 3, ...); each a is as similar as its largest cosine with any b; the ``min(step, R - keep, |a|)`` most
    similar ones go; the rest of a, most similar first, then b, is the new list. The halves may differ by one.

    Cost: one N x N matrix of cosines, O(N^2 D), then O(R N) in each of about ``(R - keep) / step`` rounds.

    Args:
        features: [B, N, D], one vector per token that the list may name.
        order: int64 [B, R]: the tokens (0..N-1) of each list; the order decides who is compared with whom.
        sizes: length of each list.
        keep: how many of each list stay, at most its size.
        step: tokens that go at once, >= 1.

    Source: the bipartite matching of Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, dropping instead
    of merging.
    """
    directions = unit(features)
    rows, width = features.shape[:2]
    cosines = torch.matmul(directions, directions.transpose(1, 2)).flatten(0, 1)  # [B N, N]
    begins = torch.arange(rows, device=order.device).unsqueeze(1) * width
    current = list(sizes)
    while any(size > kept for size, kept in zip(current, keep, strict=True)):
        going = [min(step, size - kept, (size + 1) // 2) for size, kept in zip(current, keep, strict=True)]
        a, b = order[:, ::2], order[:, 1::2]
        in_a = within([(size + 1) // 2 for size in current], a.shape[1], order.device)
        in_b = within([size // 2 for size in current], b.shape[1], order.device)
        # Whole rows of the matrix, all but b's columns out of the running: copying what lies together is several times
        # faster than picking pairs. Below every cosine: -2 for a without a partner, -3 for padding, which goes last.
        others = cosines.new_full((rows, width + 1), float("-inf"))
        others = others.scatter(1, b.masked_fill(~in_b, width), 0.0)[:, None, :width]
        mine = cosines.index_select(0, (a.clamp(min=0) + begins).flatten()).view(rows, a.shape[1], width)
        similar = mine.add_(others).amax(dim=-1).clamp(min=-2.0).masked_fill(~in_a, -3.0)
        a = a.gather(1, similar.argsort(dim=-1, descending=True, stable=True))
        stays = in_a & ~within(going, a.shape[1], order.device)
        current = [size - gone for size, gone in zip(current, going, strict=True)]
        joined, real = torch.cat([a, b], dim=1), torch.cat([stays, in_b], dim=1)
        front = torch.argsort((~real).to(torch.uint8), dim=1, stable=True)[:, : max(current)]
        order = joined.gather(1, front)
    most = max(keep, default=0)
    return order[:, :most].masked_fill(~within(keep, most, order.device), -1)
