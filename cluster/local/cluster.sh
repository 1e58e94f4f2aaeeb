#!/usr/bin/env bash
# A cluster on this machine: etcd, NATS, Redis, two gateways and three workers, each a process of its own, on loopback.
#
#   cluster.sh up BINARY   starts it, shows it come up, and leaves it running
#   cluster.sh roll [LOADTEST]
#                          restarts every process, one after the other, workers and gateways drained first; with the
#                          load generator's binary under load, of which no request may fail
#   cluster.sh down        stops exactly those processes
#
# Process ids, logs and data lie in ${SENSORIUM_CLUSTER:-~/.cache/sensorium/cluster}.
set -euo pipefail

folder=${SENSORIUM_CLUSTER:-${SENSORIUM_CACHE:-$HOME/.cache/sensorium}/cluster}
# it is ours: to a node it would be a key of its configuration
unset SENSORIUM_CLUSTER
# not the usual ports: Debian starts these packages by itself where there is systemd
etcd=http://127.0.0.1:12379
etcd_peer=http://127.0.0.1:12380
nats=nats://127.0.0.1:14222
redis=redis://127.0.0.1:16379

say() { printf 'cluster: %s\n' "$*"; }
fail() { say "$*" >&2; exit 1; }

# When a process began, in the kernel's ticks: ids are used again.
began() { sed 's/.*) //' "/proc/$1/stat" 2> /dev/null | cut -d ' ' -f 20; }

# A process is ours if the one that has the id that we noted began when ours did.
runs() {
    local pid since
    [[ -e $folder/$1.pid ]] && read -r pid since < "$folder/$1.pid" && [[ -n $since && $(began "$pid") == "$since" ]]
}

signal() { # NAME SIGNAL
    local pid since
    read -r pid since < "$folder/$1.pid" && kill "-$2" "$pid"
}

start() {
    local name=$1
    shift
    if runs "$name"; then return; fi
    nohup "$@" > "$folder/$name.log" 2>&1 < /dev/null &
    echo "$! $(began $!)" > "$folder/$name.pid"
}

answers() { # URL
    case $1 in
        redis://*)
            local address=${1#redis://} said
            exec 3<> "/dev/tcp/${address/:/\/}" || return
            printf 'PING\r\n' >&3
            read -r -t 2 said <&3 && [[ $said == +PONG* ]]
            ;;
        *) curl --silent --fail --output /dev/null --max-time 2 "$1" ;;
    esac
}

# await NAME URL: until it answers, or has ended.
await() {
    for _ in $(seq 1200); do
        if (answers "$2") 2> /dev/null; then
            say "$1 is ready"
            return
        fi
        runs "$1" || fail "$1 has ended: $(tail -n 3 "$folder/$1.log")"
        sleep 0.1
    done
    fail "$1 is not ready after two minutes; see $folder/$1.log"
}

worker() { # NUMBER ZONE MODELS
    start "worker-$1" "$binary" worker --name "worker-$1" --listen "127.0.0.1:81$1" --http "127.0.0.1:82$1" \
        --zone "$2" --models "$3" --etcd "$etcd" --nats "$nats" --set compute.intra_op_threads=1
}

gateway() { # NUMBER ZONE PORT
    start "gateway-$1" "$binary" gateway --name "gateway-$1" --grpc "127.0.0.1:$3" --http "127.0.0.1:$(($3 + 1))" \
        --zone "$2" --etcd "$etcd" --nats "$nats" --redis "$redis"
}

seeing_and_reading=identity,minilm,prompt-guard,efficientnet-lite0,open-nsfw,smollm2-135m
hearing=identity,minilm,silero-vad,whisper-base,whisper-tiny-en
outside=(etcd nats redis)
workers=(worker-01 worker-02 worker-03)
gateways=(gateway-1 gateway-2)

