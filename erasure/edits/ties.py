"""TIES, a merge of edits that were fitted apart (Yadav et al., NeurIPS 2023, arXiv:2306.01708)."""

from collections.abc import Sequence

import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float
from torch import Tensor

from ..arguments import checks_arguments
from ..backbones import backbone_of
from ..errors import InputError
from .changes import Change, DenseChange
from .metadata import EditMetadata
from .weight_edit import WeightEdit


@checks_arguments
def ties(edits: Sequence[WeightEdit], pipe: DiffusionPipeline, *, keep: float = 0.2, scale: float = 1.0) -> WeightEdit:
    """Return one edit of several, each of which was fitted on the unedited model.

    In each weight the largest entries of each difference are kept, each entry elects the sign of the sum, and the
    differences of that sign are averaged. The order of the edits does not matter, and a further request is merged anew
    from all of them. CUIG (arXiv:2511.07970) merges removals with `scale` 1.75.

    Args:
        edits: Edits of one model.
        pipe: The unedited model.
        keep: Share of the entries of each difference that is kept, in (0, 1].
        scale: Factor of the merged difference, >= 0.

    Raises:
        InputError: There are no edits, a setting is out of range, or an edit brings new words.
        BaseMismatchError: They were made for different models.
    """
    if not edits:
        raise InputError("ties.edits: expected at least one edit, got none. Give those to merge.")
    if not 0 < keep <= 1:
        raise InputError(f"ties.keep: expected a share in (0, 1], got {keep!r}. 0.2 keeps a fifth of the entries.")
    if not scale >= 0:
        raise InputError(f"ties.scale: expected a number >= 0, got {scale!r}. 1 keeps the mean.")
    for edit in edits:
        edit.check_base(pipe)
        if edit.tokens:
            raise InputError(
                f"ties.edits: expected edits without new words, got one by {edit.metadata.method}. Leave it out."
            )
    names = list(dict.fromkeys(name for edit in edits for name in edit.changes))
    weights = backbone_of(pipe).parameters(set(names).__contains__)
    changes: dict[str, Change] = {}
    for name in names:
        deltas = [edit.changes[name].of(weights[name].detach()) for edit in edits if name in edit.changes]
        changes[name] = DenseChange(delta=(scale * merged(torch.stack(deltas).double(), keep)).float().cpu())
    return WeightEdit(changes=changes, metadata=EditMetadata.composed([edit.metadata for edit in edits]))


def merged(deltas: Float[Tensor, "n ..."], keep: float) -> Float[Tensor, "..."]:
    """Return the merge of one weight's differences.

    An entry whose kept differences sum to zero takes the sign that most entries of the weight elect, positive at a tie.

    Args:
        deltas: Difference of each edit.
        keep: Share of the entries of each that is kept, in (0, 1].
    """
    trimmed = torch.stack([_trimmed(delta, keep) for delta in deltas])
    signs = trimmed.sum(0).sign()
    majority = 1.0 if float(signs.sum()) >= 0 else -1.0
    signs = torch.where(signs == 0, majority, signs)
    agreeing = trimmed * (trimmed.sign() == signs)
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp(min=1)


def _trimmed(delta: Float[Tensor, "..."], keep: float) -> Float[Tensor, "..."]:
    """Return a difference with its largest entries alone; ties are decided by their order."""
    count = max(1, round(keep * delta.numel()))
    kept = torch.zeros_like(delta).flatten()
    order = delta.abs().flatten().argsort(descending=True, stable=True)[:count]
    kept[order] = delta.flatten()[order]
    return kept.view_as(delta)
