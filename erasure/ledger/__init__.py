"""The ledger: the record of removals on one base model."""