launch() { # NAME
    case $1 in
        etcd)
            start etcd etcd --name sensorium --data-dir "$folder/etcd" --listen-client-urls "$etcd" \
                --advertise-client-urls "$etcd" --listen-peer-urls "$etcd_peer" \
                --initial-advertise-peer-urls "$etcd_peer" --initial-cluster "sensorium=$etcd_peer"
            ;;
        nats)
            start nats nats-server --addr 127.0.0.1 --port 14222 --http_port 18222 --jetstream --store_dir "$folder/nats"
            ;;
        redis)
            # a cache throws away what was not asked for longest; it is no place for anything else
            start redis redis-server --bind 127.0.0.1 --port 16379 --save '' --appendonly no --dir "$folder" \
                --maxmemory 256mb --maxmemory-policy allkeys-lru
            ;;
        worker-01) worker 01 a "$seeing_and_reading" ;;
        worker-02) worker 02 a "$hearing" ;;
        worker-03) worker 03 b "$seeing_and_reading,silero-vad,whisper-base,whisper-tiny-en" ;;
        gateway-1) gateway 1 a 8001 ;;
        gateway-2) gateway 2 b 8011 ;;
    esac
}

ready() { # NAME
    case $1 in
        etcd) await etcd "$etcd/health" ;;
        nats) await nats http://127.0.0.1:18222/healthz ;;
        redis) await redis "$redis" ;;
        worker-*) await "$1" "http://127.0.0.1:82${1#worker-}/readyz" ;;
        gateway-1) await "$1" http://127.0.0.1:8002/readyz ;;
        gateway-2) await "$1" http://127.0.0.1:8012/readyz ;;
    esac
}

up() {
    binary=$1
    [[ -x $binary ]] || fail "there is no binary at $binary"
    mkdir -p "$folder"
    echo "$binary" > "$folder/binary"
    local name
    for name in "${outside[@]}"; do launch "$name"; done
    for name in "${outside[@]}"; do ready "$name"; done
    for name in "${workers[@]}" "${gateways[@]}"; do launch "$name"; done
    for name in "${workers[@]}" "${gateways[@]}"; do ready "$name"; done
    "$binary" status
    say "up; try: $binary infer --text 'Hello', $binary status --watch, $binary jobs submit FOLDER, $binary drain worker-03"
}

stop() {
    if ! runs "$1"; then return; fi
    signal "$1" TERM
    for _ in $(seq 400); do
        runs "$1" || break
        sleep 0.1
    done
    if runs "$1"; then signal "$1" KILL; fi
    rm -f "$folder/$1.pid"
    say "$1 stopped"
}

down() {
    local name
    for name in "${gateways[@]}" "${workers[@]}" redis nats etcd; do stop "$name"; done
}

# Asks both gateways until they have been rolled; a request that one refuses is asked again at the other.
ask() { # LOADTEST
    while [[ ! -e $folder/rolled ]]; do
        "$1" run --target http://127.0.0.1:8001,http://127.0.0.1:8011 --work minilm --connections 2 --streams 4 \
            --warm-up 0 --seconds 5 >> "$folder/load.log" 2>&1 || return 1
    done
}

roll() { # [LOADTEST]
    binary=$(cat "$folder/binary")
    rm -f "$folder/rolled" "$folder/load.log"
    local name asking=
    if [[ -n ${1:-} ]]; then
        ask "$1" &
        asking=$!
        sleep 2
    fi
    # whatever happens here, who asks stops
    trap 'touch "$folder/rolled"' EXIT
    for name in "${outside[@]}" "${workers[@]}" "${gateways[@]}"; do
        stop "$name"
        launch "$name"
        ready "$name"
    done
    if [[ -n $asking ]]; then
        touch "$folder/rolled"
        wait "$asking" || fail "requests failed meanwhile: $(tail -n 3 "$folder/load.log")"
        say "$(awk '/ requests in / { sum += $2 } END { print sum }' "$folder/load.log") requests meanwhile, none failed"
    fi
}

case ${1:-} in
    up) up "${2:?the binary}" ;;
    roll) roll "${2:-}" ;;
    down) down ;;
    *) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2 ;;
esac
