"""The computation: device, embedding model, several processes, provenance."""
