"""Flags: reasons not to trust a number, which its cell and every table carry.

A flagged row is shown and not ranked. A note is information only: its row is ranked.

All thresholds are here. They were held against networks that hide their gradient (rounded input,
saturated sigmoids, detached, half precision), which must be flagged, and against honest ones (the
committed models, an untrained one, a resnet18), which must not (``tests/masks.py``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

# The committed models have a gradient for every query; one that rounds has none for any, and one
# that saturates its input none for a third of them.
LARGEST_FLAT = 0.01  # share of queries
# Equal embeddings by two kernels differ by 1e-6 of their length in fp32. Statistics of a batch, or
# of the passes before, move them by 1e-2 and more.
ROUNDING = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}  # of the length of an embedding
# float32 has about 7 digits, and normalising adds 1e-12 to the length. Trained and untrained
# networks have lengths between 1e-2 and 1e3.
LENGTHS = (1e-6, 1e6)
# Nearly all numbers of a float32 embedding differ from each other. Of one that is rounded, or
# behind a saturated sigmoid, the same few come again and again.
LEAST_DISTINCT = 0.5  # share of the numbers of embeddings that differ
NOISE_DRAWS, NOISE_QUERIES = 5, 200  # 5 passes forward, where an attack of auto takes 100 both ways
# What noise has changed for fewer queries than this is luck.
LEAST_MOVED, LEAST_MOVED_QUERIES = 0.01, 5  # share of queries, and how many
LARGEST_BLACK_BOX = 0.2  # points of R@1 that a black box breaks of what the white box has left
ERRORS = 2  # standard errors of that number, where it has one, which are luck
LARGEST_RISE = 2.0  # points of R@1 from one eps to a larger one: fixed steps are that uneven
LEAST_RISEN = 4.5  # queries that such a rise takes, without the rounding of a percentage
LARGEST_BEST_LAST = 2.0  # points between the best and the last iterate; 0.2 on committed models
LARGEST_STARTS = 2.0  # points between the clean image and random places as the start
LARGEST_OPTIMIZERS = 3.0  # points between PGD and APGD at equal passes
LEAST_CHANCE = 0.01  # of so many broken certificates, if each holds with its confidence

BETWEEN, BEFORE_REMEDY = " | ", "; remedy: "


class Flag(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A reason not to trust a number.

    Attributes:
        name: a word or two, lower case: ``gradients``.
        says: the observation in a sentence with its numbers.
        remedy: advice in a sentence.
        note: True for information only: the row is ranked.

    Raises:
        ValueError: a text is empty, or has a line break or the words that part flags in a CSV.
    """

    name: str
    says: str
    remedy: str
    note: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9 -]*", self.name) or self.name.startswith("note "):
            raise ValueError(f"a flag has a name in lower case, got {self.name!r}")
        for text in (self.says, self.remedy):
            parts = (BETWEEN, BEFORE_REMEDY)
            if not text.strip() or not text.isprintable() or any(part in text for part in parts):
                raise ValueError(f"a flag cannot say {text!r}")

    @property
    def text(self) -> str:
        """The flag on one line, as in a CSV."""
        return f"{'note ' * self.note}{self.name}: {self.says}{BEFORE_REMEDY}{self.remedy}"


def write_flags(flags: Iterable[Flag]) -> str:
    """All flags on one line; empty without one."""
    return BETWEEN.join(flag.text for flag in flags)


def read_flags(text: str) -> tuple[Flag, ...]:
    """The flags that ``write_flags`` wrote.

    Raises:
        ValueError: the text is something else; the message completes "the column is ...".
    """
    found = []
    for part in text.split(BETWEEN) if text else ():
        match = re.fullmatch(rf"(note )?([^:]+): (.+?){BEFORE_REMEDY}(.+)", part)
        if match is None:
            raise ValueError("not a list of flags")
        try:
            found.append(Flag(match[2], match[3], match[4], bool(match[1])))
        except ValueError:
            raise ValueError("not a list of flags") from None
    return tuple(found)


def gradients(flat: float) -> list[Flag]:
    """A flag if more than 1% of the queries have no gradient in the image although their loss has
    one in the embedding; else an empty list. ``flat``: the share of such queries, in [0, 1].
    """
    if flat <= LARGEST_FLAT:
        return []
    says = (
        f"{flat:.1%} of the queries have a loss gradient in embedding space and none in the image, "
        "at the first step"
    )
    remedy = (
        "the network hides its gradient by rounding, saturation or detach(): attack a smooth "
        "stand-in of it, or by a black box"
    )
    return [Flag("gradients", says, remedy)]


def precision(coarse: str) -> list[Flag]:
    """A flag if the numbers of embeddings are coarser than float32; else an empty list.

    ``coarse``: in words, in what way they are; empty if they are not.
    """
    remedy = "compute and return embeddings in float32: rounding hides gradients and makes ties"
    return [Flag("precision", f"embeddings {coarse}", remedy)] if coarse else []


def lengths(shortest: float, longest: float) -> list[Flag]:
    """A flag if an embedding has a length outside ``LENGTHS``; else an empty list.

    ``shortest``, ``longest``: the least and the greatest length before they are normalised.
    """
    if LENGTHS[0] <= shortest and longest <= LENGTHS[1]:
        return []
    says = f"embeddings have lengths from {shortest:.3g} to {longest:.3g}"
    remedy = "scale them to about 1: losses and gradients lose their digits, or overflow"
    return [Flag("scale", says, remedy)]


