"""Normalised mutual information (NMI) between a k-means clustering and the classes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

KMEANS_SEED = 1234
KMEANS_ITERATIONS = 25


def kmeans_nmi(embeddings: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> float:
    """Cluster the embeddings by k-means, k = the number of classes; return the NMI in percent.

    Args:
        embeddings: (N, D) float32, of any norm; they are L2-normalised first.
        labels: (N,) class of each embedding.
    """
    import faiss

    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    points = np.ascontiguousarray(embeddings / np.maximum(norms, 1e-12), dtype=np.float32)
    k = len(np.unique(labels))
    kmeans = faiss.Kmeans(
        points.shape[1],
        k,
        niter=KMEANS_ITERATIONS,
        seed=KMEANS_SEED,
        min_points_per_centroid=1,
        max_points_per_centroid=len(points),  # faiss would otherwise draw 256 points per centroid
    )
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # with more, the order of sums and so the clusters change
    try:
        kmeans.train(points)
        _, assignment = kmeans.index.search(points, 1)
    finally:
        faiss.omp_set_num_threads(threads)
    return normalized_mutual_information(assignment[:, 0], labels)


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
