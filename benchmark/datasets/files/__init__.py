"""Files of data sets: their folders, archives, decoding, and the cache of decoded images."""
