# Sourced by tools/demo and tools/check, from the top of the checkout.

# setup_venv EXTRAS: makes .venv if there is none and installs this checkout with its extras ("" or "[test,reference]"),
# editable: Python files are used where they lie (so `import pyvllama` works in this folder too), the extension is built.
# Does nothing when what it would build is there already: the stamp in .venv is a hash of what it is built from.
# The first time llama.cpp is compiled (a few minutes); pip keeps the wheel in its cache.
setup_venv() {
    local extras=$1 python=${PYTHON:-python3} stamp file
    if [ ! -x .venv/bin/python ]; then
        echo "Making .venv ..."
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "pyvllama needs Python 3.10 or newer; $python is $("$python" --version). Set PYTHON=..." >&2
            exit 1
        }
        "$python" -m venv .venv
    fi
    file=.venv/pyvllama-installed
    stamp=$(source_hash)
    if grep -qxF "$stamp $extras" "$file" 2>/dev/null || { [ -z "$extras" ] && grep -q "^$stamp " "$file" 2>/dev/null; }; then
        return
    fi
    command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || {
        echo "A C++ compiler is needed (Debian/Ubuntu: apt install g++; macOS: xcode-select --install)." >&2
        exit 1
    }
    echo "Installing pyvllama$extras into .venv; the first time this compiles llama.cpp, which takes some minutes ..."
    .venv/bin/pip install --quiet --disable-pip-version-check -e ".$extras"
    echo "$stamp $extras" >"$file"
}

# room_for_check: stops with one line where the disk has too little room for what tools/check makes. A disk that gets
# full on the way lets everything fail, and most of it does not say why. MB, measured with a tenth or so to spare:
# the environment (torch is half of it), the build with sanitizers, and what lies in the directory for temporary files
# at a time: the tests' files, or before them what pip unpacks and compiles.
room_for_check() {
    local venv=1200 build=150 tmp=1500 dir=${TMPDIR:-/tmp} here
    if [ -e .venv/pyvllama-installed ]; then venv=0; elif [ "${PYVLLAMA_REFERENCE:-}" = 1 ]; then venv=2200; fi
    here=$((venv + build))
    if [ "$(disk_of .)" = "$(disk_of "$dir")" ]; then here=$((here + tmp)); else need_room "$dir" "$tmp"; fi
    need_room . "$here"
}

disk_of() { df -Pk "$1" | awk 'NR == 2 { print $6 }'; }

need_room() {
    local free
    free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1024) }')
    if [ "$free" -lt "$2" ]; then
        echo "$(cd "$1" && pwd) has $free MB free, but tools/check needs $2 MB there: free some, or set TMPDIR" >&2
        exit 1
    fi
}

source_hash() {
    find pyproject.toml CMakeLists.txt csrc -type f -print0 | LC_ALL=C sort -z |
        xargs -0 cat | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-64
}
