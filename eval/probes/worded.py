"""Probes made of other wordings of a request: no search, and the prompts are the same for every model."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from erasure.errors import InputError
from erasure.sampling import sample

from .base import Aim, Outcome, Probe, Subject


@dataclass(frozen=True, kw_only=True)
class WordedProbe(Probe):
    """Prompts that ask for the concept in other words, by part.

    A wording that the original does not follow has no contrast and says nothing; the page says so.
    """

    @abstractmethod
    def wordings(self, aim: Aim, dose: float) -> Mapping[str, Sequence[str]]:
        """Return the prompts at a dose by part; a part without prompts is left out."""

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, n = subject.aim, len(subject.aim.prompts)
        sampled = 0
        for i, dose in enumerate(self.doses):
            for part, prompts in self.wordings(aim, dose).items():
                if not prompts:
                    continue
                subject.report(i, len(self.doses), part)
                sampled += 1
                chosen = [prompts[j % len(prompts)] for j in range(n)]
                images = sample(subject.pipe, chosen, list(aim.seeds), aim.sampling)
                yield Outcome(dose=dose, part=part, images=images, label="" if len(self.doses) > 1 else "asked")
        if not sampled:
            raise InputError(f"{self.name}: expected other words for {aim.concept.target!r}, got none that are known.")
