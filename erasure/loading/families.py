"""Model families, and what works on each: as their files declare it, and as the contract tests hold it."""

from dataclasses import dataclass

from ..backbones import family_classes
from ..erasers import eraser_class, eraser_names
from ..guidance import guidances

NOT_RELEASED = (
    "Tested on tiny models of diffusers' own classes with random weights; nothing was run on released weights."
)


@dataclass(frozen=True, kw_only=True)
class FamilySupport:
    """The methods and exports that work on the models of a family.

    Attributes:
        models: Names of the models, in words.
        prediction: Output of the denoiser and its noise schedule, in words.
        erasers: Erasers that apply to them with their default settings.
        streams: Streams of text states that closed forms edit, each by a map of its own.
        samples: Whether images are made, so that removals are measured and looked at.
        guidance: Guidances that act while images are made.
        lora: Whether an edit is exported as a LoRA that diffusers loads.
        kohya: Whether it is exported under the names of kohya's scripts or of ComfyUI.
        single_file: Whether a file with the original release's names is written: of a UNet the whole model, of a
            transformer one that is given, with the changes in it.
        low_memory: Whether a closed form is fitted on a folder without loading the denoiser.
    """

    models: str
    prediction: str
    erasers: tuple[str, ...]
    streams: tuple[str, ...]
    samples: bool
    guidance: tuple[str, ...]
    lora: bool
    kohya: bool
    single_file: bool
    low_memory: bool

    def cells(self) -> tuple[str, ...]:
        """Return the family as a row of a table; see `HEADINGS`."""
        works = (self.lora, self.kohya, self.single_file, self.low_memory)
        images, *marks = ("yes" if value else "–" for value in (self.samples, *works))
        guidance = "all" if self.guidance == tuple(guidances()) else ", ".join(self.guidance) or "–"
        return (
            self.models,
            self.prediction,
            ", ".join(self.streams),
            ", ".join(self.erasers),
            images,
            guidance,
            *marks,
        )


HEADINGS = (
    "models",
    "schedule",
    "text streams",
    "erasers",
    "images",
    "guidance",
    "LoRA",
    "kohya",
    "single file",
    "low memory",
)


def family_support() -> list[FamilySupport]:
    """Return every family, those with the most erasers first."""
    supports: list[FamilySupport] = []
    for family in family_classes():
        if not family.covered:  # a base, or one whose weights stay on the disk
            continue
        able = family.abilities
        supports.append(
            FamilySupport(
                models=", ".join(family.covered),
                prediction=family.schedule_kind.words,
                erasers=tuple(name for name in eraser_names() if eraser_class(name).covers(family)),
                streams=family.stream_names(),
                samples="images" in able,
                guidance=tuple(name for name, kind in guidances().items() if kind.needs in able),
                lora="lora" in able,
                kohya=bool(family.lora_prefix) or family.denoiser_name == "unet",
                single_file=bool(family.original_names) or family.denoiser_name == "unet",
                low_memory="low memory" in able,
            )
        )
    return sorted(supports, key=lambda support: (-len(support.erasers), support.models))
