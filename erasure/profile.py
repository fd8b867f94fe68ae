"""The profile of a model: sampling defaults, concepts, eraser settings, benchmark and judge; a world has its own."""
# pyright: reportUnknownMemberType=false
# ruamel.yaml has types in part.

import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from .judge import Judge, among, cached_clips, clip_judge
from .registry import added_modules, with_settings

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

DEFAULT_MODEL = "tinyworld"
"""Model of a run that names none."""


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """Sampling settings of a model where a run leaves them open.

    Attributes:
        steps: Number of sampling steps, > 0.
        guidance_scale: Scale of classifier-free guidance, >= 0.
        batch_size: Images sampled at once in an interactive session, > 0; None depends on the device.
    """

    steps: int
    guidance_scale: float
    batch_size: int | None = None


@dataclass(frozen=True, kw_only=True)
class ClipTexts:
    """Texts between which CLIP chooses as a judge.

    Attributes:
        named: Text of a concept, with `{}` for its name.
        plain: Text of an image of nothing in particular.
    """

    named: str = "an image of {}"
    plain: str = "an image"


@dataclass(frozen=True, kw_only=True)
class ProfileData:
    """Contents of a file under configs/profiles.

    Attributes:
        title: Name of the model in reports; "" is the name that loads it.
        sampling: Sampling defaults.
        clip_texts: Texts of CLIP as a judge.
        benchmark: Name of the benchmark that asks for the model's own concepts; "" without one.
        start: Known concept that an interactive session starts with; "" starts with none.
        examples: Prompts that an interactive session starts with.
        location: Python expression of the folder of the model's files, for people; "" if the name says it.
        licence: SPDX identifier of the licence of the weights; "" if the model's card states it.
        limitations: Lines for the model card of an edited model.
        settings: Settings by method, for runs that leave them open.
    """

    title: str
    sampling: SamplingDefaults
    clip_texts: ClipTexts = field(default_factory=ClipTexts)
    benchmark: str = ""
    start: str = ""
    examples: tuple[str, ...] = ()
    location: str = ""
    licence: str = ""
    limitations: tuple[str, ...] = ()
    settings: Mapping[str, Mapping[str, bool | int | float | str]] = field(
        default_factory=dict[str, Mapping[str, bool | int | float | str]]
    )


