"""Whole runs as YAML, one file each: `<eraser>/<what>-<model>.yaml`."""
