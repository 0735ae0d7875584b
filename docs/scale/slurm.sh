#!/bin/bash
# Start a Ray cluster on the nodes of a Slurm job and run one preparation on it.
#   sbatch --nodes=8 --time=04:00:00 docs/scale/slurm.sh cremad s3://bucket/raw s3://bucket/dataset --set video.size=64
#   sbatch --array=1-100 --nodes=1 docs/scale/slurm.sh vggsound s3://bucket/raw s3://bucket/parts
# Further arguments are passed to `avdata prepare`. Options of sbatch override those below.
#SBATCH --job-name=avdata
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=64G
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -euo pipefail
recipe=$1 source=$2 output=$3
shift 3
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then # one part per task of the array; `avdata merge` joins them
    output=$output/part-$SLURM_ARRAY_TASK_ID
    set -- "$@" --part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_MAX"
fi
# Fast local disk for downloads and unfinished shards.
export AVDATA_CACHE=${SLURM_TMPDIR:-/tmp}/avdata-$USER
# Without a token, Ray accepts everyone, and other jobs may share the network.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p) # not head -n 1: pipefail
# Since Slurm 22.05, a step does not inherit --cpus-per-task.
step=(srun --cpus-per-task="$SLURM_CPUS_PER_TASK" --kill-on-bad-exit=1)
on_head=(--overlap --nodes=1 --ntasks=1 --nodelist="$head")
# Not `hostname --ip-address`: if /etc/hosts maps the node's name to 127.0.1.1, other nodes cannot reach it.
ip=$("${step[@]}" "${on_head[@]}" hostname -I | awk '{print $1}')
# Ports that are free now: another job may run a cluster on the same node.
read -r port client_port agent_port <<< "$("${step[@]}" "${on_head[@]}" python3 -c '
import socket
sockets = [socket.socket() for _ in range(3)]
for socket in sockets: socket.bind(("", 0))
print(*(socket.getsockname()[1] for socket in sockets))')"
ray_options=(--num-cpus="$SLURM_CPUS_PER_TASK" --object-store-memory=1000000000
    --dashboard-agent-listen-port="$agent_port" --block)

"${step[@]}" "${on_head[@]}" ray start --head --node-ip-address="$ip" --port="$port" \
    --ray-client-server-port="$client_port" --temp-dir="/tmp/ray-$SLURM_JOB_ID" \
    --include-dashboard=false "${ray_options[@]}" &
ray_head=$!
trap 'rm -rf "/tmp/ray-$SLURM_JOB_ID"' EXIT # logs and sockets of Ray, where the head runs
until ray status --address="$ip:$port" >/dev/null 2>&1; do
    kill -0 "$ray_head" # ends the job if the head could not start
    sleep 2
done
if [ "$SLURM_NNODES" -gt 1 ]; then
    "${step[@]}" --overlap --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        ray start --address="$ip:$port" "${ray_options[@]}" &
fi

# The driver must run on a node of the cluster and uses the others when they join.
srun --cpus-per-task=1 "${on_head[@]}" \
    avdata prepare "$recipe" --source "$source" --output "$output" --engine ray --ray-address "$ip:$port" "$@" &
driver=$!

# Slurm sends USR1 two minutes before the time limit. The requeued job resumes from the journal.
# shellcheck disable=SC2329 # the trap calls it
requeue() {
    echo "Time limit: job $SLURM_JOB_ID is requeued."
    kill -TERM "$driver" || true
    wait "$driver" || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue USR1
status=0
wait "$driver" || status=$?
exit $status
