# What a sandbox of 64 MiB reads of its memory, the users of the mount, and which of the processes that are the arguments
# are still there.
timeout 60 lxcfs-py try --memory 64M -- head -n1 /proc/meminfo || exit
timeout 60 lxcfs-py users || exit
for pid; do
    [ ! -d "/proc/$pid" ] || echo "alive $pid"
done
