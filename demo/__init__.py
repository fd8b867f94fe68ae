"""The web demo: what visitors see of the library, and what keeps them apart. Needs the `app` extra."""
