"""The judge: pictures and prompts in, scores out."""
