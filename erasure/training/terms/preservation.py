"""Further terms of a trained eraser's loss that keep what stands beside the concept, by name and weight.

A config has them as `eraser: {name: esd, preservation: {attention: 1.0}}`.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from ...backbones.attention import MapCapture
from ...backbones.base import Backbone
from ...backbones.conditioning import Conditioning
from ...backbones.loaded import unwrapped
from ...concept import CLASS_TEMPLATES, Concept, fill, speaks_of, templates
from ...errors import InputError
from ...guidance.a_star import AStarLoss
from ...guidance.attention import MapReading, Named
from ...losses.attention import regions, retention
from ...losses.semantic import cosine_preservation, kv_preservation
from ...sampling import noise, scheduled_prediction, trajectory_latents
from ..finetune import Loss, Preservation, Student, below
from ..phrase_features import phrase_features

logger = logging.getLogger(__name__)

Term = Literal["attention", "semantic-text", "semantic-kv", "semantic-noise"]
Weights = Mapping[Term, Annotated[float, Field(ge=0)]]
Reference = Callable[[], AbstractContextManager[object]]

# Enough that no single trajectory is learned by heart, few enough to be made in a moment beside the training.
_TRAJECTORIES, _PLACES, _BATCH = 16, 4, 4
_SAMPLE_STEPS, _GUIDANCE_SCALE = 20, 4.0


def preservations(
    weights: Weights,
    backbone: Backbone,
    concepts: Sequence[Concept],
    *,
    trained: Callable[[str], bool],
    reference: Reference = nullcontext,
) -> list[Preservation]:
    """Return the terms that some weights ask for; a weight of 0 asks for none.

    Args:
        weights: By the term's name.
        backbone: The model under training.
        concepts: What is removed, with what each preserves.
        trained: Accepts the full names of the parameters that are trained.
        reference: Puts the weights of the model that is to be kept in force for the length of a `with`; by default
            those that the training starts from.

    Raises:
        InputError: A term has nothing to preserve, or the trained weights have no path to it.
    """
    names = list(backbone.parameters(trained))
    asked: list[tuple[Term, float]] = [(name, weight) for name, weight in weights.items() if weight]
    for name, _ in asked:
        if not reaches(name, names):
            others = [term for term in _BUILDERS if reaches(term, names)]
            raise InputError(
                f"preservation.{name}: expected trained weights that it depends on, got {', '.join(names[:2])}, ..."
                f" whose gradient would be zero. Use {' or '.join(others) or 'none'}."
            )
    return [Preservation(loss=_BUILDERS[name](backbone, concepts, reference), weight=weight) for name, weight in asked]


def reaches(term: Term, names: Iterable[str]) -> bool:
    """Whether a term depends on any of some parameters, given by full name.

    The feature of a text does not know the denoiser, and keys and values of a text know nothing of it but their own
    projections: a term on the wrong side would be a constant.
    """
    reads_text = (".attn2.to_k.", ".attn2.to_v.")
    for name in names:
        of_text = name.startswith("text_encoder")
        match term:
            case "semantic-text":
                found = of_text
            case "semantic-kv":
                found = any(part in name for part in reads_text)
            case _:
                found = True
        if found:
            return True
    return False


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Latents on the way to pictures of some prompts."""

    latents: Float[Tensor, "n c h w"]
    timesteps: Int[Tensor, " n"]
    states: Conditioning


