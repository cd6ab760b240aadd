"""The daemon's life, and the tree that it serves."""
