"""What a model looks like to those who only run it: diffusers pipelines and export."""
