"""Tell setuptools the folders of the packages; everything else is in pyproject.toml.

``src/dmlbench`` is a link to ``benchmark/``, which contains links to ``attacks/`` and
``defenses/``. Some copies of the source have no links: pip unpacks a .zip without them, and so
does git on Windows. For these the packages are mapped to the folders.
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
