"""VideoTree: an adaptive tree of a video, finer where the question is.

Wang et al., CVPR 2025, arXiv:2405.19209. First in breadth: frames are parted into k clusters by their features (k-means
by angle), each is represented by the frame nearest to its mean, and a judge rates how relevant that frame is to the
question, from 1 to 3. While fewer than tau clusters are rated 3 and k is below its limit, k grows by a factor. Then in
depth: clusters rated 2 are parted into w more (Ward's hierarchy), those rated 3 into w and each of these into w again.
The frame most like the mean of each cluster, on all levels, is a leaf; the leaves are the frames to look at.

What is found are shots, however short; a single frame that differs from its neighbours is part of a cluster that none
may open, as its representative is rated alone.

Where we differ:
- (R) The judge is CLIP. In the released code captions of the frames are made, and a language model rates them. Here the
  ratings are thirds of the range that the frames' cosines with the question span: where one moment alone fits, one
  cluster alone is opened, while thirds of the number of frames would rate every third one 3, whatever was asked.
- (R) The leaves are shown to the model, in temporal order; in the released code it reads their captions.
- A rating stays with the cluster whose frame was rated. In the released code ratings are in the order of time and
  clusters are not, so that others are opened.
- K-means starts from frames far apart, not from random ones, and ends when nothing changes; a cluster that loses all
  its frames is gone. k stops at the limit exactly. Leaves are different frames.
- Clusters of one frame stay as they are; at rating 3 the released code loses those of the second level.
- Features are CLIP's (default: the shipped tiny-clip), made unit vectors, for which the frame nearest to a mean is the
  one most like it; the released code tells the two apart. The frames are those the model would have been shown without
  a selection, in the released code one a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from torch.nn.functional import normalize

from elvi.core.facts import Fact
from elvi.core.frames import spanned
from elvi.core.partition import k_means, ward
from elvi.errors import check_asked, check_range
from elvi.families.clip import frame_scorer

if TYPE_CHECKING:
    from elvi.media import Clip


@dataclass(frozen=True)
class VideoTree:
    """Choose time steps that stand for the clip, more of them where it fits the question; how many, the clip decides.

    clusters: k at first; max_clusters: its limit; rate: factor by which it grows; relevant: tau, clusters rated 3 at
    which it is enough; branches: w; scorer: CLIP folder, hub id or tiny-clip.
    Raises BudgetError for values out of range, FitError without a question or a CLIP model.
    """

    clusters: int = 8
    max_clusters: int = 32
    rate: int = 2
    relevant: int = 4
    branches: int = 4
    scorer: str = "tiny-clip"

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.QUESTION_KNOWN})
    breaks: ClassVar[frozenset[Fact]] = frozenset()
    lossless: ClassVar[bool] = False
    full: ClassVar[dict[str, Any] | None] = {"clusters": 1_000_000, "max_clusters": 1_000_000}
    sweep: ClassVar[tuple[str, tuple[float | int, ...]]] = ("max_clusters", (1, 2, 4, 8))

    def __post_init__(self) -> None:
        for field, low in (("clusters", 1), ("max_clusters", 1), ("rate", 2), ("relevant", 0), ("branches", 1)):
            check_range(self, field, low, float("inf"))

    def select_frames(self, clip: Clip, question: str | None) -> np.ndarray:
        if len(clip) <= min(self.clusters, self.max_clusters):
            return np.arange(len(clip))
        check_asked(self, question)
        judge = frame_scorer(self.scorer)
        features = normalize(judge.features(clip), dim=-1)
        score = features @ normalize(judge.text_feature(question), dim=-1)
        return self.leaves(features.double().numpy(), score.double().numpy())

    def leaves(self, features: np.ndarray, score: np.ndarray) -> np.ndarray:
        """Ascending index of the leaves, from unit features [T, d] and scores [T] of the frames."""
        rating = 1 + np.minimum(2, (3 * spanned(score)).astype(int))
        found = [self.opened(features, members, rated) for members, rated in self.breadth(features, rating)]
        return np.unique(np.concatenate(found))

    def breadth(self, features: np.ndarray, rating: np.ndarray) -> list[tuple[np.ndarray, int]]:
        """The clusters of the first level, each as an index of its frames, and how they are rated."""
        count, limit = min(self.clusters, self.max_clusters), min(self.max_clusters, len(features))
        while True:
            group = k_means(features, count)
            clusters = [np.flatnonzero(group == each) for each in range(group.max() + 1)]
            rated = [int(rating[members[typical(features[members])]]) for members in clusters]
            if rated.count(3) >= self.relevant or count >= limit:
                return list(zip(clusters, rated))
            count = min(self.rate * count, limit)

    def opened(self, features: np.ndarray, members: np.ndarray, rating: int) -> list[int]:
        """The leaf of a cluster, and those of its parts if it is opened."""
        found = [int(members[typical(features[members])])]
        if rating > 1 and len(members) > 1:
            part = ward(features[members], self.branches)
            for each in range(part.max() + 1):
                found += self.opened(features, members[part == each], rating - 1)
        return found


def typical(features: np.ndarray) -> int:
    """Which row of [n, d], all of length one, has the highest cosine with their mean: the nearest to it, too."""
    return int((features @ features.mean(0)).argmax())
