"""The reasons for which a run is refused before it trains anything.

Every run asks ``check_epochs``. ``check_feasible``, for a dry run, also looks for what a run finds
when it begins to train. It imports torch only for a network of the user's own, a loss of another
library, a defense that looks at the network, or a device that is named.
"""

from __future__ import annotations

from collections.abc import Sequence

from dmlbench.common.lazy import np
from dmlbench.defenses.base import Defense
from dmlbench.sweep.session import Session
from dmlbench.sweep.status import PlannedModel
from dmlbench.sweep.tasks import Train
from dmlbench.training.job import Training, check_pairs


def to_be_trained(planned: Sequence[PlannedModel], resume: str) -> list[Training]:
    """The models that a run trains under the policy ``resume``."""
    tasks = (task for model in planned for task in model.first_tasks(resume))
    return [task.training for task in tasks if isinstance(task, Train)]


def check_epochs(trainings: Sequence[Training]) -> None:
    """UserError if one of the trainings is too short for its defense; none has begun then."""
    for one in trainings:
        one.defense.check_epochs(one.recipe.epochs)


def check_feasible(session: Session, trainings: Sequence[Training], here: bool) -> None:
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
    check_epochs(trainings)
    for one in trainings:
        check_pairs(one.recipe.pairs, data.train.labels)
        one.defense.companion(classes, 2, one.model.metric)  # its library may be missing
        if type(one.defense).check_network is not Defense.check_network:
            from dmlbench.compute.randomness import as_trained

            with as_trained(one.seed):
                built = one.model.build(data.channels, data.size)
            one.defense.check_network(built.backbone)
