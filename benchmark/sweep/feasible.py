"""Find, for a dry run, the reasons for which a run would be refused.

It imports torch only for a network of the user's own, a loss of another library, a defense that
looks at the network, or a device that is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmlbench.common.lazy import np
from dmlbench.defenses.base import Defense
from dmlbench.sweep.session import Session
from dmlbench.training.job import Training, check_pairs


def check_feasible(session: Session, trainings: Sequence[Training], here: bool = True) -> None:
    """Check device, images, network, loss and batch as the run does; nothing is downloaded.

    Data that a run would first download are not there to be checked: then the network is not.

    Args:
        session: data and device of the run.
        trainings: the models that it would train.
        here: True if this machine computes; False: a cluster does.

    Raises:
        UserError: the error that the run would end with.
    """
    named = session.compute.device not in ("auto", "cpu") or session.compute.precision == "tf32"
    if here and named:
        session.compute.check()
    if not session.is_here:
        return
    data = session.data
    classes = len(np.unique(data.train.labels))
    for network in {id(one.model): one.model for one in trainings}.values():
        network.check_images(data.channels, data.size)
    for one in trainings:
        check_pairs(one.recipe.pairs, data.train.labels)
        one.defense.check_epochs(one.recipe.epochs)
        one.defense.companion(classes, 2, one.model.metric)  # its library may be missing
        if type(one.defense).check_network is not Defense.check_network:
            from dmlbench.compute.randomness import to_be_loaded

            with to_be_loaded():
                built = one.model.build(data.channels, data.size)
            one.defense.check_network(built.backbone)
