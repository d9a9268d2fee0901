"""``evaluate``: measure one model, clean and under attacks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dmlbench.api.report import Report
from dmlbench.api.session import attacks_of, dataset_of, opened, plain
from dmlbench.attacks.base import Attack
from dmlbench.common.errors import UserError
from dmlbench.datasets.base import Dataset
from dmlbench.models.base import MODELS, WEIGHT_FILES, Model, parse_model
from dmlbench.models.module import ModuleModel, module_model
from dmlbench.storage.weights import named
from dmlbench.sweep import plan
from dmlbench.sweep.labels import check_label, in_its_row
from dmlbench.sweep.run import RunOptions, run
from dmlbench.sweep.session import Session
from dmlbench.sweep.tasks import Weights
from dmlbench.sweep.weights import (
    checkpoint_weights,
    initial_weights,
    memory_weights,
    trained_on,
)
from dmlbench.zoo.fetch import local_or_zoo

if TYPE_CHECKING:
    from torch import nn

    from dmlbench.metrics.distance import Metric


def evaluate(
    model: nn.Module | str | Path,
    dataset: str | Dataset | None = None,
    suite: str | Sequence[str] | None = None,
    attacks: str | Attack | Sequence[str | Attack] | None = None,
    queries: int | None = None,
    *,
    recalls: bool = False,
    metric: Metric | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    network: str | None = None,
    label: str | None = None,
    training_seed: int | None = None,
    seed: int | None = None,
    allow_code: bool = False,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    eot: int = 1,
    results: str | Path | None = None,
    data_root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = True,
) -> Report:
    """Measure a model on the test split of a data set, clean and under attacks.

    Args:
        model: one of
            - a ``torch.nn.Module`` that maps images (B, C, H, W) in [0, 1] to embeddings (B, D). It
              is copied, and measured in eval mode. Stored cells are of the same module if weights,
              attributes and code are the same; values that its code reads from elsewhere (globals,
              closures) are not seen: give such modules a results folder each;
            - the name of a model of the zoo, such as ``"fashion-mini/hm"``;
            - a checkpoint: a file of weights, or the folder or manifest of a trained model;
            - the spec of a network with the weights it begins with, such as
              ``"mobilenet_v2:head=none,weights=FILE"``: a network as it was published.
        dataset: spec of a data set, or what ``dmlbench.from_arrays`` made; None: the one in the
            manifest of a trained model, else ``"fashion-mini"``.
        suite: ``"strict"``: attacks as the papers define them; ``"ers"``: as the published code
            computes them; ``"auto"``: as the papers define them, under a strong optimizer (APGD,
            100 steps); or several; None: ``"strict"``, but for attacks that name their own.
        attacks: specs of attacks, such as ``"ca+"`` or ``["es", "ca+:w=5,eps=8/255"]``; None: those
            of the suite, which are the nine of ERS, and in auto also ``top1`` and ``radius``; an
            empty list: none, clean images alone.
        queries: attack that many test images, drawn at random and the same for every model; None:
            each of them.
        recalls: also R@1, 2, 4 and 8 of the attacked queries and the distance that their embeddings
            were moved, of each attack that perturbs a query: ``report["LTM:R@4"]``.
        metric: the distance of embeddings: ``"N"`` Euclidean after normalising (the default),
            ``"E"`` Euclidean, ``"C"`` 1 - cosine.
        mean: of each channel of pixels in [0, 1], to normalise images before a
            ``torch.nn.Module``.
        std: the standard deviation of each channel, for the same.
        network: spec of the network that a checkpoint belongs to; None: what its manifest says, or
            the network of the data set.
        label: the model's name in tables; give each model its own where results are stored.
        training_seed: seed that a checkpoint or a module was trained with, where no manifest says
            it; None: 0. Models of one label that differ in it are one row, a mean over seeds.
        seed: decides the targets of attacks; None: that of the training. Headings say where it is
            another than that.
        allow_code: run the code of a network or a data set that the manifest of a checkpoint names.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:1"``; ``"auto"`` takes a GPU if there is one.
        batch_size: images a forward pass; changes numbers by rounding only.
        threads: CPU threads.
        precision: ``"fp32"``, ``"tf32"`` or ``"bf16"``, of the network.
        eot: of a randomised network, gradients and outcomes are means over so many draws.
        results: a results folder to store cells in, and to take stored ones from; None: nothing is
            stored. A module with an attribute that cannot be compared (an object of any class, a
            lambda), or with code that is in no file, is measured again each time; a warning names
            it.
        data_root: folder of data sets; None: ``~/.cache/dmlbench``.
        cache: folder for decoded images.
        progress: show progress on standard error.

    Returns:
        The numbers. An attack that failed is in ``report.failed``; the others are measured.

    Raises:
        UserError: an argument that is wrong, data or weights that are missing.
    """
    if isinstance(model, str) and (place := local_or_zoo(model)) != Path(model):
        model = place
    check_label(label)
    queries, seed, training_seed = plain(queries), plain(seed), plain(training_seed)
    if dataset is None:
        dataset = _known_dataset(model, allow_code) or "fashion-mini"
    chosen = dataset_of(dataset)
    asked = attacks_of(attacks, suite)
    with opened(
        chosen,
        results,
        data_root,
        cache,
        device=device,
        batch_size=batch_size,
        threads=threads,
        precision=precision,
        eot=eot,
        progress=progress,
    ) as session:
        session.check_queries(queries)
        planned = plan.planned_attacks(asked, chosen.protocol.threat, queries, recalls)
        seeds = training_seed, seed
        weights = _weights(session, model, metric, (mean, std), network, label, seeds, allow_code)
        weights = in_its_row(session, weights, label, *seeds)
        options = RunOptions() if results is None else _reuse(weights.model, model)
        return Report.of(run(session, [weights], planned, options), session.store)


def _reuse(model: Model, given: nn.Module | str | Path) -> RunOptions:
    """Take stored cells, unless the module was given and they may be those of another one."""
    if isinstance(given, str | Path) or not isinstance(model, ModuleModel):
        return RunOptions()
    unknown = model.attributes.unknown
    if not unknown:
        return RunOptions()
    warnings.warn(
        f"stored cells are not taken, and are replaced: whether this {type(given).__name__} is the "
        f"one that they were measured with cannot be told from {named(unknown)}",
        stacklevel=3,
    )
    return RunOptions(resume="never")


def _known_dataset(model: nn.Module | str | Path, allow_code: bool) -> str:
    """The data set in the manifest of a checkpoint; empty if there is none."""
    if not isinstance(model, str | Path) or not (_is_path(model) and _exists(model)):
        return ""
    return trained_on(Path(model), allow_code)


def _is_path(model: str | Path) -> bool:
    """True for a file, or what is spelt like one.

    A text that begins with the name of a network is a spec, also where a file happens to be called
    so: ``./lenet`` is that file.
    """
    if isinstance(model, Path):
        return True
    if model.partition(":")[0] in MODELS.names():
        return False
    return _exists(model) or Path(model).suffix in WEIGHT_FILES


def _exists(path: str | Path) -> bool:
    """True for a file or a folder; false for a text that is too long to name one."""
    try:
        return Path(path).exists()
    except OSError:
        return False


def _numbers(values: Any) -> tuple[float, ...]:
    """Numbers of channels as a tuple; UserError if they are none."""
    try:
        return tuple(map(float, values))
    except (TypeError, ValueError):
        raise UserError(
            f"mean and std must be one number per channel each, got {values!r}"
        ) from None


def _no_model(given: object) -> UserError:
    """The error that what was given stands for no network."""
    remedy = "put a function into the forward of a module"
    if isinstance(given, type):
        remedy = f"make a network of the class {given.__name__}"
    return UserError(
        f"model must be a torch.nn.Module, a file of weights, or a spec such as 'lenet', got "
        f"{type(given).__name__}: {remedy}"
    )


def _weights(
    session: Session,
    model: nn.Module | str | Path,
    metric: Metric | None,
    normalisation: tuple[Sequence[float], Sequence[float]],
    network: str | None,
    label: str | None,
    seeds: tuple[int | None, int | None],
    allow_code: bool,
) -> Weights:
    """The weights that ``model`` stands for; ``seeds`` of the training and of the attacks."""
    from torch import nn

    training_seed, seed = seeds
    common, compute = (session.dataset, session.digest), session.compute
    mean, std = (_numbers(values) for values in normalisation)
    if isinstance(model, nn.Module):
        if network is not None:
            raise UserError("network= is for a checkpoint; a torch.nn.Module is measured as it is")
        held = module_model(model, metric, mean, std)
        name = label or held.card.name
        made_with = training_seed or 0
        seed = made_with if seed is None else seed
        return memory_weights(*common, held, held.digest, name, seed, compute, made_with)
    if metric is not None or mean or std:
        raise UserError(
            "metric, mean and std are for a torch.nn.Module; of a checkpoint or a spec they are "
            "part of the network: network='c2f2:metric=E'"
        )
    if not isinstance(model, str | Path):
        raise _no_model(model)
    path = Path(model)
    if isinstance(model, Path) or _is_path(model):
        parsed = parse_model(network) if network else None
        return checkpoint_weights(
            *common,
            parsed,
            path,
            label=label,
            seed=seed,
            compute=compute,
            allow_code=allow_code,
            training_seed=training_seed,
        )
    if network is not None:
        raise UserError(f"model {model!r} is no file: network= is for a checkpoint")
    if training_seed is not None:
        raise UserError("training_seed= is for a checkpoint or a torch.nn.Module")
    parsed = parse_model(model)
    return initial_weights(session.dataset, session.data, parsed, label, seed or 0, compute)
