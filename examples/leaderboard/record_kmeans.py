"""Record the scores of a release for published splits: the nearest of 50 k-means centers.

    oneway leaderboard --data digits --seed 0 --splits splits
    python record_kmeans.py splits/digits-seed0.npz

The centers are fitted to the operator's queries, or else to auxiliary inputs. The release is then
recorded for auxiliary inputs and for queries. A center may have another label than the scores that
it stands for: such changes are counted.
"""

import sys
from pathlib import Path

import numpy as np
from scipy.special import softmax
from sklearn.cluster import KMeans

CENTERS = 50


def main(paths: list[str]) -> None:
    """Write `recorded/NAME` for each split."""
    for path in map(Path, paths):
        split = np.load(path)
        scores = softmax(split["logits"].astype(np.float64), axis=1)
        clusters = KMeans(CENTERS, n_init=1, random_state=0)
        kept = split["split"] == "calibration"  # the operator's own queries, where there are some
        clusters.fit(scores[kept if kept.any() else split["split"] == "auxiliary"])
        released = clusters.cluster_centers_[clusters.predict(scores)]
        asked = split["split"] != "calibration"
        recorded = Path("recorded") / path.name
        recorded.parent.mkdir(exist_ok=True)
        np.savez(
            recorded,
            keys=split["keys"][asked],
            target=split["target"],
            confidences=released[asked],
        )
        print(f"Wrote {recorded}")


if __name__ == "__main__":
    main(sys.argv[1:])
