# What is on the host, a line for each thing: its package manager, the version of the package and whether that is only
# half installed, the C program's version, whether the service is stopped, and disabled, the configuration in base64, the
# unit's drop-in, the age of the mount, what of the effective configuration the role asks for, where a line of the new one
# would put the mountpoint, and last the users of the mount. Arguments: the paths of configuration and drop-in, and that
# line.
. /etc/os-release
case " $ID ${ID_LIKE-} " in
*" debian "*)
    echo packages apt
    gone='/^not-installed /d; /^config-files /d'
    dpkg-query --show --showformat='${db:Status-Status} ${Version}\n' lxcfs-py 2>/dev/null |
        sed -e "$gone" -e '/^installed /!a half' -e 's/^[^ ]*/installed/'
    dpkg-query --show --showformat='${db:Status-Status} ${Version}\n' lxcfs 2>/dev/null | sed -e "$gone" -e 's/^[^ ]*/lxcfs/'
    ;;
*" fedora "*)
    echo packages dnf
    rpm --query --queryformat='installed %{VERSION}-%{RELEASE}\n' lxcfs-py
    rpm --query --queryformat='lxcfs %{VERSION}-%{RELEASE}\n' lxcfs
    ;;
*)
    echo "packages what $ID has"
    ;;
esac
[ ! -d /run/systemd/system ] || echo systemd
case $(systemctl is-active lxcfs-py 2>/dev/null) in inactive | failed) echo stopped ;; esac
systemctl is-enabled --quiet lxcfs-py 2>/dev/null || echo disabled
[ ! -f "$1" ] || echo "config $(base64 --wrap=0 "$1")"
[ ! -e "$2" ] || echo listens
# The kernel makes the directory of a connection when it is mounted. The mountpoint itself is not for asking: that waits
# for its server.
connection=$(sed -n 's/^[0-9]* [0-9]* 0:\([0-9]*\) .* - fuse\.lxcfs .*/\1/p' /proc/self/mountinfo | tail -n1)
if [ -n "$connection" ] && since=$(stat --format=%Z "/sys/fs/fuse/connections/$connection" 2>/dev/null); then
    echo "mounted $(($(date +%s) - since))"
fi
if command -v lxcfs-py >/dev/null; then
    lxcfs-py check 2>/dev/null | grep -e '^mountpoint = ' -e '^engine = ' -e '"proc/meminfo"'
    printf '%s\n' "$3" | lxcfs-py check /dev/stdin 2>/dev/null | sed -n 's/^mountpoint = /wanted &/p'
    timeout 60 lxcfs-py users || : # where nothing is mounted yet
else
    # Another server, of which only the mounts tell. Where the directory is a symlink, the kernel lists another path.
    mountpoint=$(cd -P /var/lib && link=$(readlink lxcfs || echo lxcfs) &&
        cd -P "$(dirname "$link")" && printf '%s\n' "${PWD%/}/$(basename "$link")")
    ! grep -q -F " $mountpoint fuse.lxcfs " /proc/self/mounts || echo lxcfs running
    seen=
    for process in $(grep -l ' /\(proc\|sys\)/.* - fuse\.lxcfs ' /proc/[0-9]*/mountinfo 2>/dev/null); do
        namespace=$(readlink "${process%mountinfo}ns/mnt") || continue
        case $seen in
        *"$namespace"*) ;;
        *) seen="$seen $namespace" && process=${process#/proc/} && echo "uses ${process%/mountinfo}" ;;
        esac
    done
fi
