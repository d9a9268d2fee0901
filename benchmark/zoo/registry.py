"""The models of the zoo by their names, and the card of each. Imports no torch, fetches nothing."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import msgspec

from dmlbench.common.errors import UserError
from dmlbench.common.suggest import unknown
from dmlbench.datasets.files.places import HOME
from dmlbench.storage.checkpoint import WEIGHTS, Manifest, read_manifest

PACKAGE = Path(__file__).parent
CACHE = HOME / "zoo"
"""The folder that fetched weights are kept in, one folder per model."""


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model in ``registry.yaml``.

    Attributes:
        summary: the model in a line.
        bytes: size of its file of weights.
        licence: of the weights.
        data: the images that it was trained on, and their licence.
        command: the command that trained it.
        sources: places of the weights where they are not in the package, tried in turn:
            ``https://...``, ``hf://OWNER/REPO/FILE@REVISION`` of the Hugging Face Hub, or the
            folder of a model, relative to a clone of the repository.
    """

    summary: str
    bytes: int
    licence: str
    data: str
    command: str
    sources: tuple[str, ...] = ()


class ZooModel(msgspec.Struct, frozen=True):
    """A model of the zoo: its card.

    Attributes:
        name: ``fashion-mini/hm``.
        entry: its lines in the registry.
        manifest: the description of its training, with the SHA-256 of its weights.
    """

    name: str
    entry: Entry
    manifest: Manifest

    @property
    def folder(self) -> Path:
        """Its folder in the package."""
        return PACKAGE / "models" / self.name

    @property
    def rows(self) -> Path:
        """The CSV of what was measured of it, one row per metric."""
        return self.folder / "results.csv"

    @property
    def kept(self) -> Path:
        """The folder that its weights are kept in once they were fetched."""
        return CACHE / self.manifest.sha256[:16]

    @property
    def home(self) -> Path | None:
        """The folder on this machine that holds its weights and manifest; None: to be fetched."""
        clone = PACKAGE.resolve().parent.parent
        inside = [clone / one for one in self.entry.sources if "://" not in one]
        places = (self.folder, *inside, self.kept)
        return next((place for place in places if (place / WEIGHTS).is_file()), None)


@cache
def models() -> dict[str, ZooModel]:
    """Every model of the zoo by its name."""
    import yaml

    raw = yaml.safe_load((PACKAGE / "registry.yaml").read_text(encoding="utf-8"))
    found = {}
    for name, entry in msgspec.convert(raw, dict[str, Entry]).items():
        manifest = read_manifest(PACKAGE / "models" / name)
        if manifest is None:
            raise UserError(f"the zoo has no manifest of {name}: install dmlbench again")
        found[name] = ZooModel(name, entry, manifest)
    return found


def model(name: str) -> ZooModel:
    """The model of that name; UserError if there is none."""
    try:
        return models()[name]
    except KeyError:
        raise UserError(unknown("model of the zoo", name, models())) from None


def card_of(sha256: str) -> ZooModel | None:
    """The model whose weights have this SHA-256; None if none has."""
    return next((one for one in models().values() if one.manifest.sha256 == sha256), None)
