"""The parts that all attacks share: objectives, optimisers, the gallery, the choice of targets."""