class ModelProfile:
    """Profile of a model without one of its own: no concept is known, and CLIP is the judge.

    A world overrides what it knows. Its profile is found in the module `profile` of a package within this one, or in a
    module that another package adds by an entry point.

    Attributes:
        name: Name that loads the model, and of its file under configs/profiles.
        concepts: Names of the concepts that the model is known to draw; empty if that is not known.
        folder: Folder of the model's files if they come with this package, else None.
        novel: Name of a concept that the judge knows and the model was never taught; "" without one.
        held_out: Contexts that no list of an eraser may hold, so that a measure can ask in phrasings that no removal
            has seen.
    """

    name: ClassVar[str] = "general"
    concepts: ClassVar[tuple[str, ...]] = ()
    folder: ClassVar[Path | None] = None
    novel: ClassVar[str] = ""
    held_out: ClassVar[tuple[str, ...]] = ()

    @cached_property
    def data(self) -> ProfileData:
        """Settings of the profile's file."""
        return _data(self.name)

    @property
    def sampling(self) -> SamplingDefaults:
        """Sampling defaults."""
        return self.data.sampling

    def settings(self, method: str) -> dict[str, bool | int | float | str]:
        """Return the settings that a run of a method has on this model where it leaves them open."""
        return dict(self.data.settings.get(method, {}))

    def example(self, method: str) -> Path | None:
        """Return a config that removes several concepts from this model by a method; None without one."""
        file = _configs() / method / f"sequence-{self.name}.yaml"
        return file if file.is_file() else None

    def load(self, *, device: "str | torch.device", dtype: "torch.dtype") -> "DiffusionPipeline":
        """Return the pipeline of a model whose files come with this package."""
        raise NotImplementedError

    def canonical(self, text: str) -> str | None:
        """Return the model's name for a concept, given by name, synonym or other case; None if it is not known."""
        return None

    def aliases(self, name: str) -> tuple[str, ...]:
        """Return the synonyms of a known concept."""
        return ()

    def kind(self, name: str) -> str | None:
        """Return the kind of a known concept; None if it is not known."""
        return None

    def ability(self, name: str) -> str:
        """Return the group of a concept in a health check: its kind, or a finer one; what is unsafe is an object."""
        kind = self.kind(name) or "object"
        return "object" if kind == "unsafe" else kind

    def member_of(self, name: str) -> str | None:
        """Return the concept that a known individual is a member of; None for anything else."""
        return None

    def siblings(self, name: str) -> tuple[str, ...]:
        """Return the concepts nearest to a known one."""
        return ()

    def kept_beside(self, targets: Sequence[str]) -> list[str]:
        """Return the known concepts without some of them and without their members."""
        return [name for name in self.concepts if name not in targets and self.member_of(name) not in targets]

    def completed(self, requests: Sequence[object]) -> list[object]:
        """Return removal requests with what is known of their concepts filled in; other values stay as they are.

        Each is completed as it would be alone.

        Raises:
            UnknownNameError: A target is not a concept of the model, or an anchor or a preserved text has a word that
                the model was never taught, where those are known.
        """
        return list(requests)

    def class_name(self, text: str, siblings: Sequence[str] = ()) -> str:
        """Return the model's name for the class of a personalised instance.

        Args:
            text: Name of the class.
            siblings: Names of similar classes, where the model's are not known.

        Raises:
            UnknownNameError: The class is unknown, where the model's are known.
            InputError: Siblings are given where they are known.
        """
        return text

    def prompts(self, name: str, n: int, seed: int = 0) -> list[str]:
        """Return n prompts for a known concept, the same for the same arguments; none for an unknown one."""
        return []

    def example_prompt(self, name: str) -> str:
        """Return a prompt that shows a known concept."""
        return name

    def examples(self, name: str, n: int, seed: int = 0) -> "list[Image]":
        """Return n images of a concept that no model sampled; none where there are none.

        The i-th images of two objects share scene, style and place.
        """
        return []

    def hypernym(self, name: str) -> str:
        """Return the word for the family of a known concept; "" without one."""
        return ""

    def descriptions(self, name: str) -> tuple[str, ...]:
        """Return phrases that mean a known concept without naming it."""
        return ()

    def named_in(self, prompt: str) -> tuple[str, ...]:
        """Return the known concepts named in a prompt that are worth a reading of its image."""
        return ()

    def relatives(self, class_name: str) -> list[str]:
        """Return the known concepts like a class, and the individuals of it and of those."""
        return []

    def contexts(self, class_name: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return prompts with `{}` for an instance of a class in company, and the concepts beside it in each."""
        return []

    def judge(self, device: str = "cpu", names: Sequence[str] = ()) -> Judge | None:
        """Return the judge of the model's images; None if there is none.

        Args:
            device: Device of the judge.
            names: Concepts to tell apart, for a judge that chooses between some.
        """
        return next(iter(self.judges(device, names)), None)

    def judges(self, device: str = "cpu", names: Sequence[str] = ()) -> list[Judge]:
        """Return the independent judges of the model's images, the one that decides first; see `judge`."""
        choices = among(names, named=self.data.clip_texts.named, plain=self.data.clip_texts.plain)
        return [clip_judge(source, device, choices) for source in cached_clips()[:2]]


def profile_of(model: "str | DiffusionPipeline") -> ModelProfile:
    """Return the profile of a model.

    Args:
        model: The name that loads it, or the loaded pipeline.
    """
    source = model if isinstance(model, str) else str(getattr(model, "name_or_path", ""))
    for profiles in (_shipped, _added):  # other packages are imported for models of other packages only
        for profile in profiles():
            if source == (profile.name if isinstance(model, str) else str(profile.folder)):
                return profile
    return _GENERAL


_GENERAL = ModelProfile()


@cache
def _shipped() -> tuple[ModelProfile, ...]:
    """Return the profiles of this package's worlds: each is the module `profile` of its own package."""
    package = import_module(__package__ or "")
    worlds = [
        info.name
        for info in pkgutil.iter_modules(package.__path__)
        if info.ispkg and (Path(__file__).parent / info.name / "profile.py").is_file()
    ]
    return tuple(_defined_in([import_module(f"{package.__name__}.{world}.profile") for world in worlds]))


def _added() -> list[ModelProfile]:
    """Return the profiles that other packages add by entry points."""
    return _defined_in(added_modules())


def _defined_in(modules: Sequence[ModuleType]) -> list[ModelProfile]:
    kinds = ((module, kind) for module in modules for kind in vars(module).values() if isinstance(kind, type))
    return [kind() for module, kind in kinds if issubclass(kind, ModelProfile) and kind.__module__ == module.__name__]


def _configs() -> Path:
    return Path(str(resources.files("erasure.configs")))


@cache
def _data(name: str) -> ProfileData:
    from ruamel.yaml import YAML

    data = YAML(typ="safe", pure=True).load((_configs() / "profiles" / f"{name}.yaml").read_text(encoding="utf-8"))
    return with_settings(ProfileData, data, where=f"profiles/{name}.yaml: ")
