#!/bin/sh
# The demonstration: teaches models/taper-wick, which writes modern English, the English of the King James Bible,
# and shows what it makes of five unseen verses before and after.
#
#   tools/demo.sh [OUT]        default: build/demo, made anew
#
# TAPER names the program (build/taper), MODEL the model and ITERS the training steps (the whole data twice).
set -eu

cd "$(dirname "$0")/.."
out=${1:-build/demo}
taper=${TAPER:-build/taper}
model=${MODEL:-models/taper-wick}
data=data/verses
verses="20 60 100 140 180" # lines of test.jsonl, whose books are in no training data

width=${COLUMNS:-$( (stty size </dev/tty) 2>/dev/null | cut -d ' ' -f 2)}
[ "${width:-0}" -ge 40 ] || width=100
[ "$width" -le 140 ] || width=140

# field NAME LINE: the text of one field of one row. The rows are flat and plain ASCII.
field() {
    sed -n "$2s/.*\"$1\": \"\([^\"\\\\]*\(\\\\.[^\"\\\\]*\)*\)\".*/\1/p" $data/test.jsonl | sed 's/\\"/"/g; s/\\n/\n/g; s/\\\\/\\/g'
}

# answers FILE [OPTION...]: one line a verse.
answers() {
    file=$1
    shift
    for verse in $verses; do
        field prompt "$verse" | "$taper" generate -m "$model" --max-tokens 64 --stop "
" "$@" | head -n 1
    done >"$file"
}

rm -rf "$out"
mkdir -p "$out"
for verse in $verses; do field prompt "$verse" | sed -n 's/^Modern: //p'; done >"$out/modern.txt"
for verse in $verses; do field completion "$verse"; done >"$out/king-james.txt"

answers "$out/before.txt"
"$taper" train -m "$model" -d $data -o "$out/adapter" \
    --method lora --targets all-linear --rank 16 --alpha 32 \
    --epochs 2 ${ITERS:+--iters "$ITERS"} --batch-size 16 --max-seq 160 --lr 2e-3 --schedule cosine --warmup 0.05 \
    --eval-every 100 --val-batches 0 --save-every 0 --log-every 20 --seed 0
answers "$out/after.txt" --adapter "$out/adapter"

paste -d '\t' "$out/modern.txt" "$out/king-james.txt" "$out/before.txt" "$out/after.txt" |
    awk -F '\t' -v width="$width" '
        # Fills lines[1..] with the words of text in lines of at most w characters; returns how many.
        function wrap(text, w, lines,    words, n, i, count) {
            n = split(text, words, " ")
            count = 1
            lines[1] = ""
            for (i = 1; i <= n; i++) {
                while (length(words[i]) > w) {
                    if (lines[count] != "") count++
                    lines[count++] = substr(words[i], 1, w)
                    lines[count] = ""
                    words[i] = substr(words[i], w + 1)
                }
                if (lines[count] != "" && length(lines[count]) + 1 + length(words[i]) > w) lines[++count] = ""
                lines[count] = lines[count] (lines[count] == "" ? "" : " ") words[i]
            }
            return count
        }
        function paragraph(label, text,    lines, n, i) {
            n = wrap(text, width - 12, lines)
            for (i = 1; i <= n; i++) printf "%-12s%s\n", i == 1 ? label : "", lines[i]
        }
        function columns(left, right,    a, b, n, m, i, w) {
            w = int((width - 3) / 2)
            n = wrap(left, w, a)
            m = wrap(right, w, b)
            printf "%-*s | %s\n", w, "BEFORE", "AFTER"
            for (i = 1; i <= n || i <= m; i++)
                printf "%-*s | %s\n", w, i <= n ? a[i] : "", i <= m ? b[i] : ""
        }
        {
            rule = sprintf("%" width "s", "")
            gsub(/ /, "-", rule)
            print rule
            paragraph("Modern", $1)
            paragraph("King James", $2)
            print ""
            columns($3, $4)
        }
        END { print rule }'

printf 'The adapter: %s\nThe curves:  %s, %s\n' "$out/adapter/adapter_model.safetensors" "$out/adapter/loss.svg" \
    "$out/adapter/loss.png"
