"""The trainer: seeds, exact resumption, and clear errors if a training diverges."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dmlbench.common.errors import CellError, UserError
from dmlbench.common.hashing import derived_seed, file_sha256
from dmlbench.compute.device import Compute
from dmlbench.core.protocol import Recipe, TrainingThreat
from dmlbench.datasets.base import RetrievalData, Split
from dmlbench.defenses.base import Defense
from dmlbench.defenses.hm import HardnessManipulation
from dmlbench.defenses.none import NoDefense
from dmlbench.evaluation.evaluator import evaluation
from dmlbench.models.base import parse_model
from dmlbench.models.small import C2F2
from dmlbench.storage import checkpoint
from dmlbench.testing import make_split
from dmlbench.training import batches, trainer
from dmlbench.training.log import TENSORBOARD
from dmlbench.training.trainer import Monitoring, Training, train
from tests.reporters import Silent

THREAT = TrainingThreat(eps=0.1, eta=2, alpha=0.06)
CPU = Compute("cpu")


def make(data: RetrievalData, defense: Defense | None = None, **recipe: Any) -> Training:
    resolved = (defense or HardnessManipulation()).resolve(THREAT, "N")
    chosen = Recipe(**{"epochs": 3, "pairs": 16} | recipe)
    return Training("tiny", data.digest, C2F2(dim=8), resolved, chosen, seed=0)


def weights(folder: Path) -> str:
    return file_sha256(folder / checkpoint.WEIGHTS)


def test_the_seed_decides_the_weights(tiny: RetrievalData, tmp_path: Path) -> None:
    spec = make(tiny)
    found = []
    for name, one in {"a": spec, "b": spec, "c": replace(spec, seed=1)}.items():
        torch.manual_seed(ord(name))  # what ran before must not matter
        np.random.seed(ord(name))
        manifest = train(one, tiny, tmp_path / name, CPU, Silent())
        found.append(manifest.sha256)
    assert found[0] == found[1] == weights(tmp_path / "a")
    assert found[0] != found[2]


def test_each_epoch_has_batches_of_its_own(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image is the anchor once an epoch, in another order and with another positive."""
    epochs: dict[str, list[Any]] = {}
    real = trainer._TrainingRun.step

    def kept(self: Any, *args: Any) -> Any:
        _, index, _, _, where, *_ = args
        epochs.setdefault(where.split(",")[0], []).append(index)
        return real(self, *args)

    monkeypatch.setattr(trainer._TrainingRun, "step", kept)
    train(make(tiny, NoDefense(), epochs=2), tiny, tmp_path, CPU, Silent())
    first, second = (np.concatenate(epochs[f"epoch {number}"]).reshape(-1, 2) for number in (1, 2))
    assert sorted(first[:, 0]) == sorted(second[:, 0]) == list(range(len(tiny.train.labels)))
    assert not np.array_equal(first[:, 0], second[:, 0])
    pairs = [dict(map(tuple, epoch.tolist())) for epoch in (first, second)]
    assert any(pairs[0][anchor] != pairs[1][anchor] for anchor in pairs[0])


