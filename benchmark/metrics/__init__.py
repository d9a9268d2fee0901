"""Pure tensor functions: distances, retrieval metrics, ranks, ERS, clustering, intervals."""
