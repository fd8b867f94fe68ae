"""The removals that stand, by what a further one may clash with."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from ..concept import Concept, normalized, normalized_names
from ..erasers import Eraser
from .record import Entry
from .renamed import recorded_eraser


class Standing:
    """The removals of a record that stand, by name, anchor and eraser.

    It grows with the record, so that the cost of a look-up does not grow with the number of removals.

    Attributes:
        by_name: The removals of each name, aliases included, by its normalized form, in order.
        becomes: Anchors of each name, all in their normalized form.
    """

    def __init__(self) -> None:
        self._followed: tuple[Entry, ...] = ()
        self._firsts: dict[int, tuple[Eraser, Entry]] = {}  # by identity: equal settings are one eraser
        self.by_name: dict[str, list[Entry]] = {}
        self.becomes: dict[str, set[str]] = {}

    def of(self, entries: tuple[Entry, ...]) -> "Standing":
        """Return the removals of a record: these with its new ones, or others if one of these changed."""
        known = len(self._followed)
        if entries[:known] != self._followed:
            return Standing().of(entries)
        for entry in entries[known:]:
            if entry.state == "standing":
                self._add(entry)
        self._followed = entries
        return self

    def _add(self, entry: Entry) -> None:
        if (eraser := recorded_eraser(entry)) is not None:
            self._firsts.setdefault(id(eraser), (eraser, entry))
        for name in dict.fromkeys(normalized(name) for concept in entry.concepts for name in concept.names):
            self.by_name.setdefault(name, []).append(entry)
        for name, anchors in anchors_of(entry.concepts).items():
            self.becomes.setdefault(name, set()).update(anchors)

    def clash_candidates(self, concepts: Sequence[Concept]) -> Iterator[tuple[Eraser, Entry, bool]]:
        """Yield eraser and entry of the first removal by each eraser, and of all that share a name with concepts.

        The third is whether they share a name.
        """
        yield from ((eraser, entry, False) for eraser, entry in self._firsts.values())
        shared = {entry.id: entry for name in normalized_names(*concepts) for entry in self.by_name.get(name, ())}
        for entry in shared.values():
            if (eraser := recorded_eraser(entry)) is not None:
                yield eraser, entry, True


def anchors_of(concepts: Iterable[Concept]) -> dict[str, set[str]]:
    """Return the anchors of each name, all in their normalized form."""
    becomes: dict[str, set[str]] = {}
    for concept in concepts:
        for name in normalized_names(concept):
            becomes.setdefault(name, set()).add(normalized(concept.anchor))
    return becomes


def reached(names: Iterable[str], *becomes: Mapping[str, Collection[str]]) -> set[str]:
    """Return the names, their anchors, the anchors of those, and so on."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(anchor for part in becomes for anchor in part.get(name, ()))
    return seen
