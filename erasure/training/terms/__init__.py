"""Terms of a training loss that keep what must stay, one a file."""
