"""Files of data sets: where they lie, archives, decoding and the cache."""
