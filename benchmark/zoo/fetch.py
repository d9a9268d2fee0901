"""The weights of a model of the zoo: found on this machine, or fetched and checked."""

from __future__ import annotations

import warnings
from pathlib import Path

from dmlbench.common.download import download
from dmlbench.common.errors import UserError
from dmlbench.common.files import check_writable, locked, read_file, write_atomically
from dmlbench.common.hashing import file_sha256
from dmlbench.common.text import first_line
from dmlbench.storage.checkpoint import MANIFEST, WEIGHTS
from dmlbench.zoo.registry import ZooModel, model, models

HUB = "hf://"


def zoo_folder(name: str) -> Path:
    """The folder of a model of the zoo, with weights and manifest; it is fetched if need be.

    Raises:
        UserError: there is no such model, or its weights cannot be had; the message says how to.
    """
    chosen = model(name)
    home = chosen.home or _fetch(chosen)
    if home == chosen.kept and not (home / MANIFEST).is_file():  # the weights were put there
        write_atomically(home / MANIFEST, read_file(chosen.folder / MANIFEST))
    return home


def local_or_zoo(source: str | Path) -> Path:
    """``source`` as a path; the folder of a model of the zoo if it names one and is no file.

    Raises:
        UserError: it is no file, and begins as names of the zoo do, but the zoo has no such model.
    """
    name, path = str(source), Path(source)
    if name.count("/") != 1 or "." in name or path.exists():
        return path
    begins = {one.partition("/")[0] for one in models()}
    return zoo_folder(name) if name.partition("/")[0] in begins else path


def _fetch(chosen: ZooModel) -> Path:
    """Fetch the weights from the first source that has them, into ``chosen.kept``."""
    hosts = [source for source in chosen.entry.sources if "://" in source]
    by_hand = (
        f"put the file (SHA-256 {chosen.manifest.sha256[:16]}...) into {chosen.kept} as {WEIGHTS}, "
        f"or train it: {chosen.entry.command}"
    )
    if not hosts:
        places = " or ".join(chosen.entry.sources)
        raise UserError(
            f"the weights of {chosen.name} come with a clone of the repository ({places}), not "
            f"with the package: {by_hand}"
        )
    check_writable(chosen.kept, "the cache")
    reasons = []
    busy = f"another process is fetching {chosen.name}"
    with locked(chosen.kept / f".{WEIGHTS}.lock", warnings.warn, busy):
        for source in hosts:
            if chosen.home:  # that process had it
                return chosen.home
            try:
                return fetch_weights(
                    source,
                    chosen.manifest.sha256,
                    chosen.kept,
                    chosen.folder,
                    chosen.entry.bytes,
                )
            except UserError as error:
                reasons.append(str(error))
    raise UserError(f"{'; '.join(reasons)}; {by_hand}")


def fetch_weights(source: str, sha256: str, folder: Path, described: Path, most: int) -> Path:
    """Fetch a file of weights into a model's folder; returns the folder.

    The file gets its name only if its digest is right. What an interrupted download has left is
    gone on with. Nothing in the file is run.

    Args:
        source: ``https://...`` or ``hf://OWNER/REPO/FILE@REVISION``.
        sha256: the digest that the file must have.
        folder: where weights and manifest are put.
        described: the folder with the manifest, which is copied.
        most: the most bytes that the file may have.

    Raises:
        UserError: it cannot be fetched, is too large, or is another file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{WEIGHTS}.part"
    if source.startswith(HUB):
        _from_hub(source, partial, most)
    elif source.startswith("https://"):
        _from_host(source, partial, most)
    else:
        raise UserError(f"{source} is neither https://... nor {HUB}OWNER/REPO/FILE")
    if (found := file_sha256(partial)) != sha256:
        partial.unlink()
        raise UserError(
            f"{source} served another file than the registry says (SHA-256 {found[:16]}..., not "
            f"{sha256[:16]}...)"
        )
    if folder != described:
        write_atomically(folder / MANIFEST, read_file(described / MANIFEST))
    partial.replace(folder / WEIGHTS)
    return folder


def _from_hub(source: str, partial: Path, most: int) -> None:
    """Copy a file of the Hugging Face Hub, by its own client, to ``partial``."""
    place, _, revision = source.removeprefix(HUB).partition("@")
    parts = place.split("/")
    if len(parts) < 3 or not all(parts):
        raise UserError(f"{source} is not {HUB}OWNER/REPO/FILE")
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise UserError(f"{source} needs the Hub's client: pip install 'dmlbench[hub]'") from None
    owner, repository, *rest = parts
    try:
        local = hf_hub_download(f"{owner}/{repository}", "/".join(rest), revision=revision or None)
        size = Path(local).stat().st_size
    except Exception as error:  # of the client and of what it uses
        raise UserError(f"{source} cannot be downloaded ({first_line(error)})") from None
    if size > most:  # its client takes no limit; here it need not fit into memory
        raise UserError(
            f"{source} has {size:,} bytes, more than the {most:,} that the file may have"
        )
    write_atomically(partial, read_file(Path(local)))


def _from_host(source: str, partial: Path, most: int) -> None:
    """Download what ``partial`` lacks of a file; progress goes to standard error."""
    from rich.console import Console

    from dmlbench.common.console_progress import reporter_for

    with reporter_for(Console(stderr=True)) as reporter:
        download(source, partial, reporter, most)
