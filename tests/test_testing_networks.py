"""The conformance suite finds each mistake of a network by the check that is there for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dmlbench import testing
from dmlbench.core.registry import Card
from dmlbench.models.base import Model, parse_model
from tests.mistakes import changed, refused


class Flat(nn.Module):
    """One layer, with a mistake."""

    def __init__(self, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.layer = nn.Linear(28 * 28, 6)
        if mistake == "same weights":
            nn.init.ones_(self.layer.weight)
        if mistake == "hidden weights":
            self.hidden = torch.rand(6)
        if mistake == "unseeded weights":
            nn.init.constant_(self.layer.bias, np.random.default_rng().random())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.flatten(1)
        match self.mistake:
            case "noise":
                x = x + torch.rand_like(x)
            case "batch statistics":
                x = x - x.mean(0)
            case "in place":
                images.mul_(0.5)
            case "rounding":
                x = (8 * x).round() / 8
            case "blind":
                x = 0 * x
            case "detached":
                return self.layer(x).detach() + 1e-3 * x[:, :6]
            case "outside of PyTorch":
                return torch.from_numpy(x.detach().numpy()[:, :6].copy())
            case "double":
                return self.layer(x).double()
            case "nan":
                return self.layer(x) / 0
            case "hidden weights":
                return self.layer(x) * self.hidden
            case "same weights":
                return self.layer(x) * 0 + x[:, :6] + self.layer.weight.mean()
            case "dropout":
                x = nn.functional.dropout(x, training=self.training)
        found: torch.Tensor = self.layer(x)
        return found


class TestModels:
    @pytest.mark.parametrize(
        ("mistake", "check", "words"),
        [
            ("noise", "deterministic", "global random generator"),
            ("batch statistics", "alone", "depend on the batch size"),
            ("in place", "untouched", "work on a copy"),
            ("rounding", "gradient", "gradient in the image is zero"),
            ("blind", "embeddings", "does not look at its input"),
            ("detached", "trainable", "no parameter gets a gradient"),
            ("outside of PyTorch", "gradient", "run attacks that need no gradient"),
            ("double", "embeddings", "must be float32"),
            ("nan", "embeddings", "not finite"),
            ("hidden weights", "stored", "state dict"),
            ("same weights", "seeded", "two seeds give the same weights"),
            ("unseeded weights", "seeded", "could not be repeated"),
        ],
    )
    def test_a_bad_network(self, mistake: str, check: str, words: str) -> None:
        refused(parse_model(f"{__name__}:Flat:mistake='{mistake}'"), check, words)

    def test_a_network_that_says_it_is_steady(self) -> None:
        backbone = lambda *_: Flat("dropout")  # noqa: E731
        members = {
            "card": Card("flat", "one layer"),
            "backbone": backbone,
            "same_in_training": True,
        }
        refused(changed(Model, **members), "same_in_training", "mined on the wrong ones")

    def test_sound_ones(self) -> None:
        testing.check(parse_model(f"{__name__}:Flat:mistake=none"))
        testing.check(parse_model(f"{__name__}:Flat:mistake=dropout,metric=E"))

    @pytest.mark.parametrize(
        ("network", "check", "words"),
        [
            ("torch.nn:Linear:in_features=3,out_features=2", "build", "cannot embed"),
            ("torch.nn:Flatten", "trainable", ""),
        ],
    )
    def test_one_that_is_no_embedding_network(self, network: str, check: str, words: str) -> None:
        refused(parse_model(network), check, words)
