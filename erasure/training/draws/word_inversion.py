"""Textual inversion inside a model under erasure: texts that make it denoise images of a concept again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ...backbones.conditioning import Conditioning
from ...concept import Kind
from ...edits.tokens import NewToken, mean_row, moved_tokens, table_name, tokens_added
from ...progress import OnProgress, Progress
from ...prompts import fill
from ...sampling import scheduled_prediction
from ..context import TrainingTask
from ..finetune import Optimisation, finetune
from ..inner_attack import InnerAttack, SoftPrompts
from ..student import Student, at_rest
from .noised_images import NoisedImages

_WORD = "<sought>"
_FIRST: Mapping[Kind, str] = {"object": "object", "style": "art", "identity": "person", "unsafe": "person"}


@dataclass(frozen=True, kw_only=True, eq=False)
class WordSearch:
    """Search for one text, by the model in force.

    Attributes:
        images: Images of one concept.
        steps: Updates, >= 0.
        lr: Learning rate, > 0.
        batch_size: Images an update, > 0.
        weight_decay: Weight decay of a word's row, >= 0.
        initializer: Words that a new word starts from; "" goes by the concept's kind.
        on_progress: Receives the progress.
    """

    images: NoisedImages
    steps: int
    lr: float
    batch_size: int
    weight_decay: float
    initializer: str
    on_progress: OnProgress | None

    def word(self, task: TrainingTask, seed: int) -> Conditioning:
        """Return the bare new word that was learned, encoded.

        Raises:
            InputError: The model's text encoders do not share a vocabulary.
        """
        backbone = task.backbone
        start = self.initializer or _FIRST[self.images.prompts[0].concept.kind]
        token = NewToken(text=_WORD, rows={part: mean_row(backbone, part, start) for part in backbone.tokenizers()})
        tables = {part: table_name(backbone, part) for part in backbone.tokenizers()}
        with tokens_added(backbone.pipe, [token]):
            ids = backbone.encode([fill(prompt.template, _WORD) for prompt in self.images.prompts]).ids

            def loss(student: Student, step: int, generator: torch.Generator) -> Float[Tensor, ""]:
                batch = self.images.draw(self.batch_size, generator)

                def predicted() -> Tensor:
                    read = backbone.encode_ids(ids[list(batch.rows)])
                    return scheduled_prediction(backbone, batch.latents, batch.timesteps, read)

                return F.mse_loss(student(predicted), batch.truth)

            settings: dict[str, Any] = {"steps": self.steps, "lr": self.lr, "weight_decay": self.weight_decay}
            optimisation = Optimisation(**settings, last_rows=dict.fromkeys(tables.values(), 1))
            learned = finetune(backbone, lambda _: False, loss, optimisation, on_progress=self.on_progress, seed=seed)
        moved = moved_tokens([token], {part: learned[name] for part, name in tables.items()})
        with tokens_added(backbone.pipe, moved):
            return backbone.encode([_WORD])

    def states(self, task: TrainingTask, seed: int) -> Conditioning:
        """Return the soft prompt that was learned."""
        backbone, generator = task.backbone, torch.Generator().manual_seed(seed)
        settings = InnerAttack(prompts=1, every=1, life=self.steps + 1, lr=self.lr, batch_size=self.batch_size)
        attack = SoftPrompts(
            settings, backbone, self.images.latents.float().to(backbone.device), backbone.unconditional()
        )
        student = Student(backbone, task.trained, None, generator)
        with at_rest(backbone):
            attack.begin(generator)
            for step in range(self.steps):
                attack.advance(student, step, generator)
                if self.on_progress is not None:
                    self.on_progress(Progress(done=step + 1, total=self.steps))
        return attack.read([0])
