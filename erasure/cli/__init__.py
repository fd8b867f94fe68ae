"""The `erasure` command."""
