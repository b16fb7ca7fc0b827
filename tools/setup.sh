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

source_hash() {
    find pyproject.toml CMakeLists.txt csrc -type f -print0 | LC_ALL=C sort -z |
        xargs -0 cat | { sha256sum 2>/dev/null || shasum -a 256; } | cut -c1-64
}
