"""A plugin for NRI, the Node Resource Interface of containerd and CRI-O: each new container gets the files."""
