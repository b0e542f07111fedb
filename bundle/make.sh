#!/bin/sh
# Make the bundle of a wheel: everything that a machine without internet needs, for this Python and this platform.
#
#   bundle/make.sh PYTHON WHEEL FOLDER
#
# Its last line is the path of the bundle.
set -eu

python=$1 wheel=$2 folder=$3
source=$(cd "$(dirname "$0")/.." && pwd)
version=$(basename "$wheel" | cut -d- -f2)
name=cynow-gateway-$version-bundle
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
bundle=$work/$name

mkdir -p "$bundle/wheels"
# With pip itself: Debian's Python has none without the package python3-venv.
"$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$bundle/wheels" "$wheel[serial]" pip
cp -R "$source/etc" "$source/LICENSE" "$source/bundle/install.sh" "$bundle"
cp "$source/docs/howto/install-offline.rst" "$bundle/README.rst"
"$python" -c 'import sys, sysconfig
print("%d.%d" % sys.version_info[:2], sysconfig.get_platform())' >"$bundle/python"
chmod -R u=rwX,go=rX "$bundle"
chmod +x "$bundle/install.sh"
(cd "$bundle" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum >SHA256SUMS)

mkdir -p "$folder"
tar --create --gzip --sort=name --owner=0 --group=0 --numeric-owner --file "$folder/$name.tar.gz" -C "$work" "$name"
(cd "$folder" && sha256sum "$name.tar.gz" >"$name.tar.gz.sha256")
echo "$folder/$name.tar.gz"
