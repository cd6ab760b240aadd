# What is on the host, each part ended by a line of "--": the installed version, the configuration in base64, the effective
# configuration, the users of the mount, the unit's drop-in. Arguments: apt or dnf, the paths of configuration and drop-in.
if [ "$1" = apt ]; then
    dpkg-query --show --showformat='${db:Status-Status} ${Version}\n' lxcfs-py 2>/dev/null
else
    rpm --query --queryformat='installed %{VERSION}-%{RELEASE}\n' lxcfs-py
fi
echo --
[ ! -f "$2" ] || base64 --wrap=0 "$2"
echo && echo --
if command -v lxcfs-py >/dev/null; then
    lxcfs-py check 2>/dev/null
    echo --
    timeout 60 lxcfs-py users || exit
else
    echo --
fi
echo --
[ ! -e "$3" ] || echo "$3"
