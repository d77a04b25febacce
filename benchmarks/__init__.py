"""What is measured, one module a subject; each prints a table and writes a dated JSON beside it."""
