"""CLIP for scores: the models of open_clip by name, their protocols, and a cache of text features."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from erasure.errors import InputError, MissingExtraError, unknown_name
from erasure.judge import Clip
from erasure.tinyworld.judge import WorldClip
from erasure.tinyworld.models import POSITIONS

from ..images.conversion import Images, as_pil
from ..stats.scores import Setup
from .weights import missing_weights, world_clip_name

DEFAULT = "ViT-L-14:openai"


@runtime_checkable
class PreprocessedTower(Protocol):
    """The image tower of an open_clip model.

    Attributes:
        preprocess_cfg: Settings of its preprocessing, by the names of open_clip's PreprocessCfg.
    """

    preprocess_cfg: Mapping[str, Any]


@runtime_checkable
class OpenClipModel(Protocol):
    """The models of open_clip, which have no base class in common.

    Attributes:
        visual: Image tower.
        context_length: Length of a text in tokens.
    """

    visual: PreprocessedTower
    context_length: int

    def eval(self) -> "OpenClipModel":
        """Leave training mode."""
        ...

    def to(self, device: str) -> "OpenClipModel":
        """Move the weights to a device."""
        ...

    def encode_image(self, image: Tensor, normalize: bool = False) -> Tensor:
        """Return the features of a batch of images."""
        ...

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Return the features of a batch of token ids."""
        ...


