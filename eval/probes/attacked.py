"""Probes made of the searches for prompts of `eval/attacks`."""

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from erasure.backbones import Backbone, backbone_of
from erasure.io.text import counted
from erasure.progress import Progress
from erasure.sampling import sample

from ..attacks import Attack
from .base import Aim, Models, Outcome, Probe, Subject


@dataclass(frozen=True, kw_only=True)
class AttackProbe(Probe):
    """A search for prompts as a probe; its dose is the length of the search.

    A search yields several candidates. They take turns with fresh seeds and none is chosen by its images, so a dose has
    as many images as the plain prompt, and no best of many. A search that needs the text encoder alone is made once, on
    the original; one that follows the denoiser's gradient is made on every row.

    Attributes:
        searches: Prompts that a search is made for; the images take them in turn.
    """

    searches: Annotated[int, Field(ge=1)] = 4

    @abstractmethod
    def attack(self, dose: float) -> Attack:
        """Return the attack at a dose."""

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        with models.original() as pipe:
            if self.access == "prompt":
                backbone = backbone_of(pipe)
                return {f"{dose:g}": self._rows(backbone, aim, dose, None) for dose in self.doses}
            prompts = list(aim.prompts[: self.searches])
            return {"clean": sample(pipe, prompts, list(aim.seeds[: self.searches]), aim.sampling, output="latents")}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        aim, backbone = subject.aim, subject.backbone
        for i, dose in enumerate(self.doses):
            subject.report(i, len(self.doses), counted(dose, self.dose_unit))
            if self.access == "prompt":
                ids = subject.material[f"{dose:g}"]
            else:
                ids = self._rows(backbone, aim, dose, subject.material["clean"], subject)
            with torch.no_grad():
                states = backbone.encode_ids(ids)
            yield Outcome(dose=dose, images=sample(subject.pipe, states, list(aim.seeds), aim.sampling))

    def _rows(
        self, backbone: Backbone, aim: Aim, dose: float, clean: Tensor | None, subject: Subject | None = None
    ) -> Int[Tensor, "n tokens"]:
        """Return a row of ids for each image: the searches in turn, then each search's candidates in turn."""
        attack, n = self.attack(dose), min(self.searches, len(aim.prompts))
        candidates = []
        for i in range(n):

            def report(progress: Progress, i: int = i) -> None:
                if subject is not None:
                    subject.report(progress.done, progress.total, f"search {i + 1} of {n}")

            latents = None if clean is None else clean[i : i + 1]
            candidates.append(attack.search(backbone, aim.goal(i, latents), on_progress=report))
        rows = [candidates[i % n][(i // n) % len(candidates[i % n])] for i in range(len(aim.prompts))]
        return torch.stack(rows)
