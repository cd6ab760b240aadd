# What a sandbox of 64 MiB reads of its memory, a line of "--", and the users of the mount.
timeout 60 lxcfs-py try --memory 64M -- head -n1 /proc/meminfo || exit
echo --
timeout 60 lxcfs-py users
