"""The commands of lxcfs-py: a module for each, or for each family, with its parser, its help and what it does.

Each module has `add`, which is given the parser's commands. It is imported when its command is run, or listed.
"""
