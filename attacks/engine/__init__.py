"""What the attack families stand on: PGD, the gallery, targets."""
