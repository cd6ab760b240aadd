"""A FUSE filesystem that shows every Linux container its own /proc and /sys."""

__version__ = "0.2.0"
