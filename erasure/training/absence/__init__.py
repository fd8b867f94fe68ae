"""Material of the objective `absent`: images, prompts, evidence and the rows of a batch."""