def drift(moved: float, precision: str) -> list[Flag]:
    """A flag if the network embeds clean images elsewhere after an attack; else an empty list.

    Args:
        moved: the largest distance from the embedding before the attack, in lengths of it.
        precision: number format of the network, a key of ``ROUNDING``.
    """
    if moved <= ROUNDING[precision]:
        return []
    says = (
        f"after the attack clean images embed {moved:.1%} of their length away from where they "
        "were before it: at eps = 0 the outcome is not the clean one"
    )
    remedy = "the network keeps a state from pass to pass: remove it in eval mode"
    return [Flag("clean", says, remedy)]


def noise(column: str, unit: str, attacked: float, drawn: float, what: str) -> list[Flag]:
    """The flag that noise of size eps is no weaker than the attack.

    Args:
        column: of the attack.
        unit: of the column.
        attacked: its value under the attack.
        drawn: its value under the noise.
        what: the noise in words (``Ball.random_places``).
    """
    says = (
        f"{column} is {attacked:.3g}{unit} under the attack, and {drawn:.3g}{unit} under the worst "
        f"of {NOISE_DRAWS} {what} for each query"
    )
    remedy = "the gradient leads nowhere: attack a smooth stand-in of the network, or by black box"
    return [Flag("noise", says, remedy)]


def black_box(share: float, error: float = 0.0) -> list[Flag]:
    """A flag if a black box broke queries that the white-box attack left; else an empty list.

    Args:
        share: of all queries, in percent; up to 0.2 there is no flag.
        error: the standard error of ``share``, where it is an estimate over draws of a randomised
            network.
    """
    if share - ERRORS * error <= LARGEST_BLACK_BOX:
        return []
    says = f"a black box broke {share:.1f}% of the queries, which the white-box attack had left"
    remedy = "gradients do not show the way: raise steps or restarts, or attack a smooth stand-in"
    return [Flag("black box", says, remedy)]


def certificate(broken: int, queries: int, confidence: float) -> list[Flag]:
    """A flag if an attack broke more queries than a certificate allows; else an empty list.

    A certificate may fail: of 100 at a ``confidence`` of 99.9% each, one does in a tenth of rows.

    Args:
        broken: number of queries that it broke by a change shorter than their certified radius.
        queries: number of all queries.
        confidence: of the certificate of each query; the rest may be wrong.
    """
    if not broken:
        return []
    from scipy.special import bdtrc  # 0.3 s, and hardly any certificate is broken

    chance = float(bdtrc(broken - 1, queries, 1 - confidence))  # of so many or more
    if chance >= LEAST_CHANCE:
        return []
    says = (
        f"an attack broke {broken / queries:.2%} of the queries within their certified radius, "
        f"which holds with a confidence of {confidence:.2%} each"
    )
    remedy = "the certificate is not valid for this network: its embeddings must be of unit length"
    return [Flag("certificate", says, remedy)]


def iterates(column: str, unit: str, best: float, last: float) -> list[Flag]:
    """A note where ``column`` (in percent) depends on which iterate is taken."""
    if unit != "%" or abs(best - last) <= LARGEST_BEST_LAST:
        return []
    says = f"{column} is {best:.1f}% at the best iterate and {last:.1f}% at the last"
    return [Flag("iterates", says, "more steps: the search has not settled", note=True)]


def rising(
    column: str, smaller: tuple[str, float], larger: tuple[str, float], queries: int
) -> list[Flag]:
    """A flag if R@1 rises by more than 2 points from one eps to a larger one; else an empty list.

    Args:
        column: R@1 after an attack.
        smaller: an eps, and the value of the column.
        larger: the same for a larger eps.
        queries: their number; no flag if the rise is fewer than five, which may be chance.
    """
    rise = larger[1] - smaller[1]
    if rise <= LARGEST_RISE or rise / 100 * queries < LEAST_RISEN:
        return []
    says = (
        f"{column} rises from {smaller[1]:.1f}% at eps {smaller[0]} to {larger[1]:.1f}% at "
        f"{larger[0]}, and the smaller ball lies in the larger"
    )
    return [Flag("eps", says, "the search fails in the larger ball: optimizer=apgd, restarts=5")]


def starts(column: str, clean: float, drawn: float, better: str) -> list[Flag]:
    """A note where ``column`` (in percent) depends on where the search begins.

    ``better``: ``higher`` or ``lower`` is better for the defender.
    """
    if abs(clean - drawn) <= LARGEST_STARTS:
        return []
    says = f"{column} is {clean:.1f}% from the clean image and {drawn:.1f}% from random places"
    worse = "lower" if better == "higher" else "higher"
    return [Flag("starts", says, f"report the {worse} one: restarts=n", note=True)]


def optimizers(column: str, pgd: float, apgd: float) -> list[Flag]:
    """A note where ``column`` (in percent) depends on the optimizer, at equal steps."""
    if abs(pgd - apgd) <= LARGEST_OPTIMIZERS:
        return []
    says = f"{column} is {pgd:.1f}% by PGD and {apgd:.1f}% by APGD in as many steps"
    return [Flag("optimizers", says, "report that of suite auto, or more steps", note=True)]
