#!/bin/bash
# A Ray cluster on the nodes of one Slurm job, and one preparation on it.
#   sbatch --nodes=8 docs/scale/slurm.sh cremad s3://bucket/raw s3://bucket/set
#SBATCH --job-name=avdata
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem-per-cpu=2G
#SBATCH --time=12:00:00
#SBATCH --requeue

set -euo pipefail
recipe=$1 source=$2 out=$3
port=6379
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}'):$port
# Fast local disk for what a node fetches and for shards in the making.
export AVDATA_CACHE=${SLURM_TMPDIR:-/tmp}/avdata

srun --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port=$port --num-cpus="$SLURM_CPUS_PER_TASK" --block &
until ray status --address="$address" >/dev/null 2>&1; do sleep 2; done
if [ "$SLURM_NNODES" -gt 1 ]; then
    srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) --exclude="$head" \
        ray start --address="$address" --num-cpus="$SLURM_CPUS_PER_TASK" --block &
fi

# Requeued after a failure, the same command goes on from the journal. The driver runs beside the head,
# because it has to be on a node of the cluster.
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    avdata prepare "$recipe" --source "$source" --out "$out" --engine ray --ray-address "$address"
