"""Learning a concept from a few pictures, and forgetting it again."""
