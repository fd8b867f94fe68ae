"""Localised removal: an erasing force that acts only where the concept's attention is, and not its neighbours'.

Built on A-STAR's maps and regions (arXiv:2306.14544) and the safety term of SLD (Schramowski et al., CVPR 2023,
arXiv:2211.05105); the combination is this project's own.
"""

import copy
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, ClassVar, Literal, cast

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..backbones import backbone_of
from ..backbones.conditioning import Conditioning
from ..backbones.loaded import denoiser_of
from ..errors import InputError
from ..losses.attention import Rule, regions
from ..prompts import without_phrases, words_of
from ..registry import Exactness
from ..typed_torch import lstsq
from .attention import within
from .base import AnyGuidance, Guidance, named_prompts
from .batches import Output, with_first
from .denoising import Denoising
from .leak import LeakLoss
from .map_reading import MapReading, Named
from .steps import Latents, Stepping, around_each_step
from .texts import predicted

NamedRows = Callable[[], Sequence[Named]]


@dataclass(frozen=True, kw_only=True)
class LocalisedRemoval(MapReading, Guidance):
    """A concept's own region of the image made from the prompt without it, and the rest left as it would be.

    Beside the image that is made runs the one that would be made without this, from the same noise. At each step its
    maps say where the concept is, B_e, and where its neighbours are, B_n. Inside

        M = B_e, grown a little, minus the union of B_n

    the prediction is that for the prompt with the concept replaced and without the neighbours, who have regions of
    their own and would be drawn once more, less `scale` times the direction of its name,
    eps_c' - scale (eps_e - eps_u), under the pipeline's own classifier-free guidance; outside, the latents are those of
    the other image. An autoencoder spreads what changes inside over the whole image, so both are decoded and the
    region is set into the other image, its edge faded inwards: outside, not a pixel changes. With `outside="free"`
    the predictions alone are told apart, neither latents nor pixels: half the cost, and what changes inside spreads.

    The specification's force is the second term alone (reconstructed there), which leaves the prompt's own "cat" in
    force. That is why the prompt is changed inside.

    Attributes:
        concepts: Words of the removed concepts as in the prompts; a prompt that names none of them is left alone.
        preserve: Neighbours whose regions are spared, by words as well.
        anchor: Words that replace the concepts inside the region; "" takes them out, None leaves the prompt as it is.
        anchors: Anchors of single concepts, where they differ from `anchor`.
        scale: Strength of the force away from the concept's name.
        outside: Whether the rest is held at the "original" or left "free".
        region: Rule for the regions.
        region_threshold: For the rule "half", in (0, 1].
        grow: By how many pixels of the maps the concept's region is grown; its neighbours' are still spared.
        steps_range: The part of the schedule in which it acts, as shares of it from 0 to 1.
        leak_alpha: Size of an update of the latents before each step that pushes the concept out of its neighbours'
            regions (`LeakLoss`); 0 makes none.
        on_masks: Called at each step with its number and with where each image was acted on.
    """

    name: ClassVar[str] = "localised"
    source: ClassVar[str] = "ours, built on arXiv:2306.14544 and arXiv:2211.05105"
    exactness: ClassVar[Exactness] = "ours"

    concepts: tuple[str, ...]
    preserve: tuple[str, ...] = ()
    anchor: str | None = ""
    anchors: Mapping[str, str] = field(default_factory=dict[str, str])
    scale: float = 0.0
    outside: Literal["original", "free"] = "original"
    region: Rule = "half"
    region_threshold: float = 0.5
    grow: int = 1
    steps_range: tuple[float, float] = (0.0, 1.0)
    leak_alpha: float = 0.0
    on_masks: Callable[[int, Bool[Tensor, "n h w"]], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("scale", self.scale >= 0, "a number of at least 0", "0 leaves the force out")
        self.require(
            "anchor", self.anchor is not None or self.scale > 0, "words", "without one only a scale above 0 acts"
        )
        self.require("region_threshold", 0 < self.region_threshold <= 1, "a number in (0, 1]", "1 is the peak alone")
        self.require("grow", self.grow >= 0, "at least 0 pixels of the maps", "0 leaves the region as it is")
        both = sorted(set(self.concepts) & set(self.preserve))
        self.require("preserve", not both, "neighbours that stay", f"{', '.join(both)} is also to go")
        self.require_shares("steps_range")

    @contextmanager
    def applied_to(self, pipe: DiffusionPipeline) -> Generator[DiffusionPipeline]:
        with named_prompts(pipe, (*self.concepts, *self.preserve), longest=True) as every:

            def named() -> Sequence[Named]:
                rows = every()
                return rows if any(set(row.names) & set(self.concepts) for row in rows) else []

            run = _Removal(self, pipe, named, every.states)
            hooks = around_each_step(
                pipe, rows=lambda: len(named()), before=run.before, after=run.after, stepped=run.stepped
            )
            # The leak comes last, so that the other image is not moved with this one.
            with run.capture, hooks, run.setting_in(pipe), self._parted(pipe, named):
                yield pipe

    @contextmanager
    def _parted(self, pipe: DiffusionPipeline, named: NamedRows) -> Generator[None]:
        loss = LeakLoss(
            erased=self.concepts,
            region=self.region,
            alpha=self.leak_alpha,
            steps_range=self.steps_range,
            normalise=self.normalise,
            competitors=self.competitors,
            smooth=self.smooth,
            layers=self.layers,
        )

        def both() -> Sequence[Named]:
            """The rows, those emptied that hold no neighbour to be pushed out of."""
            rows = named()
            return [row if set(row.names) & set(self.preserve) else _nothing(row) for row in rows]

        with loss.guiding(pipe, both):
            yield

    def masks(
        self, attention: Float[Tensor, "n tokens h w"], named: Sequence[Named], size: Sequence[int]
    ) -> Bool[Tensor, "n k height width"]:
        """Return where each of the concepts is pushed away in each image, at the latents' size."""
        masks = torch.zeros(len(named), len(self.concepts), *attention.shape[-2:], device=attention.device)
        for image_index, (tokens, row) in enumerate(zip(attention, named, strict=True)):
            if not row.positions:
                continue
            held = dict(zip(row.names, self._regions(tokens, row), strict=True))
            spared = [held[name] for name in self.preserve if name in held]
            for concept_index, name in enumerate(self.concepts):
                if name in held:
                    free = [~one for one in spared]
                    masks[image_index, concept_index] = torch.stack([_grown(held[name], self.grow), *free]).all(0)
        return F.interpolate(masks, (size[0], size[1]), mode="nearest").bool()

    def _regions(self, tokens: Float[Tensor, "tokens h w"], row: Named) -> Bool[Tensor, "k h w"]:
        return regions(self.concept_maps(tokens, row), self.region, self.region_threshold)

    def replaced_in(self, prompt: str) -> str:
        """Return the prompt of the region: the concepts replaced, their neighbours left out."""
        neighbours = [name for name in self.preserve if not self._is_part_of_concept(name, prompt)]
        if neighbours:
            prompt = without_phrases(prompt, neighbours)
        anchors = {name: self.anchors.get(name, self.anchor) for name in self.concepts}
        for phrase in sorted((name for name, anchor in anchors.items() if anchor), key=len, reverse=True):
            prompt = re.sub(
                _pattern(phrase), lambda _, phrase=phrase: str(anchors[phrase]), prompt, flags=re.IGNORECASE
            )
        dropped = [name for name, anchor in anchors.items() if not anchor]
        return without_phrases(prompt, dropped) if dropped else prompt

    def _is_part_of_concept(self, name: str, prompt: str) -> bool:
        """Return True if the prompt names a concept whose phrase contains `name`, as "whiskered fish" does "fish"."""
        longer = [concept for concept in self.concepts if re.search(_pattern(name), concept, flags=re.IGNORECASE)]
        return any(re.search(_pattern(concept), prompt, flags=re.IGNORECASE) for concept in longer)

    @classmethod
    def merged(cls: type[AnyGuidance], parts: Sequence[AnyGuidance]) -> tuple[AnyGuidance, ...]:
        """Return one removal for all that have the same settings, apart from concepts, anchors and neighbours.

        An anchor that is removed as well resolves to its own anchor, as in `erasure.closed_form.joint.joined_rows`.

        Raises:
            InputError: Anchors form a circle.
        """
        removals = cast("Sequence[LocalisedRemoval]", parts)
        plain = [part._without_concepts() for part in removals]
        kinds = [each for i, each in enumerate(plain) if each not in plain[:i]]
        removed = {name for part in removals for name in part.concepts}
        anchors = {name: part.anchors.get(name, part.anchor) for part in removals for name in part.concepts}
        groups = [[part for part, each in zip(removals, plain, strict=True) if each == kind] for kind in kinds]
        merged = tuple(
            replace(
                group[0],
                concepts=tuple(dict.fromkeys(name for part in group for name in part.concepts)),
                anchors={
                    name: anchor
                    for part in group
                    for name in part.concepts
                    if (anchor := _resolved(name, anchors)) is not None and anchor != group[0].anchor
                },
                preserve=tuple(dict.fromkeys(name for part in group for name in part.preserve if name not in removed)),
            )
            for group in groups
        )
        return cast("tuple[AnyGuidance, ...]", merged)

    def _without_concepts(self) -> "LocalisedRemoval":
        anchor = None if self.anchor is None else ""
        return replace(self, concepts=(), anchor=anchor, anchors={}, preserve=(), on_masks=None)


class _Removal:
    """One loop's removal: the other image, and where the two may differ."""

    def __init__(
        self,
        settings: LocalisedRemoval,
        pipe: DiffusionPipeline,
        named: NamedRows,
        states: Callable[[], Conditioning | None],
    ) -> None:
        self.settings = settings
        self.named = named
        self.states = states
        self.backbone = backbone_of(pipe)
        self.denoiser = denoiser_of(pipe)
        self.capture = settings.capture(self.denoiser)
        self.names = {name: self.backbone.encode([name]) for name in settings.concepts}
        self.scheduler: Any = None
        self.original: Latents = torch.empty(0, 0, 0, 0)
        self.edited: Latents = self.original
        self.acted: Bool[Tensor, "n k h w"] | None = None
        self.plain: Tensor | None = None
        self.changed: Tensor | None = None
        self._read: Conditioning | None = None
        self._without: Conditioning | None = None

    @torch.no_grad()
    def before(self, call: Denoising) -> Latents:
        """At the first step, note where both images begin."""
        if call.first:
            self.original, self.acted, self.scheduler = call.latents, None, None
        return call.latents

    @torch.no_grad()
    def after(self, call: Denoising, output: Tensor) -> Tensor:
        """Change the prompts' predictions inside the region; the region is this step's."""
        self.changed = output
        latents = call.latents
        if self.settings.outside == "original":
            self.plain, latents = call.predict_all(self.original), self.original
        if not within(self.settings.steps_range, call.step, call.total):
            return output
        attention = call.conditional(self.settings.attention(self.capture, self.capture.maps, latents, self.denoiser))
        masks = self.settings.masks(attention, self.named(), call.latents.shape[-2:])
        # Early maps are vague: where a later step finds that a neighbour stands, the other image is taken up again.
        self.acted = masks
        if self.settings.on_masks is not None:
            self.settings.on_masks(call.step, masks.any(1).cpu())
        self.changed = output.clone()
        call.conditional(self.changed).add_(self._force(call, output, masks))
        return self.changed

    @torch.no_grad()
    def stepped(self, call: Denoising, step: Stepping) -> Latents:
        """Make the other image's step, and have it outside the region."""
        if self.settings.outside == "free" or self.plain is None or self.changed is None:
            return step.previous
        if self.scheduler is None:
            self.scheduler = copy.deepcopy(step.scheduler)
        prediction = _combined_alike(call, self.changed, step.prediction, self.plain)
        options = {**step.options, "return_dict": False}
        self.original = self.scheduler.step(prediction, call.timestep, self.original, **options)[0]
        if self.acted is None:
            return step.previous
        inside = self.acted.any(1, keepdim=True)
        concerned = torch.tensor([bool(set(row.names) & set(self.settings.concepts)) for row in self.named()])
        inside = inside | ~concerned.to(inside.device)[:, None, None, None]  # rows of other prompts are the loop's own
        self.edited = torch.where(inside, step.previous, self.original.to(step.previous.dtype))
        return self.edited

    @contextmanager
    def setting_in(self, pipe: DiffusionPipeline) -> Generator[None]:
        """Decode the other image outside of the region, for the length of a `with`."""
        vae, decode = pipe.vae, pipe.vae.decode

        @wraps(decode)
        def both(z: Tensor, *args: object, **kwargs: object) -> Output:
            decoded = decode(z, *args, **kwargs)
            acted = self.acted
            if self.settings.outside == "free" or acted is None or self.edited.shape != z.shape:
                return decoded
            # Latents are scaled, and shifted, before they are decoded: their difference is only scaled.
            difference = (self.original - self.edited) / vae.config.scaling_factor
            if getattr(vae.config, "latents_std", None) is not None:
                difference = difference * torch.tensor(vae.config.latents_std, device=z.device).view(1, -1, 1, 1)
            plain = decode(z + difference.to(z), *args, **kwargs)
            unedited = plain[0]
            return with_first(decoded, lambda edited: _set_in(edited, unedited, acted))

        members = cast("dict[str, object]", vars(vae))
        shadowed = members.get("decode")
        members["decode"] = both
        try:
            yield
        finally:
            del members["decode"]
            if shadowed is not None:
                members["decode"] = shadowed

    def _force(self, call: Denoising, output: Tensor, masks: Bool[Tensor, "n k h w"]) -> Tensor:
        """Return the change of the predictions for the prompts."""
        settings, bound = self.settings, call.conditional(output)
        inside = masks.any(1, keepdim=True).to(bound)
        force = torch.zeros_like(bound)
        if settings.anchor is not None:
            force += inside * (predicted(call, self._replaced()) - bound)
        if settings.scale:
            n = len(call.latents)
            free = output[:n] if call.guided else predicted(call, self.backbone.unconditional().expand(n))
            for concept_index, (name, states) in enumerate(self.names.items()):
                if any(name in row.names for row in self.named()):
                    away = predicted(call, states.expand(n)) - free
                    force -= settings.scale * masks[:, concept_index, None].to(bound) * away
        return force

    def _replaced(self) -> Conditioning:
        """Return the states of the prompts with the concepts replaced, encoded once a batch."""
        states = self.states()
        if self._without is None or states is not self._read:
            prompts = states.prompts if states is not None else ()
            self._read, self._without = states, self.backbone.encode(list(map(self.settings.replaced_in, prompts)))
        return self._without


def _set_in(
    edited: Float[Tensor, "n 3 height width"],
    plain: Float[Tensor, "n 3 height width"],
    acted: Bool[Tensor, "n k rows columns"],
) -> Float[Tensor, "n 3 height width"]:
    """Return the plain images with the edited ones in the region, faded in from its edge inwards."""
    region = acted.any(1, keepdim=True).to(edited)
    size = (edited.shape[-2], edited.shape[-1])
    share = F.interpolate(region, size, mode="bilinear", align_corners=False)
    inside = F.interpolate(region, size, mode="nearest")
    return plain + inside * (2 * share - 1).clamp(0, 1) * (edited - plain)


def _combined_alike(call: Denoising, output: Tensor, prediction: Tensor, other: Tensor) -> Tensor:
    """Return the loop's prediction for another output, from its prediction for this one.

    Classifier-free guidance is a sum of the two halves with weights that the loop knows, u + w (c - u), and some
    pipelines rescale it: the weights of each image are found by least squares, exactly but for rounding.
    """
    if not call.guided:
        return other
    n = len(call.latents)
    halves = torch.stack([output[:n], call.conditional(output)], -1).flatten(1, -2).double()
    weights = lstsq(halves.cpu(), prediction.flatten(1).double().cpu()[..., None]).to(halves)
    others = torch.stack([other[:n], call.conditional(other)], -1)
    return (others.double() * weights[:, None, None, None, :, 0]).sum(-1).to(prediction.dtype)


def _pattern(phrase: str) -> str:
    return rf"(?<!\w){words_of(phrase)}(?!\w)"


def _resolved(name: str, anchors: Mapping[str, str | None]) -> str | None:
    """Return the anchor of a concept; if that is removed as well, its anchor, and so on."""
    passed = [name]
    anchor = anchors[name]
    while anchor is not None and anchor in anchors:
        if anchor in passed:
            raise InputError(f"localised: expected anchors that stay, got the circle {' -> '.join([*passed, anchor])}.")
        passed.append(anchor)
        anchor = anchors[anchor]
    return anchor


def _grown(region: Bool[Tensor, "h w"], pixels: int) -> Bool[Tensor, "h w"]:
    return F.max_pool2d(region[None, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[0, 0].bool()


def _nothing(row: Named) -> Named:
    return Named(names=(), positions=(), end=row.end)
