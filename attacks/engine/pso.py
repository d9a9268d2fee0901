"""Particle swarm optimisation in an L-infinity ball.

P particles begin in the ball, the first one at the clean image and the others at random places,
with random velocities in [-2 eps, 2 eps]. In turn each of them moves and is shown,

    v <- omega v + phi_p r_p (own best - x) + phi_g r_g (best of all - x),    x <- Proj(x + v)

with r_p, r_g uniform in [0, 1) for every pixel (Zhou et al., ICCV 2021; cdluminate/advorder,
``lib/reorder.py``: ``PSO``, its serial form, whose particles all begin at random places). Images of
more than 32 pixels a side get coarse random numbers (``targets.coarse``), as there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dmlbench.attacks.engine.black_box import BlackBox, Breakable, Known
from dmlbench.attacks.engine.targets import coarse, uniform
from dmlbench.common.lazy import torch

PARTICLES, OMEGA, PHI_OWN, PHI_ALL = 40, 1.10, 0.57, 0.44  # of the published code


@dataclass(frozen=True)
class Swarm(Known):
    """The particles of each query.

    Attributes:
        x, v: (b, P, C, H, W) places and velocities.
        own: (b, P, C, H, W) the best place of each particle, and ``own_loss`` (b, P) its loss.
        leader: (b, C, H, W) the best place of all, and ``leader_loss`` (b,) its loss.
        index: (b,) numbers of the queries.
    """

    x: torch.Tensor
    v: torch.Tensor
    own: torch.Tensor
    own_loss: torch.Tensor
    leader: torch.Tensor
    leader_loss: torch.Tensor
    index: torch.Tensor
    seed: int


@dataclass(frozen=True)
class PSO(BlackBox[Swarm]):
    """The search; a small budget has as many particles as passes."""

    def begin(self, known: Known, objective: Breakable) -> Swarm:
        """Particles at random places of the ball."""
        clean, count = known.clean, min(PARTICLES, self.budget)
        index, seed = objective.index, objective.seed

        def drawn(what: str) -> torch.Tensor:
            parts = [coarse(uniform, index, seed, f"pso {what} {j}", clean) for j in range(count)]
            return 2 * torch.stack(parts, dim=1) - 1

        ball = known.ball
        x = (clean[:, None] + self.eps * drawn("x")).clamp(ball.low[:, None], ball.high[:, None])
        x[:, 0] = clean
        loss = known.loss[:, None].expand(-1, count).clone()
        return Swarm(
            **vars(known),
            x=x,
            v=2 * self.eps * drawn("v"),
            own=x.clone(),
            own_loss=loss,
            leader=x[:, 0].clone(),
            leader_loss=known.loss.clone(),
            index=index,
            seed=seed,
        )

    def propose(self, now: Swarm, number: int) -> torch.Tensor:
        """The next particle, where it has moved to."""
        return self._moved(now, number)[0]

    def learn(self, now: Swarm, shown: torch.Tensor, loss: torch.Tensor, number: int) -> Swarm:
        """Keep the place and the velocity, and the best ones."""
        j = number % now.x.shape[1]
        x, v = self._moved(now, number)
        places, velocities, own = now.x.clone(), now.v.clone(), now.own.clone()
        places[:, j], velocities[:, j] = x, v
        better = loss < now.own_loss[:, j]
        own[:, j] = torch.where(better.view(-1, 1, 1, 1), shown, own[:, j])
        own_loss = now.own_loss.clone()
        own_loss[:, j] = own_loss[:, j].minimum(loss)
        first = loss < now.leader_loss
        return replace(
            now,
            x=places,
            v=velocities,
            own=own,
            own_loss=own_loss,
            leader=torch.where(first.view(-1, 1, 1, 1), shown, now.leader),
            leader_loss=now.leader_loss.minimum(loss),
        )

    def _moved(self, now: Swarm, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Place and velocity of the particle of pass ``number``; in the first round it stays."""
        count = now.x.shape[1]
        x, v = now.x[:, number % count], now.v[:, number % count]
        if number < count:
            return x, v
        to_own = coarse(uniform, now.index, now.seed, f"pso own {number}", x)
        to_all = coarse(uniform, now.index, now.seed, f"pso all {number}", x)
        v = (
            OMEGA * v
            + PHI_OWN * to_own * (now.own[:, number % count] - x)
            + PHI_ALL * to_all * (now.leader - x)
        )
        return now.ball.project_(x + v), v
