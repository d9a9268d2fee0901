"""The zoo: trained models that come with the package, or are fetched and checked by SHA-256.

``registry.yaml`` lists the models. ``models/NAME/`` holds the manifest of each, the rows that were
measured of it (``results.csv``) and, of the small ones, the weights.
"""
