"""The web demo, as a Hugging Face Space runs it: `python app.py`, the same as `erasure app`."""

import sys

from erasure.cli.main import app

if __name__ == "__main__":
    app(["app", *sys.argv[1:]])
