"""The machine: its own files, system calls, mounts."""
