"""Removal of a learned instance from a personalised model, without an image of it.

Reconstructed from ClassDiffusion (arXiv:2405.17532), whose semantic preservation loss, minimised without bound, makes
an instance the bare class.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from ..backbones.base import Backbone
from ..edits import EditMetadata, WeightEdit
from ..edits.tokens import moved_tokens, table_name, tokens_added
from ..errors import unknown_name
from ..losses.semantic import cosine_preservation, norm_preservation
from ..progress import OnProgress
from ..prompts import fill, templates
from ..training.finetune import Optimisation, finetune
from ..training.phrases import phrase_features
from ..training.student import Student


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """Undo the learned weights, and train the new word until it means its class.

        min over V* of  1 - cos(f(p_inst), f_0(p_class)),  mean over templates

    f_0 is the base model's feature of the class in the same sentence, and gets no gradient. Instances that were
    learned together share their keys and values: then these stay, only the word is trained, and the influence of the
    instance on its class remains.

    Attributes:
        steps: Number of updates of the word.
        lr: Learning rate of Adam, > 0.
        norm_weight: Weight of (|f| / |f_0| - 1)^2, which a cosine ignores, >= 0.
    """

    name: ClassVar[str] = "forgetting"
    quick: ClassVar[Mapping[str, object]] = {"steps": 2}

    steps: Annotated[int, Field(ge=0)] = 200
    lr: Annotated[float, Field(gt=0)] = 1e-3
    norm_weight: Annotated[float, Field(ge=0)] = 0.1

    def fit(
        self,
        backbone: Backbone,
        learned: WeightEdit,
        token: str,
        *,
        on_progress: OnProgress | None = None,
        seed: int = 0,
    ) -> WeightEdit:
        """Return the edit of the base that replaces the learned one; the model is left as it was.

        Args:
            backbone: Base model.
            learned: Edit of a personalisation of the base.
            token: Word of the instance.
            on_progress: Receives each update.
            seed: Seed of the fit, >= 0.

        Raises:
            UnknownNameError: No such word was learned.
            BaseMismatchError: It was learned on another model.
        """
        learned.check_base(backbone.pipe)
        concept = next((c for c in learned.metadata.concepts if token in c.aliases), None)
        if concept is None:
            raise unknown_name("learned word", token, [t.text for t in learned.tokens])
        others = [each for each in learned.tokens if each.text != token]
        forgotten = next(each for each in learned.tokens if each.text == token)
        pairs = [(fill(template, concept.target), fill(template, concept.anchor)) for template in templates("identity")]
        tables = {table_name(backbone, component): component for component in backbone.tokenizers()}
        with tokens_added(backbone.pipe, [*others, forgotten]):  # last of all, so that it alone is trained
            changes = finetune(
                backbone,
                lambda name: False,
                self._loss(backbone, pairs),
                Optimisation(steps=self.steps, lr=self.lr, optimizer="adam", last_rows=dict.fromkeys(tables, 1)),
                on_progress=on_progress,
                seed=seed,
            )
        moved = moved_tokens([forgotten], {component: changes[name] for name, component in tables.items()})
        return WeightEdit(
            changes=dict(learned.changes) if others else {},
            metadata=EditMetadata.of(self.name, asdict(self), backbone, [concept], seed),
            tokens=(*others, *moved),
        )

    def _loss(self, backbone: Backbone, pairs: list[tuple[str, str]]) -> Callable[..., Float[Tensor, ""]]:
        instance, known = (backbone.encode(list(side)).ids for side in zip(*pairs, strict=True))
        with torch.no_grad():
            targets = phrase_features(backbone, known)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            features = student(phrase_features, backbone, instance)
            return torch.stack(
                [
                    cosine_preservation(*pair) + self.norm_weight * norm_preservation(*pair)
                    for pair in zip(features, targets, strict=True)
                ]
            ).mean()

        return loss
