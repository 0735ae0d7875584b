#!/bin/bash
# Start a Ray cluster on the nodes of a Slurm job and run one preparation on it.
#   sbatch --nodes=8 docs/scale/slurm.sh cremad s3://bucket/raw s3://bucket/dataset --set video.size=64
# Further arguments are passed to `avdata prepare`. Options of sbatch override those below.
#SBATCH --job-name=avdata
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
#SBATCH --requeue

set -euo pipefail
recipe=$1 source=$2 output=$3
shift 3
# Fast local disk for downloads and unfinished shards.
export AVDATA_CACHE=${SLURM_TMPDIR:-/tmp}/avdata
# Without a token, Ray accepts everyone, and other jobs may share the network.
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
on_head=(--nodes=1 --ntasks=1 --nodelist="$head")
# Not `hostname --ip-address`: if /etc/hosts maps the node's name to 127.0.1.1, other nodes cannot reach it.
ip=$(srun "${on_head[@]}" hostname -I | awk '{print $1}')
port=$((20000 + SLURM_JOB_ID % 10000)) # two jobs may share a node

srun "${on_head[@]}" ray start --head --node-ip-address="$ip" --port=$port \
    --num-cpus="$SLURM_CPUS_PER_TASK" --include-dashboard=false --block &
until ray status --address="$ip:$port" >/dev/null 2>&1; do
    kill -0 $! # ends the job if the head could not start
    sleep 2
done
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        ray start --address="$ip:$port" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi

# The driver must run on a node of the cluster and uses the others when they join. After a requeue, the same
# command resumes from the journal.
srun --overlap "${on_head[@]}" \
    avdata prepare "$recipe" --source "$source" --output "$output" --engine ray --ray-address "$ip:$port" "$@"
