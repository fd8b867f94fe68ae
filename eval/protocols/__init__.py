"""Protocols: what is generated, measured and recorded in which order."""
