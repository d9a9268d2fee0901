"""Where things are computed: the device, the embedding model, several processes, provenance."""
