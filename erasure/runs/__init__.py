"""A run: one checked config and the removal of its concepts into a ledger."""