class OpenClip:
    """A model of open_clip with its own tokenizer and preprocessing.

    Attributes:
        name: Model and pretrained tag: "ViT-L-14:openai".
        model: The open_clip model.
        tokenizer: Texts and a context length to ids; open_clip's put the end of text last when they cut.
        batch_size: Number of images or texts in one pass.
    """

    def __init__(
        self,
        model: OpenClipModel,
        tokenizer: Callable[..., Tensor],
        name: str,
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        from open_clip.transform import PreprocessCfg, image_transform_v2

        self.model, self.tokenizer, self.name = model.eval().to(device), tokenizer, name
        self.device, self.batch_size = torch.device(device), batch_size
        self._preprocessing = PreprocessCfg(**model.visual.preprocess_cfg)
        self._preprocess = cast("Callable[..., Tensor]", image_transform_v2(self._preprocessing, is_train=False))

    @classmethod
    def load(cls, name: str = DEFAULT, *, device: str = "cpu", download: bool = False) -> "OpenClip":
        """Load a model by open_clip's name and pretrained tag, with the activation that the tag was trained with.

        open_clip gives the tag "openai" of "ViT-B-32" the wrong one (GELU for QuickGELU), with a warning.

        Args:
            name: "<model>:<pretrained>", such as "ViT-B-32:laion2b_s34b_b79k".
            device: Device of the model.
            download: Whether weights that are not in the local cache may be downloaded.

        Raises:
            InputError: The name has not two parts.
            UnknownNameError: open_clip has no such model, or no such weights of it.
            MissingExtraError: open_clip is not installed.
            MissingWeightsError: They are not in the local cache and may not or cannot be downloaded.
        """
        try:
            import open_clip
        except ImportError as error:
            raise MissingExtraError(
                "clip: expected the package open_clip_torch, got none. Install erasure[eval]."
            ) from error
        architecture, _, tag = name.partition(":")
        if not tag:
            raise InputError(f"clip: expected MODEL:PRETRAINED, got {name!r}. Write for example {DEFAULT!r}.")
        if architecture not in open_clip.list_models():
            raise unknown_name("open_clip model", architecture, open_clip.list_models())
        if not open_clip.is_pretrained_cfg(architecture, tag):
            tags = open_clip.list_pretrained_tags_by_model(architecture)
            raise unknown_name(f"weights of {architecture}", tag, tags)
        config = open_clip.get_pretrained_cfg(architecture, tag)
        file = _weights(name, config, download)
        preprocessing = {key: config[key] for key in ("mean", "std", "interpolation", "resize_mode") if key in config}
        try:
            # By file, open_clip asks the network for no weights; what it takes from the tag otherwise is handed over.
            model = open_clip.create_model(
                architecture,
                pretrained=file,
                force_quick_gelu=config.get("quick_gelu", False),
                force_preprocess_cfg=preprocessing,
            )
            tokenizer = open_clip.get_tokenizer(architecture)
        except OSError as error:  # a text tower or tokenizer of the Hub, which few models have
            fetch = f"Fetch them: python -c \"import open_clip; open_clip.get_tokenizer('{architecture}')\""
            raise missing_weights(f"clip {name}", f"tokenizer of {architecture}", fetch, error) from error
        return cls(cast(OpenClipModel, model), tokenizer, name, device)

    @property
    def library(self) -> str:
        """The library with its version."""
        return open_clip_version()

    @property
    def resize(self) -> str:
        """Description of the resize."""
        config = self._preprocessing
        size = "x".join(map(str, config.size)) if isinstance(config.size, tuple) else config.size
        return f"{config.interpolation}, antialias, {config.resize_mode}, {size}"

    @torch.no_grad()
    def image_features(self, images: Images) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each image."""
        pixels = [self._preprocess(image) for image in as_pil(images)]
        batches = (pixels[start : start + self.batch_size] for start in range(0, len(pixels), self.batch_size))
        parts = [self.model.encode_image(torch.stack(batch).to(self.device), normalize=True) for batch in batches]
        return torch.cat(parts).float().cpu()

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each text, cut to the model's length with the end of text kept."""
        parts = [
            self.model.encode_text(self._ids(texts[start : start + self.batch_size]).to(self.device), normalize=True)
            for start in range(0, len(texts), self.batch_size)
        ]
        return torch.cat(parts).float().cpu()

    def truncated(self, texts: Sequence[str]) -> list[str]:
        """Return the texts that are longer than the model reads."""
        length = self.model.context_length
        read, whole = self._ids(texts), self.tokenizer(list(texts), context_length=2 * length)
        # Where a text is cut, an end of text stands where the longer form goes on.
        return [text for text, a, b in zip(texts, read, whole, strict=True) if not torch.equal(a, b[:length])]

    def _ids(self, texts: Sequence[str]) -> Tensor:
        return self.tokenizer(list(texts), context_length=self.model.context_length)


def truncated(clip: Clip, texts: Sequence[str]) -> list[str]:
    """Return the texts that are longer than a CLIP reads; none if its length is not known."""
    if isinstance(clip, WorldClip):
        return [text for text in texts if len(clip.tokenizer(text).input_ids) > POSITIONS]
    return clip.truncated(texts) if isinstance(clip, OpenClip) else []


def setup_of(clip: Clip, metric: str) -> Setup:
    """Return the protocol of a metric over a CLIP."""
    if isinstance(clip, OpenClip):
        return Setup(metric=metric, library=clip.library, backbone=clip.name, resize=clip.resize)
    if isinstance(clip, WorldClip):
        return Setup(metric=metric, library=open_clip_version(), backbone=world_clip_name(clip))
    return Setup(metric=metric, backbone=type(clip).__name__)


def open_clip_version() -> str:
    """Return the library with its version."""
    return f"open_clip {version('open_clip_torch')}"


class TextTower:
    """Text features of a CLIP; each distinct text is encoded once.

    Attributes:
        clip: The CLIP.
        truncated: Texts so far that are longer than the CLIP reads.
    """

    def __init__(self, clip: Clip) -> None:
        self.clip = clip
        self.truncated: list[str] = []
        self._known: dict[str, Tensor] = {}

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings for reports: texts that were cut."""
        if not self.truncated:
            return ()
        first = self.truncated[0] if len(self.truncated[0]) < 60 else f"{self.truncated[0][:57]}..."
        counted = f"{len(self.truncated)} of {len(self._known)} texts are longer than the CLIP score's model reads"
        return (f"{counted}, and their ends do not count: {first!r}",)

    def features(self, texts: Sequence[str]) -> Float[Tensor, "n dim"]:
        """Return a row of unit length for each text."""
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self.clip.text_features(new), strict=True))
            self.truncated += truncated(self.clip, new)
        return torch.stack([self._known[text] for text in texts])


def _weights(name: str, config: dict[str, Any], download: bool) -> str:
    import open_clip

    repository = os.path.dirname(config.get("hf_hub", ""))
    known_as = repository or config.get("url", "")
    fetch = f"Fetch them: hf download {repository}" if repository else f"Fetch {known_as} into {_url_cache()}"
    if not download:
        if (cached := _cached(config)) is None:
            raise missing_weights(f"clip {name}", known_as, fetch)
        return cached
    try:
        return open_clip.download_pretrained(config)
    except (OSError, RuntimeError) as error:  # no connection; a file that is not what its name says
        raise missing_weights(f"clip {name}", known_as, fetch, error) from error


def _cached(config: dict[str, Any]) -> str | None:
    """Return the path of open_clip's weights in the local caches; None if they are not there."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    if "file" in config:
        return config["file"]
    if config.get("hf_hub"):
        repository, file = os.path.split(config["hf_hub"])
        files = [str(Path(file).with_suffix(".safetensors")), file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
        cached = [try_to_load_from_cache(repository, candidate) for candidate in files]
        return next((path for path in cached if isinstance(path, str)), None)
    path = _url_cache() / os.path.basename(config["url"])
    return str(path) if path.is_file() else None


def _url_cache() -> Path:
    return Path.home() / ".cache" / "clip"  # open_clip's own place
