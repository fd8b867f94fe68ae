"""The record of an open ledger, as it is read: entries, states, the base."""

import hashlib
from collections.abc import Sequence

from ..arguments import checks_arguments
from ..concept import Concept
from ..edits.metadata import named_model
from ..erasers import Eraser
from ..errors import BaseMismatchError, unknown_name
from .checks import approximate_parts, check_together
from .record import Base, Entry, Origin
from .store import LedgerStore


@checks_arguments
class LedgerView:
    """The read side of a ledger, which needs its record alone.

    Attributes:
        path: The folder.
    """

    def __init__(self, store: LedgerStore) -> None:
        self.path = store.path
        self._store = store

    @property
    def base(self) -> Base:
        """The base model."""
        return self._store.record.base

    @property
    def origin(self) -> Origin | None:
        """The ledger that this one was replayed from; None without one."""
        return self._store.record.origin

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Every removal ever made, in order."""
        return self._store.record.entries

    @property
    def standing(self) -> tuple[Entry, ...]:
        """The removals that were not undone, in order."""
        return tuple(entry for entry in self.entries if entry.state == "standing")

    @property
    def removed_names(self) -> dict[str, str]:
        """Id of the standing removal of each name, aliases included, by its normalized form."""
        return {name: entries[-1].id for name, entries in self._store.standing.by_name.items()}

    def check_together(self, eraser: Eraser, concepts: Sequence[Concept]) -> None:
        """Refuse a removal that would undo one that stands, or act where that one acts.

        Raises:
            InputError: They do not go together.
        """
        check_together(self._store.standing, eraser, concepts)

    def check_whole(self) -> None:
        """Refuse a ledger with a standing removal that cannot be read.

        Raises:
            LedgerError: A file is missing or is not the one that was added.
        """
        self._store.check_whole()

    @property
    def approximate(self) -> tuple[str, ...]:
        """Ids of standing removals that were fitted on the weights of one that no longer stands."""
        stands = {entry.id for entry in self.standing}
        return tuple(e.id for e in self.standing if not e.solved and not stands.issuperset(e.started_from))

    def approximate_parts(self, name: str) -> tuple[str, ...]:
        """Return the methods of a standing removal that stand as they were fitted on one undone since; () if none was.

        The map of text states in a stack is solved anew; the parts that train are approximate.

        Raises:
            UnknownNameError: There is no such removal.
        """
        entry = self.entry(name)
        beneath = [each for each in map(self.entry, entry.started_from) if each.state == "undone"]
        return approximate_parts(entry, beneath) if entry.id in self.approximate else ()

    def entry(self, name: str) -> Entry:
        """Return the removal of an id; "1" is "001".

        Raises:
            UnknownNameError: There is none.
        """
        for entry in self.entries:
            if entry.id == name.zfill(3):
                return entry
        raise unknown_name("ledger entry", name, [entry.id for entry in self.entries])

    def check_base(self, fingerprint: str, name: str = "") -> None:
        """Raise BaseMismatchError unless a model is the ledger's base."""
        if fingerprint != self.base.fingerprint:
            raise BaseMismatchError(
                f"ledger {str(self.path)!r}: expected its base {named_model(self.base.name, self.base.fingerprint)},"
                f" got {named_model(name, fingerprint)}. Load that base, or start another ledger."
            )

    def state(self, upto: str | None = None) -> str:
        """Return a hash of the standing removals: equal for equal files on the same base, and for no others."""
        parts = [entry.sha256 for entry in self.standing_upto(upto)]
        return hashlib.sha256("\n".join([self.base.fingerprint, *parts]).encode()).hexdigest()[:16]

    def standing_upto(self, upto: str | None = None) -> list[Entry]:
        """Return the standing removals up to an entry, which need not stand itself; None is all of them.

        Raises:
            UnknownNameError: There is no removal `upto`.
        """
        last = len(self.entries) if upto is None else int(self.entry(upto).id)
        return [entry for entry in self.standing if int(entry.id) <= last]
