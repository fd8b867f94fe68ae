"""ClassDiffusion (Huang et al., ICLR 2025, arXiv:2405.17532): learn an instance, and keep what its class can do."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from PIL import Image
from pydantic import Field
from torch import Tensor

from ..backbones.base import Backbone
from ..concept import Concept
from ..edits import EditMetadata, WeightEdit
from ..edits.tokens import NewToken, check_word, mean_row, moved_tokens, table_name, tokens_added
from ..errors import InputError
from ..losses.reconstruction import masked_reconstruction
from ..losses.semantic import Pooling, cosine_preservation
from ..progress import OnProgress
from ..prompts import fill
from ..sampling import noise
from ..training.draws.augmentation import image_latents, squared, view_of
from ..training.finetune import Loss, Optimisation, WeightedLoss, below, finetune
from ..training.phrases import phrase_features
from ..training.student import Student
from .class_words import check_class_word

FEWEST = 2
"""Least number of images of an instance: with one, it cannot be told from its surroundings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """An instance to learn.

    Attributes:
        token: New word for the instance: "<biscuit>" (V* in the paper).
        class_word: Class of the instance: "dog".
        images: Images of the instance, three to seven in the paper; each is cropped to a square.
        initializer: Words whose mean embedding the new word starts from; "" is the default of the method.

    Raises:
        InputError: Fewer than two images, or a class word of several senses or of none.
    """

    token: str
    class_word: str
    images: Sequence[Image.Image]
    initializer: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "class_word", check_class_word(self.class_word))
        if len(self.images) < FEWEST:
            raise InputError(
                f"images of {self.token}: expected at least {FEWEST}, got {len(self.images)}. Three to seven that"
                " differ in place and light are best."
            )

    @property
    def phrase(self) -> str:
        """Phrase for the instance in a prompt: the new word and the class."""
        return f"{self.token} {self.class_word}"

    @property
    def concept(self) -> Concept:
        """Concept of the instance, for an eraser: its anchor is the class."""
        return Concept(target=self.phrase, anchor=self.class_word, kind="identity", aliases=(self.token,))


