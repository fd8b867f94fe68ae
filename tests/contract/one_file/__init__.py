"""Pieces of one file each, which `test_one_file` drops into a package that is found by its entry point."""
