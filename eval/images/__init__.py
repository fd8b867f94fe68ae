"""Images of an evaluation: generated, stored, compared."""
