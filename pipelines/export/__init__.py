"""Exports of a ledger in the formats that other programs read."""