def test_an_interrupted_run_ends_with_the_same_weights(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(tiny)
    whole = train(spec, tiny, tmp_path / "whole", CPU, Silent())
    real = trainer._TrainingRun.step
    for stop in (1, 12):  # in the first and in the third epoch
        folder, calls = tmp_path / f"cut{stop}", 0

        def cut(self: Any, *args: Any, stop: int = stop) -> Any:
            nonlocal calls
            calls += 1
            if calls > stop:
                raise KeyboardInterrupt
            return real(self, *args)

        monkeypatch.setattr(trainer._TrainingRun, "step", cut)
        with pytest.raises(KeyboardInterrupt):
            train(spec, tiny, folder, CPU, Silent())
        assert checkpoint.verified_manifest(folder) is None
        monkeypatch.setattr(trainer._TrainingRun, "step", real)
        resumed = train(spec, tiny, folder, CPU, Silent())
        assert resumed.sha256 == whole.sha256
        assert resumed.history == whole.history
        assert not (folder / checkpoint.STATE).exists()


class Dropping(nn.Module):
    """A network that draws from the generators of Python and of NumPy while it is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(np.random.rand(8), dtype=torch.float32))
        self.last = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = x.flatten(1)[:, :8] * self.scale
        if self.training and random.random() < 0.5:
            e = e * (1 + float(np.random.rand()))
        return self.last(e)


def test_the_seed_decides_what_a_network_draws_by_python_or_numpy(
    tiny: RetrievalData, tmp_path: Path
) -> None:
    """The generators are afterwards as they were."""
    network = parse_model(f"{__name__}:Dropping")
    one = replace(make(tiny, NoDefense(), epochs=1), model=network)
    found = []
    for number in (1, 2):
        random.seed(number)
        np.random.seed(number)
        before = random.getstate(), np.random.get_state()[1].tolist()
        found.append(train(one, tiny, tmp_path / str(number), CPU, Silent()).sha256)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert found[0] == found[1]


def test_a_train_split_of_one_class_with_pairs_is_refused(
    tiny: RetrievalData, tmp_path: Path
) -> None:
    """Images alone in their class are drawn neither as positives nor as negatives."""
    images = tiny.train.images[:12]
    for labels, words in (
        ([0] * 6 + [*range(1, 7)], "only one class of the train split has two images or more"),
        ([*range(12)], "has no images to train on"),
        ([0, 0, 1, 1, *range(2, 10)], "4 images with a partner in their class"),
    ):
        data = RetrievalData(Split(images, np.array(labels)), tiny.test)
        with pytest.raises(UserError, match=words):
            train(make(data, pairs=5), data, tmp_path, CPU, Silent())


def test_a_damaged_state_is_said_and_not_used(tiny: RetrievalData, tmp_path: Path) -> None:
    spec, reporter = make(tiny), Silent()
    whole = train(spec, tiny, tmp_path / "whole", CPU, Silent())
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / checkpoint.STATE).write_bytes(b"0" * 64 + b"\nnot a state")
    assert train(spec, tiny, folder, CPU, reporter).sha256 == whole.sha256
    assert "damaged" in reporter.warnings[0]


def test_the_manifest_says_what_made_the_model(tiny: RetrievalData, tmp_path: Path) -> None:
    manifest = train(make(tiny), tiny, tmp_path, CPU, Silent())
    stored = json.loads((tmp_path / checkpoint.MANIFEST).read_text())
    assert stored == manifest.as_json()
    assert stored["label"] == "HM[S,g_LGA]&ICS"
    assert stored["training"]["data"] == tiny.digest
    assert stored["training"]["defense_values"]["eta"] == 2
    assert stored["training_cost"] == 3
    assert len(stored["history"]) == 3
    assert all(0 <= epoch["passes_saved"] < 1 for epoch in stored["history"])
    assert {"dmlbench", "libraries", "device", "threads"} <= set(stored["provenance"])


def test_training_learns(tiny: RetrievalData, tmp_path: Path) -> None:
    spec = make(tiny, NoDefense(), epochs=8)
    history = train(spec, tiny, tmp_path, CPU, Silent()).history
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_identity_follows_everything_that_changes_the_weights(tiny: RetrievalData) -> None:
    spec = make(tiny)
    others = [
        replace(spec, seed=1),
        replace(spec, digest="other"),
        replace(spec, model=C2F2(dim=9)),
        replace(spec, model=C2F2(dim=8, metric="C")),
        replace(spec, recipe=Recipe(epochs=3, pairs=16, lr=2e-3)),
        make(tiny, HardnessManipulation(ics=0)),
        make(tiny, NoDefense()),
    ]
    ids = {one.id for one in [spec, *others]}
    assert len(ids) == len(others) + 1
    assert replace(spec, dataset="another spelling").id == spec.id


@pytest.mark.parametrize("defense", [NoDefense(margin=1e38), HardnessManipulation()])
def test_divergence_stops_with_the_step_and_a_remedy(
    tiny: RetrievalData, tmp_path: Path, defense: Defense
) -> None:
    spec = make(tiny, defense, lr=1e30)
    with pytest.raises(CellError, match=r"epoch 1, step \d+.*lower learning rate than 1e\+30"):
        train(spec, tiny, tmp_path, CPU, Silent())
    assert checkpoint.verified_manifest(tmp_path) is None


def test_a_collapse_is_said_while_it_happens(tiny: RetrievalData, tmp_path: Path) -> None:
    flat = Split(np.full_like(tiny.train.images, 128), tiny.train.labels)
    data, reporter = RetrievalData(flat, tiny.test), Silent()
    train(make(data, NoDefense(), epochs=2), data, tmp_path, CPU, reporter)
    assert len(reporter.warnings) == 2  # once an epoch
    assert "collapsing" in reporter.warnings[0]


def test_a_batch_larger_than_the_data_is_refused(tiny: RetrievalData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"999 pairs is larger than .*--recipe pairs=\d+"):
        train(make(tiny, pairs=999), tiny, tmp_path, CPU, Silent())


@pytest.mark.parametrize("metric", ["N", "E", "C"])
def test_every_metric_trains(tiny: RetrievalData, tmp_path: Path, metric: str) -> None:
    model = C2F2(dim=8, metric=metric)  # type: ignore[arg-type]
    defense = HardnessManipulation().resolve(THREAT, model.metric)
    spec = Training("tiny", tiny.digest, model, defense, Recipe(epochs=1, pairs=16), 0)
    manifest = train(spec, tiny, tmp_path, CPU, Silent())
    assert math.isfinite(manifest.history[0]["loss"])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / checkpoint.LOG).read_text().splitlines()]


def test_the_log_has_a_line_a_step_and_one_an_epoch(tiny: RetrievalData, tmp_path: Path) -> None:
    manifest = train(make(tiny), tiny, tmp_path, CPU, Silent())
    written = lines(tmp_path)
    steps = [line for line in written if "step" in line]
    assert [(s["epoch"], s["step"]) for s in steps] == [
        (e, s) for e in (1, 2, 3) for s in range(1, 6)
    ]
    epochs = [line for line in written if "step" not in line]
    assert [e | {"epoch": 0} for e in epochs] == [h | {"epoch": 0} for h in manifest.history]
    first = [s["loss"] for s in steps if s["epoch"] == 1]
    assert np.mean(first) == pytest.approx(epochs[0]["loss"])
    assert all(s["images_per_second"] > 0 for s in steps)


def test_validation_changes_no_weight_and_is_recorded(tiny: RetrievalData, tmp_path: Path) -> None:
    spec = make(tiny)
    bare = train(spec, tiny, tmp_path / "bare", CPU, Silent())
    watched = train(spec, tiny, tmp_path / "watched", CPU, Silent(), Monitoring(validate=2))
    assert watched.sha256 == bare.sha256
    recalls = [epoch.get("R@1") for epoch in watched.history]
    assert recalls[0] is None
    assert recalls[1] is not None
    model = spec.model.build(1, 8)
    checkpoint.load_weights(tmp_path / "watched" / checkpoint.WEIGHTS, model)
    with evaluation(model, tiny, CPU, Silent()) as measured:
        assert recalls[2] == pytest.approx(measured.benign().metrics["R@1"].value)


def test_an_interrupted_log_goes_on_without_a_torn_or_double_line(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(tiny)
    real, calls = trainer._TrainingRun.step, 0

    def cut(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 8:  # in the second epoch
            raise KeyboardInterrupt
        return real(self, *args)

    monkeypatch.setattr(trainer._TrainingRun, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tiny, tmp_path, CPU, Silent(), Monitoring(tensorboard=True))
    monkeypatch.setattr(trainer._TrainingRun, "step", real)
    with (tmp_path / checkpoint.LOG).open("a") as log:
        log.write('{"epoch": 2, "ste')
    train(spec, tiny, tmp_path, CPU, Silent(), Monitoring(tensorboard=True))
    steps = [(line["epoch"], line["step"]) for line in lines(tmp_path) if "step" in line]
    assert steps == [(e, s) for e in (1, 2, 3) for s in range(1, 6)]
    events = EventAccumulator(str(tmp_path / TENSORBOARD)).Reload()
    assert [e.step for e in events.Scalars("step/loss")] == list(range(1, 16))
    assert [e.step for e in events.Scalars("epoch/loss")] == [5, 10, 15]


def test_read_ahead_by_workers_gives_the_same_weights(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(tiny, NoDefense())
    whole = train(spec, tiny, tmp_path / "resident", CPU, Silent())
    path = tmp_path / "images.npy"
    np.save(path, tiny.train.images)
    mapped = Split(np.load(path, mmap_mode="r"), tiny.train.labels)
    big = RetrievalData(mapped, tiny.test)
    assert train(spec, big, tmp_path / "copied", CPU, Silent()).sha256 == whole.sha256
    monkeypatch.setattr(batches, "RESIDENT_BYTES", 0)
    assert train(spec, big, tmp_path / "read", CPU, Silent()).sha256 == whole.sha256


def test_mixed_precision_is_another_training(tiny: RetrievalData, tmp_path: Path) -> None:
    full, mixed = make(tiny, NoDefense()), make(tiny, NoDefense(), precision="bf16")
    assert full.id != mixed.id
    found = [train(one, tiny, tmp_path / one.id, CPU, Silent()) for one in (full, mixed)]
    assert found[0].sha256 != found[1].sha256
    losses = [manifest.history[0]["loss"] for manifest in found]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
    # the precision of an evaluation is no part of a training
    reduced = replace(CPU, precision="bf16")
    again = train(full, tiny, tmp_path / "again", reduced, Silent())
    assert again.sha256 == found[0].sha256


def test_tf32_on_a_cpu_is_refused(tiny: RetrievalData, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tf32 needs a GPU"):
        train(make(tiny, precision="tf32"), tiny, tmp_path, CPU, Silent())


def test_proxies_learn_and_are_resumed(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make(tiny, NoDefense(loss="proxy-anchor"), epochs=2)
    whole = train(spec, tiny, tmp_path / "whole", CPU, Silent())
    assert whole.history[1]["loss"] < whole.history[0]["loss"]
    real = trainer._TrainingRun.epoch

    def cut(self: Any, number: int, *args: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return real(self, number, *args)

    monkeypatch.setattr(trainer._TrainingRun, "epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tiny, tmp_path / "cut", CPU, Silent())
    monkeypatch.setattr(trainer._TrainingRun, "epoch", real)
    assert train(spec, tiny, tmp_path / "cut", CPU, Silent()).sha256 == whole.sha256


def test_a_state_is_kept_between_epochs_alone(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    real = trainer._TrainingRun.save

    def save(self: Any, folder: Path, history: Any, seconds: float) -> None:
        kept.append(len(history))
        assert seconds > 0
        real(self, folder, history, seconds)

    monkeypatch.setattr(trainer._TrainingRun, "save", save)
    train(make(tiny, NoDefense(), epochs=3), tiny, tmp_path, CPU, Silent())
    assert kept == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [checkpoint.LOG, checkpoint.MANIFEST, checkpoint.WEIGHTS]
    )


def test_proxies_learn_a_hundred_times_as_fast(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[list[dict[str, Any]]] = []
    adam = torch.optim.Adam

    def seen(groups: list[dict[str, Any]], **settings: Any) -> torch.optim.Adam:
        given.append(groups)
        return adam(groups, **settings)

    monkeypatch.setattr(torch.optim, "Adam", seen)
    spec = make(tiny, NoDefense(loss="proxy-anchor"), epochs=1, lr=0.002)
    train(spec, tiny, tmp_path, CPU, Silent())
    assert [group["lr"] for group in given[0]] == pytest.approx([0.002, 0.2])
    assert [len(group["params"]) for group in given[0]][1] == 1


def test_a_test_split_without_a_match_has_no_recall(tiny: RetrievalData, tmp_path: Path) -> None:
    lonely = Split(tiny.test.images[:5], np.arange(5))
    data = RetrievalData(tiny.train, lonely)
    manifest = train(make(data, NoDefense()), data, tmp_path, CPU, Silent(), Monitoring(validate=1))
    assert [epoch["R@1"] for epoch in manifest.history] == [None] * 3


def test_weights_that_diverge_in_the_last_step_are_not_kept(tmp_path: Path) -> None:
    data = RetrievalData(make_split(1, each=16), make_split(2))
    spec = make(data, NoDefense(), epochs=1, pairs=80, lr=1e30)  # a single step
    with pytest.raises(CellError, match="embeddings are not finite in epoch 1, step 1"):
        train(spec, data, tmp_path, CPU, Silent())
    assert checkpoint.verified_manifest(tmp_path) is None


def test_a_state_of_another_training_is_not_taken(
    tiny: RetrievalData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, reporter = make(tiny), replace(make(tiny), seed=1), Silent()
    real = trainer._TrainingRun.epoch

    def cut(self: Any, number: int, *args: Any) -> Any:
        if number == 1:
            raise KeyboardInterrupt
        return real(self, number, *args)

    monkeypatch.setattr(trainer._TrainingRun, "epoch", cut)
    with pytest.raises(KeyboardInterrupt):
        train(other, tiny, tmp_path / "one", CPU, Silent())
    monkeypatch.undo()
    resumed = train(one, tiny, tmp_path / "one", CPU, reporter)
    assert "another training" in reporter.warnings[0]
    assert resumed.sha256 == train(one, tiny, tmp_path / "two", CPU, Silent()).sha256


def test_frozen_parameters_stay(tiny: RetrievalData, tmp_path: Path) -> None:
    class Half(C2F2):
        def build(self, *args: Any, **kwargs: Any) -> Any:
            model = super().build(*args, **kwargs)
            next(model.parameters()).requires_grad_(False)
            return model

    spec = replace(make(tiny, NoDefense(), epochs=1), model=Half(dim=8))
    train(spec, tiny, tmp_path, CPU, Silent())
    torch.manual_seed(derived_seed(0, "init"))
    before = next(C2F2(dim=8).build(1, 8).parameters())
    after = spec.model.build(1, 8)
    checkpoint.load_weights(tmp_path / checkpoint.WEIGHTS, after)
    weights = list(after.parameters())
    assert torch.equal(weights[0], before)
    assert not torch.equal(weights[1], list(C2F2(dim=8).build(1, 8).parameters())[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_trains_the_same_recipe(tiny: RetrievalData, tmp_path: Path) -> None:
    spec = make(tiny)
    cpu = train(spec, tiny, tmp_path / "cpu", CPU, Silent())
    gpu = train(spec, tiny, tmp_path / "gpu", Compute("cuda"), Silent())
    assert gpu["training_id"] == cpu["training_id"]
    assert gpu.history[0]["loss"] == pytest.approx(cpu.history[0]["loss"], abs=0.02)
