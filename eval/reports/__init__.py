"""Reports: pages, tables and model cards made from recorded measurements."""
