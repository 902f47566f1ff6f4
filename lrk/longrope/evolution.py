"""Evolutionary search (LongRoPE2, 2502.20082, section 3.2 and appendix B).

Population, iterations and the probability of a mutation are appendix B's. How many of a population
are parents and children is of the first LongRoPE (2402.13753, algorithm 1 and appendix A): half of
it are the best so far, a quarter mutations of them and a quarter crossings.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lrk.longrope.space import Candidate, SearchSpace


@dataclass(frozen=True)
class Evolution:
    """How much is tried.

    Attributes:
        population: candidates of an iteration, 4 at least; as many as there are critical dimensions
            to try, if these are more.
        iterations: after the first population.
        mutation_probability: of each factor in a mutation.
        seed: of all draws.

    Raises:
        ValueError: for a value out of range.
    """

    population: int = 64
    iterations: int = 40
    mutation_probability: float = 0.3
    seed: int = 42

    def __post_init__(self) -> None:
        if self.population < 4:
            raise ValueError(
                f"population is {self.population}; it must be at least 4, of which 2 are parents"
            )
        if self.iterations < 0:
            raise ValueError(f"iterations is {self.iterations}; it must be 0 or positive")
        if not 0 < self.mutation_probability <= 1:
            raise ValueError(
                f"mutation_probability is {self.mutation_probability}; it must be above 0 and at "
                "most 1"
            )

    def trials(self, space: SearchSpace) -> int:
        """How many candidates are made, some of which may be the same."""
        first = max(self.population, space.highest - space.lowest + 1)
        return first + self.iterations * 2 * (self.population // 4)

    def best(self, space: SearchSpace, loss: Callable[[Candidate], float]) -> Candidate:
        """The candidate of the lowest loss; which are tried follows from the seed and the losses.

        Args:
            loss: of a candidate; it is asked again for one that comes up again.
        """
        random, probability = Random(self.seed), self.mutation_probability
        criticals = range(space.lowest, space.highest + 1)
        made = [space.initial(critical, random) for critical in criticals]
        while len(made) < self.population:
            made.append(space.mutated(random.choice(made), probability, random))
        losses = {candidate: loss(candidate) for candidate in made}
        for _ in range(self.iterations):
            parents = sorted(losses, key=losses.__getitem__)[: self.population // 2]
            children = []
            for _ in range(self.population // 4):
                one, other = random.sample(parents, 2)
                children += [
                    space.mutated(one, probability, random),
                    space.crossed(one, other, random),
                ]
            losses = {parent: losses[parent] for parent in parents}
            losses |= {child: loss(child) for child in children}
        return min(losses, key=losses.__getitem__)
