"""Functions of tensors alone: distances, retrieval metrics, ranks, ERS, clustering, intervals."""
