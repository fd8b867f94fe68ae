"""Learning a concept from a few images, and forgetting it again."""
