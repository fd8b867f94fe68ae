"""Classifier guidance: a classifier of latents pulls each step to the concept (Lu et al., arXiv:2505.17013)."""

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from erasure.backbones import Backbone, backbone_of
from erasure.backbones.conditioning import being_read
from erasure.backbones.schedule import NoiseSchedule, Timestep
from erasure.guidance.denoising import Denoising
from erasure.guidance.steps import around_each_step
from erasure.registry import Exactness
from erasure.sampling import noise

from .base import Access, Aim, MissingError, Models, Outcome, Probe, Subject
from .examples import example_latents

Scale = Annotated[float, Field(gt=0)]


@dataclass(frozen=True, kw_only=True)
class ClassifierGuidance(Probe):
    """Each step of the sampling is pulled along the gradient of a small classifier that never saw the tested model.

    The classifier f tells noised latents of the concept from those of other things, given the level of the noise. The
    predicted noise under the concept's prompt becomes

        eps - noise(t) lambda grad_z log sigmoid f(z, t),  noise(t) = sqrt(1 - abar_t)

    It is trained once, on images of the concept and of kept concepts, and is the same for every model: it paints the
    concept into a model that never knew it as well, so only the excess over a gold counts, or over the same with a
    classifier of a concept that no model knows.

    Differs from the paper: a smaller classifier and fewer epochs; few scales, each a dose of its own, and no best of
    many images is picked by the judge; concept and other things have equally many examples.

    Attributes:
        doses: Factors lambda of the gradient, > 0.
        examples: Images of the concept to train the classifier on, and as many of other things, > 0.
        epochs: Passes over them, > 0.
        views: Noised views of each image a pass, > 0.
        width: Units of the first hidden layer, >= 2; the second has half of them.
        lr: Learning rate of AdamW, > 0.
    """

    name: ClassVar[str] = "classifier-guidance"
    source: ClassVar[str] = "arXiv:2505.17013"
    exactness: ClassVar[Exactness] = "reconstructed"
    access: ClassVar[Access] = "image"
    dose_unit: ClassVar[str] = "times the classifier's gradient"
    novel: ClassVar[bool] = True
    quick: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"doses": (10.0, 100.0), "examples": 2, "epochs": 1, "views": 1, "width": 4}
    )

    doses: Annotated[tuple[Scale, ...], Field(min_length=1)] = (10.0, 30.0, 100.0)
    examples: Annotated[int, Field(ge=1)] = 128
    epochs: Annotated[int, Field(ge=1)] = 20
    views: Annotated[int, Field(ge=1)] = 7
    width: Annotated[int, Field(ge=2)] = 256
    lr: Annotated[float, Field(gt=0)] = 1e-3

    def material(self, models: Models, aim: Aim) -> dict[str, Tensor]:
        names = list(dict.fromkeys([*aim.siblings, *(name for name, *_ in aim.kept)]))
        names = [name for name in names if name != aim.concept.target]
        if not names:
            raise MissingError(
                "classifier-guidance: expected things to tell the concept from, got none. Preserve some."
            )
        shown = example_latents(models, aim, aim.concept.target, self.examples, seed=aim.seed + 7)
        counts = [self.examples // len(names) + (i < self.examples % len(names)) for i in range(len(names))]
        others = [
            example_latents(models, aim, name, n, seed=aim.seed + 7) for name, n in zip(names, counts, strict=True) if n
        ]
        with models.original() as pipe:
            trained = self._trained(backbone_of(pipe).schedule, shown, torch.cat(others), aim.seed)
        return {name: value.detach().clone() for name, value in trained.state_dict().items()}

    def outcomes(self, subject: Subject) -> Iterator[Outcome]:
        classifier = LatentClassifier(subject.backbone.latent_shape(), self.width)
        classifier.load_state_dict(dict(subject.material))
        classifier.to(subject.backbone.device)
        for i, dose in enumerate(self.doses):
            subject.report(i, len(self.doses), f"x {dose:g}")
            with guided_by(subject.backbone, classifier, dose):
                images = subject.sampled()
            yield Outcome(dose=dose, images=images, label=f"x {dose:g}")

    def _trained(
        self, schedule: NoiseSchedule, shown: Float[Tensor, "n c h w"], others: Float[Tensor, "m c h w"], seed: int
    ) -> "LatentClassifier":
        """Return the classifier, trained on noised latents; levels are drawn more often the noisier they are."""
        generator = torch.Generator().manual_seed(seed + 8)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 8)
            classifier = LatentClassifier(tuple(shown.shape[1:]), self.width)
        clean = torch.cat([shown, others]).repeat(self.views, 1, 1, 1)
        labels = torch.cat([torch.ones(len(shown)), torch.zeros(len(others))]).repeat(self.views)
        levels = schedule.timesteps(schedule.total - 1).cpu()  # noisiest first
        optimiser = torch.optim.AdamW(classifier.parameters(), lr=self.lr, weight_decay=1e-3)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(clean), generator=generator).split(_BATCH):
                shares = torch.rand(len(rows), generator=generator).pow(1 / 3)
                timesteps = levels[((1 - shares) * (len(levels) - 1)).round().long()]
                added = noise([generator] * len(rows), tuple(clean.shape[1:]))  # type: ignore[arg-type]
                with torch.enable_grad():
                    noisy = schedule.noised(clean[rows], added, timesteps)
                    loss = F.binary_cross_entropy_with_logits(classifier(noisy, schedule, timesteps), labels[rows])
                    optimiser.zero_grad()
                    loss.backward()
                optimiser.step()
        return classifier.eval()


