#!/bin/sh
# The demo: trains a small classifier, makes its embedding table ten times smaller, and shows that it still
# answers as well. Needs `python` and `embcompress` on the PATH; `make demo` sees to that.
set -eu
cd "$(dirname "$0")/.."

out=build/demo
rm -rf "$out"  # every run starts from nothing
mkdir -p "$out"

# Shows a command, then runs it.
run() {
    printf '\n$ %s\n' "$*"
    "$@"
}

run python examples/intent_classifier.py train -o "$out/intents.pt"
run embcompress report "$out/intents.pt"
run embcompress factorize "$out/intents.pt" --ratio 0.9 -o "$out/intents-small.pt"
run python examples/intent_classifier.py evaluate "$out/intents.pt"
run python examples/intent_classifier.py evaluate "$out/intents-small.pt"
run ls -l "$out"
