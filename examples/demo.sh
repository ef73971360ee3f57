#!/bin/sh
# The demo: trains a small classifier, makes its embedding table fifty times smaller, retrains it, and shows that
# it still answers as well. Needs `embcompress` on the PATH; `make demo` sees to that.
set -eu
cd "$(dirname "$0")/.."

data=examples/data
out=build/demo
rm -rf "$out"  # every run starts from nothing
mkdir -p "$out"

# Shows a command, then runs it.
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run embcompress train $data/intents_train.csv --dev $data/intents_dev.csv --arch dan -o $out/intents.pt
run embcompress report $out/intents.pt
run embcompress compress $out/intents.pt $data/intents_train.csv --dev $data/intents_dev.csv \
    --test $data/intents_test.csv --ratio 0.98 -o $out/small.pt
run embcompress evaluate $out/small.pt $data/intents_test.csv
run ls -l $out
