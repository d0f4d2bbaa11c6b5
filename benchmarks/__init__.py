"""Contenders for the same job, run side by side: see README.md."""
