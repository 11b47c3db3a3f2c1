"""Doors to other trainers, one module a library: each is named after it, and alone imports it."""
