"""The numbers of the steps of an epoch, and the line that shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean


@dataclass
class EpochStatistics:
    """Numbers of the steps of an epoch; a batch without a triplet adds no loss and no hardness.

    Attributes:
        losses, hardnesses: of each step that had a triplet.
        mean_cosines: mean cosine similarity of the embeddings in the batch, of each step.
        passes: forward-backward passes of the adversary in total, counted per triplet.
        full_passes: the number of passes if the active set had left out no triplet.
    """

    losses: list[float] = field(default_factory=list)
    hardnesses: list[float] = field(default_factory=list)
    mean_cosines: list[float] = field(default_factory=list)
    passes: float = 0
    full_passes: float = 0

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.mean_cosines)

    def last(self) -> dict[str, float | None]:
        """Return the most recent loss, hardness and mean cosine; None without a triplet so far."""
        return {
            "loss": self.losses[-1] if self.losses else None,
            "hardness": self.hardnesses[-1] if self.hardnesses else None,
            "mean_cosine": self.mean_cosines[-1],
        }

    def summary(self) -> dict[str, float | None]:
        """Return the means over the steps, and the share of passes that the active set saved."""
        saved = 1 - self.passes / self.full_passes if self.full_passes else 0.0
        return {
            "loss": fmean(self.losses) if self.losses else None,
            "hardness": fmean(self.hardnesses) if self.hardnesses else None,
            "mean_cosine": fmean(self.mean_cosines),
            "passes_saved": saved,
        }


def progress_note(found: Mapping[str, float | None]) -> str:
    """Write the numbers of a step or an epoch for people, on one line."""
    forms = {
        "loss": "loss {:.3f}",
        "hardness": "H {:.3f}",
        "R@1": "R@1 {:.1f}",
        "passes_saved": "{:.0%} of the inner passes saved",
        "images_per_second": "{:.0f} images/s",
    }
    return "  ".join(
        form.format(value) for key, form in forms.items() if (value := found.get(key)) is not None
    )
