"""Checkpoints and files of weights: round trips, damage, other containers, and no pickled code."""

from __future__ import annotations

import json
import os
import random
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from dmlbench.common.errors import DamagedError, UserError
from dmlbench.common.files import write_json
from dmlbench.common.hashing import identity, sealed
from dmlbench.compute.embedding import EmbeddingModel
from dmlbench.models.base import parse_model
from dmlbench.models.small import C2F2
from dmlbench.storage import checkpoint
from dmlbench.sweep.weights import trained_on
from tests.cells import MADE, manifest


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fields = manifest().as_json() | {"provenance": MADE}
    facts = {name: fields[name] for name in list(fields)[3:] if name != "checksum"}
    folder = tmp_path / "models" / "0123456789abcdef"
    checkpoint.save(folder, C2F2(dim=4).build(1, 8), facts)
    return folder


def test_a_checkpoint_round_trips(saved: Path) -> None:
    torch.manual_seed(0)
    expected, found = C2F2(dim=4).build(1, 8), C2F2(dim=4).build(1, 8)
    checkpoint.load_weights(saved / checkpoint.WEIGHTS, found)
    for a, b in zip(expected.state_dict().values(), found.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    found_manifest = checkpoint.verified_manifest(saved)
    assert found_manifest == manifest(sha256=checkpoint.file_sha256(saved / checkpoint.WEIGHTS))
    assert checkpoint.verified_manifest(saved, {"seed": 0}) == found_manifest
    with pytest.raises(UserError, match="another training run"):
        checkpoint.verified_manifest(saved, {"seed": 1})


@pytest.mark.parametrize("training", [{}, {"seed": "x"}, {"seed": -1}, {"seed": 0, "recipe": 3}])
def test_a_manifest_whose_training_cannot_be_is_damaged(
    saved: Path, training: dict[str, Any]
) -> None:
    made = manifest(training=training, training_id=identity(training))
    write_json(saved / checkpoint.MANIFEST, made.as_json())
    with pytest.raises(DamagedError, match=r"manifest\.json is damaged .*(seed|recipe)"):
        checkpoint.read_manifest(saved)


def test_a_manifest_of_the_first_version_is_read(saved: Path) -> None:
    path = saved / checkpoint.MANIFEST
    text = json.loads(path.read_text())
    fields = [name for name in checkpoint.Manifest.__struct_fields__ if name != "image_shape"]
    assert list(text) == [*fields, "checksum"]  # image_shape is written where it is known
    later = ("model", "resolved", "processes", "checksum")
    early = {k: v for k, v in text.items() if k not in later} | {"schema": 1}
    path.write_text(json.dumps(early))
    assert checkpoint.verified_manifest(saved) == manifest(schema=1, sha256=text["sha256"])


@pytest.mark.parametrize("how", ["truncated", "flipped", "missing", "manifest", "type", "schema"])
def test_a_damaged_checkpoint_is_refused_with_the_remedy(saved: Path, how: str) -> None:
    weights, path = saved / checkpoint.WEIGHTS, saved / checkpoint.MANIFEST
    content = bytearray(weights.read_bytes())
    if how == "truncated":
        weights.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        content[-1000] ^= 1
        weights.write_bytes(content)
    elif how == "missing":
        weights.unlink()
    elif how == "manifest":
        path.write_text(path.read_text()[:20])
    elif how == "type":
        path.write_text(path.read_text().replace('"training_cost": 9', '"training_cost": "9"'))
    else:
        path.write_text('{"schema": 7}')
    with pytest.raises(DamagedError, match=r"delete") as caught:
        checkpoint.verified_manifest(saved)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b'{"name": "my web app", "icons": []}', b"\x00\xff", b"", b"[1]"]
)
def test_a_manifest_of_another_program_says_nothing_about_weights(
    saved: Path, tmp_path: Path, content: bytes
) -> None:
    file = shutil.copy(saved / checkpoint.WEIGHTS, tmp_path / "w.safetensors")
    (tmp_path / "manifest.json").write_bytes(content)
    assert checkpoint.stored_weights(file).manifest is None
    assert trained_on(file) == ""
    with pytest.raises(DamagedError, match="restore the trained model in") as caught:
        checkpoint.stored_weights(tmp_path)
    assert "delete" not in str(caught.value)