def attention_retention(backbone: Backbone, concepts: Sequence[Concept], reference: Reference) -> Loss:
    """Return A-STAR's retention across models (reconstructed from arXiv:2306.14544, eq. 3, which is across time).

        L_keep = sum_n  1 - sum min(A_theta^n, B_0^n) / sum (A_theta^n + B_0^n)

    A_theta^n is the map of a preserved name n under the weights being trained, B_0^n the region that the reference
    model's map holds, at the same latents, timestep and prompt. Prompts name n alone or beside what is removed. Maps
    depend on queries, keys and all that lies below them; the values of the last layers get no gradient.

    Raises:
        InputError: No concept preserves anything.
    """
    asks = _asks(concepts)
    if not asks:
        raise _nothing_to_preserve("attention")
    reading = AStarLoss()
    capture = reading.capture(unwrapped(backbone.denoiser))
    kept: list[tuple[_Kept, list[Named], Float[Tensor, "n rows columns"]]] = []

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        if not kept:
            chosen = [asks[below(len(asks), generator)] for _ in range(_TRAJECTORIES)]
            with reference(), torch.no_grad():
                made = _made(backbone, [prompt for prompt, _ in chosen], generator)
                names = [name for _, name in chosen] * _PLACES
                named = [_named(made.states, row, name) for row, name in enumerate(names)]
                kept.append((made, named, _masks(backbone, reading, capture, made, named)))
        pool, named, masks = kept[0]
        rows = [below(len(named), generator) for _ in range(_BATCH)]
        found = student(_maps, backbone, reading, capture, pool, named, rows)
        return retention(found[:, None], masks[rows][:, None]).mean()

    return loss


def semantic_text(backbone: Backbone, concepts: Sequence[Concept], reference: Reference) -> Loss:
    """Return how far the text features of the class phrases are from the reference's: 1 - cos at the end of text.

    The mean over both encoders where there are two: the states of the first, the sentence vector of the second.
    Reconstructed from ClassDiffusion (arXiv:2405.17532), which ties an instance to its class by the same distance.
    """
    phrases = _phrases("semantic-text", concepts)
    ids = backbone.encode(phrases).ids

    with reference(), torch.no_grad():
        before = phrase_features(backbone, ids)

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        found = student(phrase_features, backbone, ids)
        terms = [cosine_preservation(now, then) for now, then in zip(found, before, strict=True)]
        return torch.stack(terms).mean()

    return loss


def semantic_kv(backbone: Backbone, concepts: Sequence[Concept], reference: Reference) -> Loss:
    """Return how far keys and values of the class phrases' words and ends are from the reference's (reconstructed)."""
    read = backbone.encode(_phrases("semantic-kv", concepts), trailing=False)
    places = torch.arange(read.states.shape[1], device=read.eot.device)
    inside = (places >= 1) & (places <= read.eot[:, None])
    states = read.states[inside.to(read.states.device)].float()
    projections = set(backbone.sites(reads="text"))
    with reference():
        originals = {name: p.detach().float() for name, p in backbone.parameters(projections.__contains__).items()}

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        weights = student.weights()
        # Layers that are not trained would add nothing.
        return kv_preservation(states, weights, {name: w for name, w in originals.items() if name in weights})

    return loss


def semantic_noise(backbone: Backbone, concepts: Sequence[Concept], reference: Reference) -> Loss:
    """Return how far the predicted noise for the class phrases is from the reference's (reconstructed)."""
    phrases = _phrases("semantic-noise", concepts)
    kept: list[_Kept] = []

    def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
        if not kept:
            chosen = [phrases[below(len(phrases), generator)] for _ in range(_TRAJECTORIES)]
            with reference():
                kept.append(_made(backbone, chosen, generator))
        pool = kept[0]
        rows = [below(len(pool.timesteps), generator) for _ in range(_BATCH)]
        asked = (pool.latents[rows], pool.timesteps[rows], pool.states.select(rows))
        with reference(), torch.no_grad():
            wanted = scheduled_prediction(backbone, *asked)
        return F.mse_loss(student(scheduled_prediction, backbone, *asked), wanted)

    return loss


_BUILDERS: dict[Term, Callable[[Backbone, Sequence[Concept], Reference], Loss]] = {
    "attention": attention_retention,
    "semantic-text": semantic_text,
    "semantic-kv": semantic_kv,
    "semantic-noise": semantic_noise,
}


