"""Write the files of this folder; run with the code of commit 5ad1a26, from outside of a checkout."""

import json
import sys
from pathlib import Path

import torch

from erasure import Concept, Ledger, load_model, make_eraser
from erasure.backbones import backbone_of

torch.set_num_threads(1)
out = Path(sys.argv[1])
pipe = load_model("tinyworld")


def norms(edit) -> dict[str, float]:
    weights = backbone_of(pipe).parameters(edit.changes.__contains__)
    return {name: float(change.of(weights[name].detach()).norm()) for name, change in edit.changes.items()}


ledger = Ledger.open_or_create(out / "ledger", pipe, "tinyworld")
ledger.remove(pipe, make_eraser("uce"), [Concept(target="cat", preserve=("dog",))])
few = make_eraser("uce", rows="last-subject")
ledger.remove(pipe, few, [Concept(target="dog", anchor="bird", preserve=("fish",), aliases=("puppy",))], seed=3)
low_rank = make_eraser("esd", steps=2, sample_steps=2, rank=1, lr=1e-3)
ledger.remove(pipe, low_rank, [Concept(target="boat")])
everything = norms(ledger.edit())
ledger.undo("001")
ledger.edit().save(out / "edit.safetensors")
expected = {
    "with_001": everything,
    "standing": norms(ledger.edit()),
    "moved": ledger.moved(pipe),
    "state": ledger.state(),
}
(out / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")
