"""The surroundings of a fit: what a training preserves."""

from erasure.backbones import backbone_of
from erasure.concept import Concept
from erasure.training.context import FitContext, History, TrainingTask
from tests import tiny


def test_a_training_preserves_nothing_that_is_or_was_removed() -> None:
    earlier = Concept(target="dog", aliases=("Puppy",))
    context = FitContext(backbone=backbone_of(tiny.sd1()), history=History(targets=(earlier,)))
    requests = [Concept(target="cat", preserve=("puppy", "bird", "boat")), Concept(target="boat", preserve=("CAT",))]
    task = TrainingTask(context=context, requests=requests, trained=lambda _: True)
    assert [(concept.target, concept.preserve) for concept in task.concepts] == [("cat", ("bird",)), ("boat", ())]
    assert requests[0].preserve == ("puppy", "bird", "boat")
