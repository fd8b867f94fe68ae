"""Training of the tiny world's parts from nothing: `python -m erasure.tinyworld.training --minutes N --out DIR`.

Stages: tokenizer, clip, vae, oracle, unet, judge, assemble. Each keeps its state in DIR/state and resumes from it
after an interruption. Each has a share of the minutes, counted as time in its own loop; its learning rate falls over
that share. The random draws of a stage depend on the seed, the stage and the step alone.
"""
