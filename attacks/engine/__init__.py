"""The parts that all attacks share: objectives, optimizers, the gallery, the choice of targets."""
