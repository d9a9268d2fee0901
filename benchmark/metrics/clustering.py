"""Normalised mutual information (NMI) between a k-means clustering and the classes.

K-means ends in a local optimum that its random start decides, and with it the NMI moves by several
points. So several starts are made, and the one with the least inertia counts: the sum of squared
distances to the centroids, which knows nothing of the classes. The literature took one start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NMI_VERSION = 2  # 1: a single start
KMEANS_SEED = 1234  # of the first start; the others count up from it
KMEANS_ITERATIONS = 25
STARTS = 8
MOST_WORK = 1_500_000_000  # starts x items x clusters; Stanford Online Products gets two starts


@dataclass(frozen=True)
class ClusteringNMI:
    """The NMI of the k-means start with the least inertia, and the range over all starts.

    Attributes:
        value: NMI in percent, in [0, 100].
        low, high: the lowest and the highest NMI of the starts.
        starts: number of starts.
    """

    value: float
    low: float
    high: float
    starts: int


def kmeans_nmi(embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> ClusteringNMI:
    """Cluster the embeddings by k-means, k = the number of classes, and compute the NMI.

    Args:
        embeddings: (N, D) float32, of any norm; they are L2-normalised first.
        labels: (N,) class of each embedding.
    """
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    points = np.ascontiguousarray(embeddings / np.maximum(norms, 1e-12), dtype=np.float32)
    k = len(np.unique(labels))
    starts = int(np.clip(MOST_WORK // (len(points) * k), 1, STARTS))
    found = [kmeans(points, k, KMEANS_SEED + number) for number in range(starts)]
    values = [normalized_mutual_information(one.assignment, labels) for one in found]
    best = min(range(starts), key=lambda number: found[number].inertia)
    return ClusteringNMI(values[best], min(values), max(values), starts)


class Clusters(NamedTuple):
    """A clustering of N points of D numbers.

    Attributes:
        centres: (k, D) float32.
        assignment: (N,) the number of each point's cluster.
        inertia: the sum of the squared distances to the centres.
    """

    centres: npt.NDArray[np.float32]
    assignment: npt.NDArray[np.int64]
    inertia: float


def kmeans(points: npt.NDArray[np.float32], k: int, seed: int) -> Clusters:
    """Cluster ``points`` (N, D) from one random start."""
    import faiss

    search = faiss.Kmeans(
        points.shape[1],
        k,
        niter=KMEANS_ITERATIONS,
        seed=seed,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),  # faiss would otherwise draw 256 points per centroid
    )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # with more, the order of sums and so the clusters change
    try:
        search.train(points)
        squared, assignment = search.index.search(points, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    assert search.centroids is not None
    return Clusters(search.centroids, assignment[:, 0], float(squared.sum(dtype=np.float64)))


def normalized_mutual_information(
    clusters: npt.NDArray[np.int64], classes: npt.NDArray[np.int64]
) -> float:
    """Compute 2 I(A; B) / (H(A) + H(B)) in percent, in [0, 100].

    It is 100 if both divisions consist of a single group, where the quotient is 0 / 0.

    Args:
        clusters, classes: (N,) group of each item in the two divisions A and B.
    """
    _, a = np.unique(clusters, return_inverse=True)
    _, b = np.unique(classes, return_inverse=True)
    pairs, joint_counts = np.unique(a * (b.max() + 1) + b, return_counts=True)
    joint = joint_counts / len(a)
    p_a, p_b = np.bincount(a) / len(a), np.bincount(b) / len(b)
    h_a, h_b = -np.sum(p_a * np.log(p_a)), -np.sum(p_b * np.log(p_b))
    if h_a + h_b == 0:
        return 100.0
    expected = p_a[pairs // (b.max() + 1)] * p_b[pairs % (b.max() + 1)]
    return float(100 * 2 * np.sum(joint * np.log(joint / expected)) / (h_a + h_b))
