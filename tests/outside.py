"""A package outside the repository, and its slips: the attack of CONTRIBUTING.md with mistakes."""

from __future__ import annotations

import re
from pathlib import Path

CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", CONTRIBUTING, flags=re.DOTALL)
ATTACK, DEFENSE, DATASET, NETWORK, TEST = BLOCKS
METADATA = "Metadata-Version: 2.1\nName: their-methods\nVersion: 1.0\n"

# the attack with its gradient written by hand, so that mistakes can be made in it
BY_HAND = ATTACK
for autograd, by_hand in (
    ("AutogradLoss, Column, Gallery", "Column, Gallery, RowWise"),
    ("class Towards(AutogradLoss)", "class Towards(RowWise)"),
    (
        "    def loss(self, e: torch.Tensor, step: int) -> torch.Tensor:\n"
        "        return (e - self.target).square().sum(1) / 2\n",
        "    def value_and_grad(\n"
        "        self, e: torch.Tensor, step: int\n"
        "    ) -> tuple[torch.Tensor, torch.Tensor]:\n"
        "        difference = e - self.target\n"
        "        return difference.square().sum(1) / 2, difference\n",
    ),
):
    assert autograd in BY_HAND, autograd
    BY_HAND = BY_HAND.replace(autograd, by_hand)

LOSS = "return difference.square().sum(1) / 2, difference"
TARGET = "        chosen = gallery.draw(index, 1, seed, self.card.name)\n"
DRAWN = f"{TARGET}        return Towards(gallery.embeddings[chosen[:, 0]])"
DISTANCE = "(e - self.target).norm(dim=1)"
COLUMN = '"TOW:D", "", "higher", "Distance to the target: 0 is a full success.", BOUNDS'

SLIPS: dict[str, list[tuple[str, str]]] = {  # module -> what is written in place of what
    "draws_in_the_loss": [
        (LOSS, "return difference.square().sum(1) / 2 + torch.randn_like(e[:, 0]), difference")
    ],
    "draws_targets_by_numpy": [
        ("from dataclasses", "import numpy\nfrom dataclasses"),
        (TARGET, "        n = len(gallery)\n        chosen = torch.from_numpy("
                 "numpy.random.randint(0, n, (len(index), 1)))\n"),
    ],
    "reads_a_global_seed": [(TARGET, TARGET.replace("seed,", "torch.initial_seed(),"))],
    "targets_follow_the_batch": [
        (TARGET, "        g = torch.Generator().manual_seed(seed)\n"
                 "        chosen = torch.randint(len(gallery), (len(index), 1), generator=g)\n")
    ],
    "wrong_gradient": [(LOSS, "return difference.square().sum(1) / 2, 2 * difference")],
    "mean_over_the_batch": [
        (LOSS, "h = difference.square().sum(1) / 2\n"
               "        return h - h.detach().mean(), difference")
    ],
    "finds_itself": [
        (DRAWN, "        near = gallery.distances(gallery.embeddings[index]).argmin(dim=1)\n"
                "        return Towards(gallery.embeddings[near])")
    ],
    "reads_items": [(DRAWN, "        return Towards(-gallery.embeddings[index])")],
    "counts_itself": [
        ("    target: torch.Tensor\n",
         "    target: torch.Tensor\n    gallery: Gallery\n    index: torch.Tensor\n"),
        (DRAWN, DRAWN.replace("[chosen[:, 0]])", "[chosen[:, 0]], gallery, index)")),
        (f'return {{"TOW:D": {DISTANCE}}}',
         "top = self.gallery.distances(e).argmin(dim=1)\n"
         "        hit = self.gallery.labels[top] == self.gallery.labels[self.index]\n"
         '        return {"TOW:D": hit.double()}'),
    ],
    "out_of_range": [(DISTANCE, f"250 + 0 * {DISTANCE}"), (COLUMN, '"TOW:D", "%", "higher"')],
    "does_the_opposite": [(LOSS, "return -difference.square().sum(1) / 2, -difference")],
    "changes_images": [(LOSS, "e.mul_(1)\n        e += 1\n        e -= 1 + 1e-9\n        "
                              "return difference.square().sum(1) / 2, difference")],
    "holds_everything": [
        ("    target: torch.Tensor\n", "    target: torch.Tensor\n    gallery: Gallery\n"),
        (DRAWN, DRAWN.replace("[chosen[:, 0]])", "[chosen[:, 0]], gallery)")),
        (LOSS, "(e[:, None] - self.gallery.embeddings).sum()\n        " + LOSS),
    ],
}  # fmt: skip


def install(root: Path) -> Path:
    """The package ``their`` as if pip had installed it in ``root``: the attack, and each slip."""
    package = root / "their"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "attacks.py").write_text(ATTACK)
    for name, changes in SLIPS.items():
        code = BY_HAND.replace("@ATTACKS.register\n", "").replace('"towards"', f'"{name}"')
        for old, new in changes:
            assert old in code, (name, old)
            code = code.replace(old, new)
        code = code.replace("TOW:D", name.upper())  # tables have one column of a name
        (package / f"{name}.py").write_text(code)
    info = root / "their_methods-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(METADATA)
    entry = "towards = their.attacks:TowardsAttack"
    (info / "entry_points.txt").write_text(f"[dmlbench.attacks]\n{entry}\n")
    return root
