"""Evaluation: images and prompts to scores, with their protocols."""
