"""What every registered thing is made of: the registry, specs, papers, protocols."""
