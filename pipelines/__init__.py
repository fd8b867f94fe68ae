"""Pipelines and exports: diffusers pipelines with guidance, and files for other programs."""