_BATCH = 64


class LatentClassifier(nn.Module):
    """Two hidden layers over the flattened latents and the factors of their signal and noise."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        size = torch.Size(shape).numel() + 2
        self.layers = nn.Sequential(
            nn.Linear(size, width), nn.SiLU(), nn.Linear(width, width // 2), nn.SiLU(), nn.Linear(width // 2, 1)
        )

    def forward(
        self, latents: Float[Tensor, "n c h w"], schedule: NoiseSchedule, timestep: Timestep
    ) -> Float[Tensor, " n"]:
        """Return the logit of each latent at its level."""
        factors = [each.reshape(-1, 1).expand(len(latents), 1).to(latents) for each in schedule.factors(timestep)]
        return self.layers(torch.cat([latents.flatten(1), *factors], dim=1))[:, 0]


def pull(
    classifier: nn.Module, schedule: NoiseSchedule, latents: Float[Tensor, "n c h w"], timestep: Timestep
) -> Float[Tensor, "n c h w"]:
    """Return noise(t) grad_z log sigmoid f(z, t): what the predicted noise loses at scale 1."""
    with torch.enable_grad():
        held = latents.detach().float().requires_grad_()
        likelihood = F.logsigmoid(classifier(held, schedule, timestep)).sum()
        [gradient] = torch.autograd.grad(likelihood, held)
    return schedule.factors(timestep)[1].to(gradient) * gradient


@contextmanager
def guided_by(backbone: Backbone, classifier: nn.Module, scale: float) -> Generator[None]:
    """Pull the sampling of a pipeline along a classifier's gradient, for the length of a `with`.

    The same is added to the unconditional and the conditional output, and so to what any guidance makes of them.

    Raises:
        InputError: The pipeline is one of flow matching.
    """
    schedule = backbone.schedule

    def after(call: Denoising, output: Tensor) -> Tensor:
        timestep = call.timestep.reshape(-1)[:1].round().long().to(backbone.device)
        latents = call.scaled(call.latents)  # as the schedule has them, whatever the scheduler
        shift = -scale * pull(classifier, schedule, latents, timestep)
        one, zero = torch.ones_like(shift[:1]), torch.zeros_like(shift[:1])
        # An output that is not the noise itself is linear in it.
        shift = shift / schedule.noise_of(one, zero, timestep)
        repeats = len(output) // len(shift)
        return output + shift.repeat(repeats, 1, 1, 1).to(output)

    def rows() -> int:
        read = being_read()
        return 0 if read is None else len(read)

    with around_each_step(backbone.pipe, rows=rows, after=after):
        yield
