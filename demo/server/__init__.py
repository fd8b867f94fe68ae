"""The server of the demo: what it loads, the waiting page meanwhile, and the folder of a Hugging Face Space."""
