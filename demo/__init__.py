"""The web demo: a page and an API over the library, with one session a visitor. Needs the `app` extra."""