def test_the_state_of_a_training_is_no_model(tmp_path: Path) -> None:
    state = tmp_path / checkpoint.STATE
    state.write_bytes(b"0" * 64 + b"\n" + b"state")
    for place in (
        tmp_path,
        state,
        *(tmp_path / n for n in (checkpoint.MANIFEST, checkpoint.WEIGHTS)),
    ):
        with pytest.raises(UserError, match="training that is not finished: run it again"):
            checkpoint.stored_weights(place)
    torch.save({"weight": torch.zeros(1)}, state)  # weights of another program under that name
    assert checkpoint.stored_weights(state).path == state


def test_a_training_in_its_first_epoch_is_no_model_yet(tmp_path: Path) -> None:
    folder = tmp_path / "models" / ("0" * 16)
    for place, reason in ((folder, "training that is not finished"), (tmp_path, "is a folder")):
        place.mkdir(parents=True, exist_ok=True)
        (place / checkpoint.LOG).write_text("{}\n")
        with pytest.raises(UserError, match=reason):
            checkpoint.stored_weights(place)


def test_weights_whose_manifest_is_lost_are_not_called_unfinished(saved: Path) -> None:
    folder = saved.parent / "models" / ("0" * 16)
    folder.parent.mkdir()
    saved.rename(folder)
    (folder / checkpoint.LOG).write_text("{}\n")
    (folder / checkpoint.MANIFEST).unlink()
    found = checkpoint.stored_weights(folder / checkpoint.WEIGHTS)
    assert found.manifest is None


def test_a_damaged_manifest_of_dmlbench_beside_weights_is_refused(saved: Path) -> None:
    path = saved / checkpoint.MANIFEST
    path.write_text(path.read_text()[:-40])
    for place in (saved / checkpoint.WEIGHTS, path, saved):
        with pytest.raises(DamagedError, match="is damaged"):
            checkpoint.stored_weights(place)
        with pytest.raises(DamagedError, match="is damaged"):
            trained_on(place)


