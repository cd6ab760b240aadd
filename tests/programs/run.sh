# bash run.sh NAME...: run each NAME.sh of this directory, and print what was so before and after it.

facts() {
    read -r -d '' stat </proc/1/stat
    stat=(${stat##*) })
    read -r host_age _ <"$HOST/uptime"
    read -r host_load _ <"$HOST/loadavg"
    read -r load _ </proc/loadavg
    echo "$1" "${stat[19]}" "$host_age" "$host_load" "$load"
}

export LC_ALL=C.UTF-8 HOME=/root
HOST=${HOST:-/host}
# An emulated CPU takes longer.
sleep() { command sleep $(($1 * ${SLOW:-1})); }
timeout() { command timeout $(($1 * ${SLOW:-1})) "${@:2}"; }
export -f sleep timeout

cd /tmp
for name; do
    facts "<<<<$name"
    command timeout --kill-after=5 $((60 * ${SLOW:-1})) bash -c 'trap "kill \$(jobs -p) 2>/dev/null" EXIT; source "$0"' "$(dirname "$0")/$name.sh" </dev/null 2>&1
    facts ">>>>$?"
done
