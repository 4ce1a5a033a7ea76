#!/bin/sh
# From Debian packages to the model that ships, models/taper-wick: text, vocabulary, weights.
#
#   tools/make_model.sh [WORK_DIR]        default: build/model; TAPER names the program, default build/taper
#
# Packages are installed where they are missing (as root, or through sudo). A run that was stopped goes on from
# its last checkpoint when it is started again with the same WORK_DIR.
set -eu

cd "$(dirname "$0")/.."
work=${1:-build/model}
taper=${TAPER:-build/taper}
model=models/taper-wick

packages="python3 diatheke sword-text-web sword-text-kjv r-cran-janeaustenr wordnet-base dict-jargon dict-devil"
if ! dpkg-query -W $packages >/dev/null 2>&1; then
    as_root=
    [ "$(id -u)" -eq 0 ] || as_root=sudo
    $as_root apt-get update
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages
fi

mkdir -p "$work/start"
python3 tools/make_verses.py
python3 tools/make_corpus.py "$work/text"
python3 tools/train_bpe.py "$work/text/train.jsonl" $model/tokenizer.json

# The start has a configuration and no weights: the trainer draws them at random.
cp $model/config.json $model/generation_config.json $model/tokenizer.json $model/tokenizer_config.json "$work/start"
"$taper" train --method full -m "$work/start" -d "$work/text" -o "$work/out" --resume=auto \
    --loss all --pack --max-seq 256 --overlong split --batch-size 16 --iters 5000 \
    --lr 4e-3 --schedule cosine --warmup 0.03 --weight-decay 0.1 --beta2 0.95 --clip 1.0 --seed 0 \
    --eval-every 500 --val-batches 6 --save-every 200 --keep 2 --dtype bf16

cp "$work/out/model.safetensors" $model/model.safetensors