@dataclass(frozen=True, kw_only=True)
class ClassDiffusion:
    """Custom Diffusion's tuning, a new word and the keys and values of cross-attention, with a tie to the class.

        L = L_rec + spl_weight * 1/K sum_k [1 - cos(f(p_inst,k), f(p_cls,k))]

    L_rec is the masked denoising loss on the images, f the text feature of a phrase, p_inst the template with the new
    word and the class, p_cls with the class alone. f depends on the new words and on nothing else that is trained. With
    `spl_weight` 0 it is Custom Diffusion (arXiv:2212.04488) without prior images.

    Attributes:
        spl_weight: Weight of the semantic preservation loss (lambda), >= 0. More composes better and resembles the
            instance less.
        spl_pooling: Position of a phrase's feature: "eos", the end of text, as in the paper; "official_argmax", as in
            the published code: the new word, whose state does not depend on the class after it; "published", the whole
            of that code's loss, where the new word also enters without the position that all other words have.
        template: Template of the prompts and of the phrases, with one `{}`.
        steps: Number of updates; the published scripts take 800 for two instances.
        batch_size: Images per update.
        lr: Learning rate of AdamW, > 0: 1e-5 per image of the batch in the published scripts.
        token_lr: Learning rate of the new words; None is `lr`.
            Differs from the paper: one rate there.
        weight_decay: Weight decay of AdamW.
        clip_norm: Largest norm of the gradient of all trained parameters.
        rank: Rank of trained low-rank patches of the keys and values; None trains the weights.
            Differs from the paper: none there.
        augment: Whether images are shrunk and enlarged at random; else each is used whole.
        size_words: Whether the prompt names the size of an augmented image ("a far away ...").
        flip: Whether half of the images are mirrored.
        initializer: Words whose mean embedding a new word starts from. The published scripts take "ktn", a rare token;
            of several tokens the mean is taken.

    Differs from the paper's code: the feature of the class gets no gradient; rows of known words cannot move, not even
    by weight decay; an image is cropped to a square where the code squeezes it.
    """

    name: ClassVar[str] = "class-diffusion"
    quick: ClassVar[Mapping[str, object]] = {"steps": 2, "lr": 1e-3}

    spl_weight: Annotated[float, Field(ge=0)] = 1.0
    spl_pooling: Pooling = "eos"
    template: str = "a photo of a {}"
    steps: Annotated[int, Field(ge=0)] = 500
    batch_size: Annotated[int, Field(ge=1)] = 2
    lr: Annotated[float, Field(gt=0)] = 2e-5
    token_lr: Annotated[float, Field(gt=0)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    rank: Annotated[int, Field(ge=1)] | None = None
    augment: bool = True
    size_words: bool = True
    flip: bool = False
    initializer: str = "ktn"

    def fit(
        self,
        backbone: Backbone,
        instances: Sequence[Instance],
        *,
        on_progress: OnProgress | None = None,
        seed: int = 0,
    ) -> WeightEdit:
        """Return the edit after which the model knows the instances; the model is left as it was.

        Raises:
            InputError: No instances, one word for two, or a word that the model knows.
            SolveError: The loss is no longer finite.
        """
        tokens = self._tokens(backbone, instances)
        tables = {component: table_name(backbone, component) for component in backbone.tokenizers()}
        metadata = EditMetadata.of(
            self.name, asdict(self), backbone, [instance.concept for instance in instances], seed
        )
        with tokens_added(backbone.pipe, tokens):
            changes = finetune(
                backbone,
                set(_projections(backbone)).__contains__,
                self._reconstruction(backbone, instances),
                Optimisation(
                    steps=self.steps,
                    lr=self.lr,
                    rank=self.rank,
                    weight_decay=self.weight_decay,
                    clip_norm=self.clip_norm,
                    last_rows=dict.fromkeys(tables.values(), len(tokens)),
                    last_rows_lr=self.token_lr,
                ),
                terms=[WeightedLoss(loss=self._semantic(backbone, instances), weight=self.spl_weight)],
                on_progress=on_progress,
                seed=seed,
            )
        learned = moved_tokens(tokens, {component: changes.pop(name) for component, name in tables.items()})
        return WeightEdit(changes=changes, metadata=metadata, tokens=learned)

    def _tokens(self, backbone: Backbone, instances: Sequence[Instance]) -> list[NewToken]:
        """Return the new words as they start."""
        words = [instance.token for instance in instances]
        if not instances or len(set(words)) < len(words):
            raise InputError(f"{self.name}: expected instances with a word each, got {words!r}.")
        for word in words:
            check_word(backbone, word)
        return [
            NewToken(
                text=instance.token,
                rows={
                    component: mean_row(backbone, component, instance.initializer or self.initializer)
                    for component in backbone.tokenizers()
                },
            )
            for instance in instances
        ]

    def _reconstruction(self, backbone: Backbone, instances: Sequence[Instance]) -> Loss:
        """Return the masked denoising loss on views of the images."""
        pool = [(instance, squared(image)) for instance in instances for image in instance.images]
        factor = backbone.pipe.vae_scale_factor
        side = backbone.latent_shape()[1] * factor

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            chosen = [pool[below(len(pool), generator)] for _ in range(self.batch_size)]
            views = [
                view_of(image, side=side, factor=factor, augment=self.augment, flip=self.flip, generator=generator)
                for _, image in chosen
            ]
            prefixes = [view.prefix if self.size_words else "" for view in views]
            prompts = [
                prefix + fill(self.template, instance.phrase)
                for prefix, (instance, _) in zip(prefixes, chosen, strict=True)
            ]
            clean = image_latents(backbone, torch.stack([view.pixels for view in views]), generator)
            mask = torch.stack([view.mask for view in views]).to(clean)
            added = noise([generator] * len(views), backbone.latent_shape()).to(clean)
            timesteps = backbone.schedule.drawn(len(views), generator).to(clean.device)
            noisy = backbone.schedule.noised(clean, added, timesteps)
            ids = backbone.encode(prompts).ids
            predicted = student(lambda: backbone.predict(noisy, timesteps, backbone.encode_ids(ids)))
            target = backbone.schedule.target(clean, added, timesteps)
            return masked_reconstruction(predicted.float(), target, mask)

        return loss

    def _semantic(self, backbone: Backbone, instances: Sequence[Instance]) -> Loss:
        """Return the semantic preservation loss, its phrases encoded once."""
        phrases = [
            (fill(self.template, instance.phrase), fill(self.template, instance.class_word)) for instance in instances
        ]
        learned, known = (backbone.encode(list(side)).ids for side in zip(*phrases, strict=True))
        with torch.no_grad():
            centres = phrase_features(backbone, known, self.spl_pooling)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            features = student(phrase_features, backbone, learned, self.spl_pooling)
            return torch.stack([cosine_preservation(*pair) for pair in zip(features, centres, strict=True)]).mean()

        return loss


def _projections(backbone: Backbone) -> list[str]:
    return list(backbone.sites(reads="text"))
