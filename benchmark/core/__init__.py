"""The base of attacks, defenses, data sets and models: registry, specs, papers, protocols."""
