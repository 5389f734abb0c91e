#!/bin/sh
# Make a virtual environment from a list of pins, with uv if it is there and with pip if not:
#
#   sh envs/set_up.sh FOLDER PINS
#
# PYTHON names the interpreter; without it, the first one that will do is taken. UV= (nothing) means pip.
set -eu
folder=$1 pins=$2
uv=${UV-$(command -v uv || true)}

say() { echo "Set-up of $folder: $*"; }

# Prints the interpreter that a command starts, outside any virtual environment; fails if it is too old or too new.
find_base() {
    "$1" -c 'import sys; print(sys._base_executable); sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2> /dev/null
}

if [ -n "${PYTHON:-}" ]; then
    set -- "$PYTHON"
else
    set -- python3 python3.13 python3.12 python3.11 python3.14 python
fi
python='' incomplete='' found=''
for candidate in "$@"; do
    if ! command -v "$candidate" > /dev/null; then
        found="$found, $candidate is missing"
    elif ! base=$(find_base "$candidate"); then
        found="$found, $candidate is $("$candidate" --version 2>&1)"
    elif [ -n "$uv" ] || "$base" -c 'import ensurepip, venv' 2> /dev/null; then
        python=$base
        break
    else
        incomplete=${incomplete:-$base}
    fi
done

if [ -n "$python" ]; then
    say "$("$python" --version), $python"
elif [ -n "$uv" ] && [ -z "${PYTHON:-}" ]; then
    python='>=3.11,<3.15'
    say "no Python 3.11 to 3.14 is there; uv finds or fetches one"
elif [ -n "$incomplete" ]; then
    say "$incomplete lacks venv or ensurepip; install them (Debian, Ubuntu: apt install $("$incomplete" -c \
        'import sys; print("python%d.%d-venv" % sys.version_info[:2])')), or install uv" >&2
    exit 1
else
    say "needs Python 3.11 to 3.14$found; install one, or uv, which fetches one" >&2
    exit 1
fi

say "some minutes with a fast network; it happens once"
if [ -n "$uv" ]; then
    "$uv" venv --quiet --clear --seed --python "$python" "$folder"
    "$uv" pip install --python "$folder/bin/python" --requirement "$pins"
    exit
fi

install() { "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
"$python" -m venv --clear "$folder"
torch=$(grep '^torch==' "$pins" || true)
if [ -n "$torch" ]; then # first: another package's open range would pull another build
    say "PyTorch (200 MB for its CPU build, 3 GB for CUDA)"
    install "$torch"
fi
say "the other packages"
install --requirement "$pins"