def class_phrases(concepts: Sequence[Concept]) -> list[str]:
    """Return phrases about what must stay: the class that a concept becomes, and what it preserves, its siblings.

    Each name stands in the templates of its kind, with adjectives, in places and doing things. Phrases that speak of
    anything that is removed are left out.
    """
    phrases: list[str] = []
    for concept in concepts:
        names: list[str] = [name for name in (concept.anchor, *concept.preserve) if name]
        for name in dict.fromkeys(names):
            phrases += [fill(template, name) for template in templates(concept.kind)]
            if concept.kind in ("object", "identity"):
                phrases += [fill(template, name) for template in CLASS_TEMPLATES]
    return [phrase for phrase in dict.fromkeys(phrases) if not speaks_of(phrase, concepts)]


def _phrases(term: Term, concepts: Sequence[Concept]) -> list[str]:
    phrases = class_phrases(concepts)
    if not phrases:
        raise _nothing_to_preserve(term)
    logger.info("preservation.%s: %d phrases: %s", term, len(phrases), "; ".join(phrases))
    return phrases


def _nothing_to_preserve(term: Term) -> InputError:
    return InputError(f"preservation.{term}: expected concepts that preserve something, got none. Name it in preserve.")


def _asks(concepts: Sequence[Concept]) -> list[tuple[str, str]]:
    """Return prompts, each with the preserved name in it: by itself and beside the concept."""
    erased = {name for concept in concepts for name in concept.names}
    return [
        (fill(template, words), kept)
        for concept in concepts
        for kept in concept.preserve
        if kept not in erased
        for template in templates(concept.kind)
        for words in (kept, f"{concept.target} and {kept}")
    ]


def _made(backbone: Backbone, prompts: Sequence[str], generator: torch.Generator) -> _Kept:
    """Sample a trajectory of the model that is in force for each prompt, and keep some places of each."""
    states = backbone.encode(list(prompts))
    places = torch.randperm(_SAMPLE_STEPS, generator=generator)[:_PLACES].tolist()
    found = trajectory_latents(
        backbone,
        noise([generator] * len(prompts), backbone.latent_shape()),
        states,
        backbone.unconditional(),
        steps=_SAMPLE_STEPS,
        guidance_scale=_GUIDANCE_SCALE,
        stops=places,
    )
    timesteps = backbone.schedule.timesteps(_SAMPLE_STEPS)
    return _Kept(
        latents=torch.cat([found[place] for place in places]),
        timesteps=torch.cat([timesteps[place].repeat(len(prompts)) for place in places]).to(backbone.device),
        states=states.select(list(range(len(prompts))) * _PLACES),
    )


def _masks(
    backbone: Backbone, reading: MapReading, capture: MapCapture, pool: _Kept, named: Sequence[Named]
) -> Float[Tensor, "n rows columns"]:
    """Return the region that the attention of the model in force holds, for each row's preserved name."""
    rows = range(len(named))
    parts = [rows[at : at + _TRAJECTORIES] for at in range(0, len(rows), _TRAJECTORIES)]
    maps = torch.cat([_maps(backbone, reading, capture, pool, named, part) for part in parts])
    return regions(maps).to(maps.dtype)


def _maps(
    backbone: Backbone,
    reading: MapReading,
    capture: MapCapture,
    pool: _Kept,
    named: Sequence[Named],
    rows: Sequence[int],
) -> Float[Tensor, "n rows columns"]:
    """Return the map of each row's preserved name, with gradient."""
    latents = pool.latents[list(rows)]
    maps = capture.read_from(
        lambda: backbone.predict(latents, pool.timesteps[list(rows)], pool.states.select(list(rows)))
    )
    attention = reading.attention(capture, maps, latents, unwrapped(backbone.denoiser))
    return torch.stack([reading.concept_maps(one, named[row])[0] for one, row in zip(attention, rows, strict=True)])


def _named(states: Conditioning, row: int, name: str) -> Named:
    return Named(names=(name,), positions=[states.word_positions(row, name)], end=int(states.eot[row]))
