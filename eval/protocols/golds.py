"""Golds: models that were never taught a removed concept, and the checks that they are what they are taken for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from typing_extensions import TypedDict

from erasure.arguments import checks_arguments
from erasure.backbones import backbone_of
from erasure.errors import InputError
from erasure.io.json_files import read_record
from erasure.loading.components import load_module
from erasure.personalize.folder import PERSONALIZED

from ..images.pipeline_digest import pipeline_digest, weights_digest
from .variants import GOLD, Variant

Loader = Callable[[str], DiffusionPipeline]
"""Function that loads a pipeline by folder or Hub id."""


class _Settings(TypedDict):
    without: list[str]


class _Recipe(TypedDict):
    settings: _Settings


@dataclass(frozen=True, kw_only=True)
class Gold:
    """A model that was never taught a concept.

    Attributes:
        variant: The model.
        without: Concepts that it was never taught; empty where no recipe says so.
    """

    variant: Variant
    without: tuple[str, ...]


@checks_arguments
def gold_of(name: str, original: str, load: Loader) -> Gold:
    """Return the gold of a name, after checks of all that it must share with the original.

    Args:
        name: Folder or Hub id, of a whole model or of a denoiser.
        original: Name of the original model.
        load: Function that loads a pipeline.

    Raises:
        InputError: It cannot be loaded, its recipe is damaged, or its layers, text encoder or decoder are not the
            original's.
    """
    without = untaught(name)
    variant = gold_variant(name, original, load)
    _check_parts(name, variant.pipe, load(original))
    return Gold(variant=variant, without=without)


@checks_arguments
def gold_variant(gold: str, original: str, load: Loader) -> Variant:
    """Return the variant of a model that was never taught a concept, or of its denoiser in the original's place.

    Raises:
        InputError: It cannot be loaded, or the folder holds no denoiser of the original's shape.
    """
    folder = Path(gold)
    if folder.is_dir() and not holds_model(folder):
        return Variant(name=GOLD, pipe=_with_denoiser(load(original), folder), about=gold)
    try:
        pipe = load(gold)
    except InputError as error:
        or_denoiser = (
            "" if folder.is_dir() else " A folder of the denoiser alone (config.json and weights) will do as well."
        )
        raise InputError(f"--gold: {str(error).removeprefix('model: ')}{or_denoiser}") from error
    return Variant(name=GOLD, pipe=pipe, about=gold)


def holds_model(folder: Path) -> bool:
    """Return True if a folder has the index of a whole model, saved by diffusers or by `erasure personalize`."""
    return any((folder / file).is_file() for file in ("model_index.json", PERSONALIZED))


def untaught(gold: str) -> tuple[str, ...]:
    """Return the concepts that a gold's recipe leaves out; none where no recipe lies beside it.

    Raises:
        InputError: The recipe is damaged.
    """
    path = Path(gold) / "recipe.json"
    if not path.exists():
        return ()
    return tuple(read_record(path, _Recipe, "the recipe of a gold, with settings.without")["settings"]["without"])


def check_measures(variants: Sequence[Variant], golds: Mapping[str, Sequence[str]], removed: Sequence[str]) -> None:
    """Refuse golds that are no measure: another variant's model, or one that was taught every removed concept.

    A floor that is the evaluated model itself would call any removal perfect.

    Args:
        variants: Erased model, original and golds.
        golds: Concepts that each gold was never taught, by the name of its variant; none where nothing says so.
        removed: Removed concepts.

    Raises:
        InputError: There is such a gold.
    """
    digests: dict[str, str] = {}
    for variant in variants:
        with variant.applied():
            digest = pipeline_digest(variant.pipe)
        if variant.name in golds and digest in digests:
            raise InputError(
                f"--gold: expected another model that was never taught the concept, got that of the row"
                f" {digests[digest]!r} in {variant.about!r}. Name a model that was trained without it."
            )
        without = golds.get(variant.name)
        if without and not set(without) & set(removed):
            raise InputError(
                f"--gold: expected a model that was never taught {_either(removed)}, got one that was trained without"
                f" {_either(without)} in {variant.about!r}. Leave it out, or name another."
            )
        digests.setdefault(digest, variant.name)


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


def _check_parts(name: str, gold: DiffusionPipeline, original: DiffusionPipeline) -> None:
    sides = [backbone_of(pipe) for pipe in (gold, original)]
    shapes = [{key: tuple(p.shape) for key, p in side.parameters(lambda _: True).items()} for side in sides]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"--gold: expected a model with the original's layers, got another world's in {name!r}."
            " Give a model of the same classes that was never taught the concept."
        )
    for part in (*sides[0].tokenizers(), "vae"):
        if weights_digest(gold.components[part]) != weights_digest(original.components[part]):
            raise InputError(
                f"--gold: expected the original's {part}, got another in {name!r}. Its prompts would mean something"
                " else; train the denoiser alone, with the original's other parts."
            )


def _with_denoiser(pipe: DiffusionPipeline, folder: Path) -> DiffusionPipeline:
    """Replace the denoiser of a pipeline by that of a folder, and return the pipeline.

    Raises:
        InputError: The folder holds no denoiser, or one of another shape.
    """
    before: Any = backbone_of(pipe).denoiser
    component = next(name for name, part in pipe.components.items() if part is before)
    _check_class(folder, type(before))
    try:
        denoiser: Any = load_module(component, type(before), folder, before.dtype)
    except InputError as error:
        raise InputError(f"--gold: {str(error).removeprefix('model: ')}") from error
    shapes = [{name: p.shape for name, p in net.named_parameters()} for net in (before, denoiser)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"--gold: expected a denoiser with the original's layers, got another in {str(folder)!r}."
            " Name a model that was trained from the original's configuration."
        )
    pipe.register_modules(**{component: denoiser.to(before.device).eval().requires_grad_(False)})
    return pipe


def _check_class(folder: Path, kind: type) -> None:
    """Refuse a folder that is not that of a network of a class."""
    expected = (
        f"--gold: expected a whole model (model_index.json), or the folder of its denoiser, {kind.__name__}"
        " (config.json and weights)"
    )
    advice = "Name a model that was trained without the concept."
    if not (folder / "config.json").is_file():
        got = "neither" if any(folder.iterdir()) else "an empty folder"
        raise InputError(f"{expected}, got {got} in {str(folder)!r}. {advice}")
    try:
        config = read_record(folder / "config.json", dict, "the configuration of a denoiser")
    except InputError as error:
        raise InputError(f"--gold: {error}") from error
    if (name := config.get("_class_name")) != kind.__name__:
        raise InputError(f"{expected}, got {name or 'a network without a class'} in {str(folder)!r}. {advice}")
