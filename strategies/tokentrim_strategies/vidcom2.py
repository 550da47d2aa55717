"""``vidcom2``: of a video, the frames and the tokens that differ from the rest of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from tokentrim import LayerSite, ModelShape, Need, Schedule, Selection, SpatialSelector, Stage
from tokentrim_strategies._shares import KeepingShares

if TYPE_CHECKING:
    from torch import Tensor

_BANDWIDTHS: Final = (0.125, 0.25, 0.5, 1.0, 2.0)
_TEMPERATURE: Final = 0.01


class VidCom2(KeepingShares, SpatialSelector):
    """Keep, of every frame of a video, the tokens least like the mean of the frame and of the video.

    The half of the channels with the lowest variance over the video counts, ``floor(D / 2)`` of them; x_j are the
    projected tokens in these channels, scaled to length 1, c_f their mean over frame f and c their mean over the video:

    - ``u_j = k(x_j, c)`` and ``s_j = u_j + k(x_j, c_f)`` with ``k(x, c) = sum over a = 1/8, 1/4, 1/2, 1, 2 of
      exp(-|x - c|^2 / (2 a))``;
    - frame f gets the share ``r_f = min(1, R (1 + p_f - mean p))`` of its tokens, p the softmax over the video's frames
      of ``-(mean of u_j over the frame) / 0.01``, and keeps ``max(1, round(r_f P))`` of its P tokens, half to even;
    - in a frame the tokens with the smallest s_j stay.

    Follows the released code, which sums the kernels: averaged, the softmax would be five times flatter. As it is,
    nearly always one frame takes the whole bonus, about 2 R, and all others get R (1 - 1/F) of F frames. Rounding, and
    a token for every frame, make the number of tokens depend on the video. ``total: released`` leaves it at that; by
    default it is brought to the number asked for, as in vLLM: the tokens with the largest s_j go, or those with the
    smallest come, whichever frame they are in, but one of each frame stays where the number allows it.

    Every video of a prompt is treated by itself, and all get the same share R. **An image is a video** whose frames are
    its thumbnail and its tiles, or the picture alone (ours: the code leaves images whole). A single picture keeps what
    is least like its own mean. Line ends stay, as in the code.

    When it fails: it never reads the question. What differs from the mean is noise as well as news; in a still scene
    the one thing that matters is in every frame, and lost in all. Budgets near one token per frame.

    Cost: a few passes over the features, O(N D), before the language model, and one read of the device. The whole
    tower has seen every frame.

    Parameters: ``keep_ratio`` (share kept, R; the code's default is 0.25, too) or ``keep_count`` (tokens kept per
    prompt), ``total``.

    ```bibtex
    @inproceedings{liu2025vidcom2,
      title={Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models},
      author={Liu, Xuyang and Wang, Yiyu and Ma, Junpeng and Zhang, Linfeng},
      booktitle={Proceedings of the 2025 Conference on Empirical Methods in Natural Language Processing},
      year={2025},
      note={arXiv:2505.14454}
    }
    ```
    """

    name: ClassVar[str] = "vidcom2"
    stage: ClassVar[Stage] = "input"
    needs: ClassVar[frozenset[Need]] = frozenset({Need.FEATURES, Need.GRID})

    def schedule(self, shape: ModelShape, n_visual: int) -> Schedule:
        """As many as asked for; as released they may be more, by the number of frames: all are the upper bound."""
        return super().schedule(shape, n_visual) if self.total == "exact" else Schedule.of({0: n_visual})

    def select(self, site: LayerSite, count: Tensor) -> Selection:
        """The best of every frame, those within the frame's share, and then the others."""
        import torch

        from tokentrim import Pictures, ranks_within, within

        frames = Pictures.of(site)
        features = frames.split(site.features).float()
        real = within(frames.sizes, features.shape[1], site.device)
        names = list(zip(frames.rows, frames.images, strict=True))
        video = torch.tensor([names.index(name) for name in names], dtype=torch.int64, device=site.device)
        share = [self.share_of(int(count[row]), site.n_visual[row]) for row in frames.rows]

        to_video, to_frame = _likeness(features.masked_fill(~real.unsqueeze(2), 0.0), real, video)
        size = real.sum(dim=1)
        # As the code does it, in float32: where a share falls between two numbers, rounding decides.
        mean = (to_video.sum(dim=1, dtype=torch.float64) / size.clamp(min=1)).float()
        raised = self.raised(torch.tensor(share, device=site.device), -mean / _TEMPERATURE, video.unsqueeze(1) == video)
        quota = (raised * size).round().long().clamp(min=1)

        score = -(to_video + to_frame)
        rank = ranks_within(score, (~real).long())
        site.note(frames.back(score), "unlike the mean of its frame and of its video; every frame has a share")
        tiers = (rank > 0).long() + (rank >= quota.unsqueeze(1)).long()
        return self.settled(site, frames.back(score), frames.back(tiers), count)


def _likeness(features: Tensor, real: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
    """float32 [F, n], twice: how much tokens [F, n, D] are like the mean of their video (int64 [F]) and their frame."""
    import torch

    from tokentrim import unit

    member = (torch.arange(len(video), device=video.device).unsqueeze(1) == video).double()  # [videos or more, F]
    size = real.sum(dim=1).double()
    length = (member @ size).clamp(min=1).unsqueeze(1)

    def over(values: Tensor) -> tuple[Tensor, Tensor]:
        """Means of each frame, and of the video of each frame; doubles add up alike in any batch."""
        total = values.sum(dim=1, dtype=torch.float64)
        return (total / size.clamp(min=1).unsqueeze(1)).float(), (member @ total / length)[video].float()

    deviation = (features - over(features)[1].unsqueeze(1)).masked_fill(~real.unsqueeze(2), 0.0)
    variance = over(deviation.square())[1]
    steady = variance.argsort(dim=1, stable=True)[:, : max(features.shape[2] // 2, 1)]
    tokens = unit(features.gather(2, steady.unsqueeze(1).expand(-1, features.shape[1], -1)))
    frame, whole = over(tokens)

    def like(centre: Tensor) -> Tensor:
        distance = (tokens - centre.unsqueeze(1)).square().sum(dim=2)
        return torch.stack([torch.exp(-distance / (2 * a)) for a in _BANDWIDTHS]).sum(dim=0).masked_fill(~real, 0.0)

    return like(whole), like(frame)