def test_every_flipped_bit_of_a_manifest_is_found(saved: Path) -> None:
    path, chance = saved / checkpoint.MANIFEST, random.Random(0)
    content, whole = path.read_bytes(), checkpoint.read_manifest(saved)
    for _ in range(300):
        place, bit = chance.randrange(len(content)), 1 << chance.randrange(8)
        path.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
        try:
            assert checkpoint.read_manifest(saved) == whole
        except DamagedError:
            continue


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"checkpoint": "../../.ssh/id"}, "checkpoint"),
        ({"sha256": "f" * 63}, "sha256"),
        ({"seconds": -1.0}, "seconds"),
        ({"training": {"seed": 1}}, "training"),
        ({"parameters": -1}, "parameters"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(
    saved: Path, change: dict[str, Any], problem: str
) -> None:
    path = saved / checkpoint.MANIFEST
    raw = {k: v for k, v in json.loads(path.read_text()).items() if k != "checksum"}
    for record in (sealed(raw | change), raw | change | {"schema": 1}):
        path.write_text(json.dumps(record))
        with pytest.raises(DamagedError, match=problem):
            checkpoint.read_manifest(saved)
    path.write_text(json.dumps(sealed(raw | {"schema": 3})))
    with pytest.raises(UserError, match=r"schema 3.*update dmlbench"):
        checkpoint.read_manifest(saved)


class Evil:
    """Stand for the harmful code in a malicious pickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


def test_plain_state_dicts_load_and_pickled_code_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = C2F2(dim=4).build(1, 8)
    torch.save(model.state_dict(), "plain.pt")
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, "nested.pt")
    for name in ("plain.pt", "nested.pt"):
        checkpoint.load_weights(Path(name), C2F2(dim=4).build(1, 8))
    torch.save({"x": Evil()}, "evil.pt")
    Path("text.pt").write_text("hello")
    Path("short.safetensors").write_bytes(b"\x08\0\0")
    torch.save(model, "whole.pt")
    with warnings.catch_warnings(action="ignore"):  # newer versions of PyTorch advise against it
        torch.jit.script(torch.nn.Linear(2, 2)).save("script.pt")  # type: ignore[no-untyped-call]
    torch.save([1], "list.pt")
    Path("empty.pt").touch()
    remedy = r"save the weights alone, by torch.save\(network.state_dict\(\), FILE\)"
    for name, message in [
        ("evil.pt", "weights_only"),
        ("whole.pt", f"it names dmlbench.*; {remedy}"),
        ("script.pt", f"script.pt cannot be read: it is an archive of TorchScript; {remedy}"),
        ("list.pt", f"list.pt holds no state dict; {remedy}"),
        ("empty.pt", "empty.pt cannot be read: it is empty or cut off"),
        ("text.pt", "weights_only|cannot be read"),
        ("short.safetensors", "cannot be read"),
        ("absent.pt", "does not exist"),
        ("absent.safetensors", "does not exist"),
    ]:
        with pytest.raises(UserError, match=message):
            checkpoint.load_weights(Path(name), C2F2(dim=4).build(1, 8))
    assert not Path("pwned").exists()
    with pytest.raises(UserError, match="does not fit the model"):
        checkpoint.load_weights(Path("plain.pt"), C2F2(dim=5).build(1, 8))


@pytest.mark.parametrize("name", ["x" * 300, "x" * 300 + ".pt", "a\0b.pt", "file/x.pt"])
def test_a_name_that_no_file_can_have_is_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot be read|does not exist") as caught:
        checkpoint.stored_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


def net() -> EmbeddingModel:
    return C2F2(dim=4).build(1, 8)


def prefixed(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name.removeprefix("backbone."): value for name, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["", "backbone.", "module.", "module.backbone.", "_orig_mod.", "model.", "net.encoder."],
)
@pytest.mark.parametrize("container", ["", "state_dict", "model", "model_state_dict"])
def test_weights_load_under_any_prefix_and_container(
    prefix: str, container: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, path = net(), tmp_path / "w.pth"
    state = prefixed(model.state_dict(), prefix)
    torch.save({container: state, "epoch": 3, "optimizer": {}} if container else state, path)
    torch.manual_seed(1)
    fresh = net()
    checkpoint.load_weights(path, fresh)
    assert all(map(torch.equal, fresh.state_dict().values(), model.state_dict().values()))


def test_parameters_of_a_loss_beside_the_network_are_left_out(tmp_path: Path) -> None:
    state = prefixed(net().state_dict(), "model.") | {"loss.proxies": torch.zeros(9, 4)}
    torch.save({"state_dict": state}, tmp_path / "w.ckpt")
    checkpoint.load_weights(tmp_path / "w.ckpt", net())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"head.weight": torch.zeros(2, 2)},
            r"the file also has head\.weight, which .* save only the weights",
        ),
        ({"0.weight": None, "3.bias": None}, r"model: the file lacks 0\.weight, 3\.bias$"),
        ({"9.bias": torch.zeros(5)}, r"model: of another shape: 9\.bias \(5 in the file, 4 in the"),
        (
            {f"x{i:02}.a": torch.ones(1) for i in range(30)},
            r"also has .*x00\.a,.* and 22 more, which",
        ),
        (
            {"9.bias": torch.tensor(1.0), "9.bia": torch.ones(1)},
            r"not have 9\.bia; of .*a scalar in",
        ),
    ],
)
def test_what_does_not_fit_is_named_key_by_key(
    changes: dict[str, torch.Tensor | None], message: str, tmp_path: Path
) -> None:
    state = {**prefixed(net().state_dict(), ""), **changes}
    torch.save({k: v for k, v in state.items() if v is not None}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.load_weights(tmp_path / "w.pt", net())
    assert "\n" not in str(caught.value)


def test_two_networks_with_heads_of_their_own_are_not_chosen_from(tmp_path: Path) -> None:
    """As MoCo saves them: the alphabet is no reason to take the one or the other."""
    from torchvision.models import resnet18

    source, state = resnet18(num_classes=2).state_dict(), {}
    for name, value in source.items():
        own = name.replace("fc.", "fc.0.")
        state |= {f"module.encoder_{one}.{own}": value for one in "qk"}
    torch.save(state, tmp_path / "moco.pt")
    for keys in ("dim=6", "head=none"):
        model = parse_model(f"resnet18:weights={tmp_path / 'moco.pt'},{keys}")
        with pytest.raises(UserError, match=r"in it 2 times, under module\.encoder_k\., module"):
            model.build(3, 32, initial=True)


def test_two_networks_in_a_file_are_not_chosen_from(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save(prefixed(state, "model.") | prefixed(state, "ema."), tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"in it 2 times, under ema\., model\.: keep one"):
        checkpoint.load_weights(tmp_path / "w.pt", net())
    torch.save({"epoch": 3, "arch": "c2f2"}, tmp_path / "w.pt")
    with pytest.raises(UserError, match="no state dict: it has the keys epoch, arch"):
        checkpoint.load_weights(tmp_path / "w.pt", net())


def test_the_weights_that_are_taken_of_several_are_named(tmp_path: Path) -> None:
    state = net().state_dict()
    torch.save({"ema": state, "model": state, "optimizer": {"state": {}}}, tmp_path / "w.pt")
    with pytest.warns(UserWarning, match=r"w\.pt holds the weights model and ema: model is taken"):
        checkpoint.load_weights(tmp_path / "w.pt", net())
