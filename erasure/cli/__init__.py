"""The `erasure` command."""

from ..io.interrupts import arm

arm()  # before the imports of the command, which take most of a second
