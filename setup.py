"""Where the packages lie. Everything else stands in pyproject.toml.

``src/dmlbench`` is a link to ``benchmark/``, which holds links to ``attacks/`` and ``defenses/``.
Where an archive was unpacked without links (pip does so with a .zip), the folders are mapped.
"""

from pathlib import Path

from setuptools import find_packages, setup

if Path("src/dmlbench/attacks/base.py").is_file():
    setup(packages=find_packages("src"), package_dir={"": "src"})
else:
    places = {f"dmlbench.{folder}": folder for folder in ("attacks", "defenses")}
    places["dmlbench"] = "benchmark"
    below = [f"{name}.{part}" for name, folder in places.items() for part in find_packages(folder)]
    setup(packages=[*places, *below], package_dir=places)
