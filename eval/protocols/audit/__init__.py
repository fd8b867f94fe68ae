"""The audit: every probe on an erased model, beside the rows that its numbers are read against."""
