#!/bin/sh
# check_layers.sh - do all includes point down the layers of docs/layers.md?
set -eu
cd "$(dirname "$0")/.."

find lib fs tools tests/unit tests/faults tests/fuzz tests/bench -name '*.[ch]' | sort | {
	files=$(cat)
	# shellcheck disable=SC2086
	awk '
	function regex(glob) {
		gsub(/\./, "\\.", glob)
		gsub(/\*/, ".*", glob)
		return "^" glob "$"
	}
	function fits(path, globs,    list, n, i) {
		n = split(globs, list, " ")
		for (i = 1; i <= n; i++)
			if (path ~ regex(list[i]))
				return 1
		return 0
	}
	function layer(path,    i) {
		if (!(path in known)) {
			known[path] = 0
			for (i = 1; i <= rows && !known[path]; i++)
				if (fits(path, row_files[i]))
					known[path] = row_number[i]
		}
		return known[path]
	}
	function complain(text) {
		print text
		bad++
	}

	# the tables
	FILENAME == "docs/layers.md" && /^\| [0-9]+ \|/ {
		split($0, cell, "|")
		rows++
		row_number[rows] = cell[2] + 0
		row_files[rows] = cell[4]
		next
	}
	FILENAME == "docs/layers.md" && /^\| [a-z0-9*]+\.h \|/ {
		split($0, cell, "|")
		gsub(/ /, "", cell[2])
		outside++
		outside_header[outside] = cell[2]
		outside_files[outside] = cell[3]
		next
	}
	FILENAME == "docs/layers.md" { next }

	# the sources
	FNR == 1 {
		checked++
		if (!layer(FILENAME))
			complain(FILENAME ": has no row in docs/layers.md")
	}
	/^[ \t]*#[ \t]*include[ \t]*"/ {
		split($0, part, "\"")
		to = layer(part[2])
		if (!to)
			complain(FILENAME ":" FNR ": \"" part[2] "\" has no row in docs/layers.md")
		else if (layer(FILENAME) && to > layer(FILENAME))
			complain(FILENAME ":" FNR ": includes \"" part[2] "\" of a layer above its own")
	}
	/^[ \t]*#[ \t]*include[ \t]*</ {
		split($0, part, /[<>]/)
		for (i = 1; i <= outside; i++)
			if (part[2] ~ regex(outside_header[i]) && !fits(FILENAME, outside_files[i]))
				complain(FILENAME ":" FNR ": <" part[2] "> has no place here")
	}
	END {
		if (!rows || !outside)
			complain("docs/layers.md: no tables found")
		printf "layers: %d files, %d wrong\n", checked, bad
		exit bad > 0
	}' docs/layers.md $files
}
