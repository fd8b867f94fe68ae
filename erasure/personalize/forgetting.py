"""Taking a learned instance back out of a personalised model, without a picture of it.

Reconstructed from ClassDiffusion (arXiv:2405.17532), whose semantic preservation loss, minimised without bound, makes
an instance the bare class.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, ClassVar

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
    """The learned weights are taken back, and the new word is turned into its class.

        min over V* of  1 - cos(f(p_inst), f_0(p_class)),  mean over templates

    f_0 is the base model's feature of the class in the same sentence, and gets no gradient. What else was learned with
    the instance shares its keys and values: then these stay, only the word is turned, and what the class has taken on
    of the instance stays with them.

    Attributes:
        steps: Updates of the word.
        lr: Learning rate of Adam, > 0.
        norm_weight: Of (|f| / |f_0| - 1)^2, which a cosine does not see, >= 0.
    """

    name: ClassVar[str] = "forgetting"
    quick: ClassVar[Mapping[str, Any]] = {"steps": 2}

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
        """Return the edit of the base that takes the place of what was learned; the model is left as it was.

        Args:
            backbone: The base.
            learned: What a personalisation of it returned.
            token: The instance's word.
            on_progress: Receives each update.
            seed: Of the fit.

        Raises:
            UnknownNameError: No such word was learned.
            BaseMismatchError: It was learned on another model.
        """
        learned.check_base(backbone.pipe)
        concept = next((c for c in learned.metadata.concepts if token in c.aliases), None)
        if concept is None:
            raise unknown_name("learned word", token, [t.text for t in learned.tokens])
        others = [each for each in learned.tokens if each.text != token]
        own = next(each for each in learned.tokens if each.text == token)
        pairs = [(fill(template, concept.target), fill(template, concept.anchor)) for template in templates("identity")]
        tables = {table_name(backbone, component): component for component in backbone.tokenizers()}
        with tokens_added(backbone.pipe, [*others, own]):  # last of all, so that it alone is trained
            changes = finetune(
                backbone,
                lambda name: False,
                self._loss(backbone, pairs),
                Optimisation(steps=self.steps, lr=self.lr, optimizer="adam", last_rows=dict.fromkeys(tables, 1)),
                on_progress=on_progress,
                seed=seed,
            )
        moved = moved_tokens([own], {component: changes[name] for name, component in tables.items()})
        return WeightEdit(
            changes=dict(learned.changes) if others else {},
            metadata=EditMetadata.of(self.name, asdict(self), backbone, [concept], seed),
            tokens=(*others, *moved),
        )

    def _loss(self, backbone: Backbone, pairs: list[tuple[str, str]]) -> Callable[..., Float[Tensor, ""]]:
        instance, known = (backbone.encode([pair[at] for pair in pairs]).ids for at in (0, 1))
        with torch.no_grad():
            wanted = phrase_features(backbone, known)

        def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
            found = student(phrase_features, backbone, instance)
            return torch.stack(
                [
                    cosine_preservation(*pair) + self.norm_weight * norm_preservation(*pair)
                    for pair in zip(found, wanted, strict=True)
                ]
            ).mean()

        return loss
